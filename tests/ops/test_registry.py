"""Every public function and module has its row."""

import inspect
import warnings

import pytest
import torch
from ops import OPS

from manualnn import functional, nn
from manualnn.ops.catalogue import FAMILIES, families

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


def stated():
    """Every op with a source, and whether it says what it stands for."""
    modules = [module for family in FAMILIES.values() for module in family]
    return {
        op
        for module in modules
        for op in vars(module).values()
        if isinstance(op, type)
        and op.__module__ == module.__name__
        and "Source:" in (op.__doc__ or "")
    }


# A second way to compute what another op stands for.
SECOND = {"FlashAttention"}


def test_every_op_says_what_it_stands_for_and_is_tried():
    named = {op for ops in families().values() for op in ops}
    assert {op.__name__ for op in stated() - named} == SECOND
    assert all(op.examples for op in named)


def test_what_an_op_stands_for_is_public():
    named = [op for ops in families().values() for op in ops]
    assert [op for op in named if not hasattr(functional, op.twin.function)] == []
    layers = {layer for op in named for layer in (op.twin.module, *op.twin.others)}
    assert [layer for layer in layers if not hasattr(nn, layer)] == []
    tried = {e.function or op.twin.function for op in named for e in op.examples}
    in_place = {name for name in functional.__all__ if name.endswith("_")}
    assert set(functional.__all__) - in_place - tried == {"multi_head_attention_forward"}


def test_warnings_are_not_hidden_by_this_file():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        functional.mse_loss(torch.zeros(2), torch.zeros(2, 1))
    assert "different to the input size" in str(caught[0].message)
