"""What ``help()`` says of a layer first: how it differs from torch.nn's, what is saved, where the formula is.

It is taken from the op's docstring. A layer's op has the layer's name, without 1d, 2d, 3d and Loss, or names
the layer in its ``twin``.
"""

import inspect
import re
import textwrap
from typing import Any

import torch

from manualnn.autograd.function import Function
from manualnn.ops import (
    activations,
    attention,
    convolutions,
    dropouts,
    embeddings,
    fully_connected,
    losses,
    network,
    norms,
    pooling,
    stochastic_depth,
)
from manualnn.ops.docstrings import parts, without_verb

_OPS = {
    name: op
    for module in (
        *(activations, attention, convolutions, dropouts, embeddings, fully_connected),
        *(losses, network, norms, pooling, stochastic_depth),
    )
    for name, op in vars(module).items()
    if isinstance(op, type) and issubclass(op, Function)
}


def _family(layer: str) -> str:
    return re.sub(r"(\dd|Loss)$", "", layer)


for _op in [op for op in _OPS.values() if op.twin is not None]:
    for _layer in (_op.twin.module, *_op.twin.others):
        _OPS.setdefault(_family(_layer), _op)
_OPS["MLP"] = network.Network  # no layer of torch's, so that the op has no twin


def op_of(layer: type[torch.nn.Module]) -> type[Function]:
    """The op that a layer of ours runs."""
    return _OPS[_family(layer.__name__)]


class Doc:
    """The docstring of a layer, put together when it is asked for: ``import manualnn`` does not wait for it."""

    def __init__(self, layer: type[torch.nn.Module]) -> None:
        self.layer, self.own = layer, vars(layer).get("__doc__")

    def __get__(self, instance: Any, cls: type) -> str:
        name = self.layer.__name__
        theirs, op = getattr(torch.nn, name, None), op_of(self.layer)
        if theirs is not None:
            head = f"torch.nn.{name} with a backward written by hand; all else is torch's."
        else:
            head = "A layer with a backward written by hand; torch.nn has none of this name."
        if not op.__doc__:  # python -OO
            return head
        mathematics, saved, source, _ = parts(op)
        saved = textwrap.fill(f"Saved for backward: {without_verb(saved)}", 100)
        place = f"The formula is in {op.__module__}.{op.__qualname__}:"
        formula = textwrap.indent(mathematics, "    ")
        rest = inspect.cleandoc(self.own) if self.own else _of_torch(theirs)
        return f"{head}\n\n{saved}\n{place}\n\n{formula}\n\nSource: {source}\n\n{rest}\n"


def _of_torch(theirs: Any) -> str:
    """torch's docstring up to its examples, which are of torch's own layer."""
    text = inspect.getdoc(theirs) or ""
    before = re.split(r"\n *Examples?:|\n *>>>", text)[0]
    return f"What torch says of it:\n\n{before}"


def document(layers: dict[str, Any]) -> None:
    """Gives every layer of ours among these names its docstring."""
    for layer in layers.values():
        if isinstance(layer, type) and layer.__module__.startswith("manualnn.nn."):
            # A Doc is asked when it is read; mypy knows text alone.
            layer.__doc__ = Doc(layer)  # type: ignore[assignment]
