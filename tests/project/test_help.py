"""What an editor or a reader asks of the public names: help, members, attributes. None of it may raise."""

import inspect
import pydoc

import pytest
import torch

import manualnn
from manualnn import functional, nn, ops

PUBLIC = {
    f"{module.__name__}.{name}": getattr(module, name)
    for module in (manualnn, nn, functional, ops.activations, ops.losses, ops.norms)
    for name in dir(module)
    if not name.startswith("_")
}


@pytest.mark.parametrize("name", PUBLIC)
def test_help_and_members(name):
    thing = PUBLIC[name]
    assert pydoc.plain(pydoc.render_doc(thing)).strip()
    assert inspect.getmembers(thing)
    assert not hasattr(thing, "no_such_attribute")


def test_an_activation_without_a_formula_has_no_module():
    assert not hasattr(manualnn.Activation, "Module")
    with pytest.raises(AttributeError, match="Activation states no formula"):
        manualnn.Activation.Module  # noqa: B018
    assert issubclass(ops.activations.ReLU.Module, torch.nn.Module)
