"""One thread a process: the tensors are small, and two threads only wait for each other."""

import gc

import torch

torch.set_num_threads(1)


def pytest_collection_finish(session):
    """What has been imported stays: no search for garbage looks through it again."""
    gc.collect()
    gc.freeze()
