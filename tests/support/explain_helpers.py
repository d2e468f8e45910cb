"""What the tests of manualnn.explain share."""

import gc

import pytest
import torch

import manualnn


@pytest.fixture(scope="module", autouse=True)
def nothing_old_to_collect():
    """The ledger collects garbage before it counts; what pytest holds need not be searched each time."""
    manualnn.explain(manualnn.nn.MLP([2, 2]), torch.ones(1, 2))  # what the first one loads, too
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
