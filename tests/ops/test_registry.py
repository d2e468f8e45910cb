"""Every public function and module has its row."""

import inspect
import warnings

import pytest
import torch
from ops import OPS

from manualnn import functional, nn

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


# Ops without a name in manualnn.functional, which has torch.nn.functional's names only.
INTERNAL = {"matmul"}


def test_every_public_function_and_module_has_a_row():
    rows = {op.name for op in OPS}
    public = {
        name
        for name, value in vars(functional).items()
        if inspect.isfunction(value) and not name.startswith("_")
    }
    assert public == set(functional.__all__)
    in_place = {name for name in public if name.endswith("_")}
    assert {name[:-1] for name in in_place} <= rows
    assert public - in_place == rows - {"MLP"} - INTERNAL
    assert "MLP" in rows and nn.MLP


def test_warnings_are_not_hidden_by_this_file():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        functional.mse_loss(torch.zeros(2), torch.zeros(2, 1))
    assert "different to the input size" in str(caught[0].message)
