"""Everything of manualnn's own, with inputs to check it with and torch's twin to compare it with."""

from functools import partial

import torch

from manualnn import functional, nn
from manualnn.autograd.activation import Activation
from manualnn.ops.catalogue import families

# Where torch's own derivative is rounded to float32 even in float64, is not there, or is not that of its
# function: binary_cross_entropy has logarithms of at least −100, and of the target the slope as if not.
TORCH_OFF = {
    "binary_cross_entropy": ("other values",),
    "hardsigmoid": ("backward against the reference", "kinks", "NaN and infinity"),
    "hardswish": ("backward against the reference", "kinks", "NaN and infinity"),
    "softplus": ("forward against the reference", "NaN and infinity"),
    "avg_pool3d": ("bfloat16",),
}


def catalogue():
    """Family -> list of (name, function, inputs, options of ``check``)."""
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        found = {
            family: [entry(op, example) for op in ops for example in shown(op)]
            for family, ops in families().items()
        }
        found["MLP"] = [
            (
                f"MLP, {name}",
                nn.MLP([4, 5, 3], name, dtype=torch.float64),
                (torch.randn(6, 4).double(),),
                {},
            )
            for name in ("relu", "tanh", "gelu")
        ]
    return found


def shown(op):
    """Of an elementwise op with its first options; of others every example."""
    return op.examples[:1] if issubclass(op, Activation) else op.examples


def entry(op, example):
    name = example.function or op.twin.function
    label = ", ".join([name, *[example.label] * bool(example.label)])
    given = {"kinks": example.kinks, "skip": TORCH_OFF.get(name, ())}
    if example.not_variables:
        given["not_variables"] = example.not_variables
    if example.has_twin:
        given["reference"] = partial(getattr(torch.nn.functional, name), **example.options)
    function = partial(getattr(functional, name), **example.options)
    return (
        label,
        function if example.options else function.func,
        example.inputs(torch.float64),
        given,
    )
