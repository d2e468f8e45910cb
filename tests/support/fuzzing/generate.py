"""A program from a seed."""

import contextlib
import copy
import gc
import random

import torch
from torch.utils.checkpoint import checkpoint

from fuzzing import around, calls, layers, state, writes  # noqa: F401  their rules are registered
from fuzzing.author import Author
from fuzzing.events import Script, input_shape
from fuzzing.helpers import SHORT, seeded
from fuzzing.program import Statement

SHORT.update(checkpoint=checkpoint, copy=copy, gc=gc)


@contextlib.contextmanager
def default_dtype(name):
    before = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, name))
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def generate(seed, dtype=None, keep=None):
    """The program of that seed; dtype and keep are drawn where not given."""
    first = random.Random(f"options {seed}")
    drawn = first.choice(("float64", "float64", "float32")), first.choice(("less", "less", "all"))
    a = Author(seed, dtype or drawn[0], keep or drawn[1])
    with default_dtype(a.program.dtype):
        seeded(seed)
        shape = input_shape(a)
        a.names["x"] = eval(f"torch.randn{shape}".replace(",)", ")")).requires_grad_()
        a.add("h0 = x")
        from fuzzing.layers import convolution, linear, norm

        for start in (linear, norm) if a.chance(0.5) else (convolution, norm):
            a.attempt(start)
        for _ in range(a.rng.randrange(2, 14)):
            a.write()
        _outputs(a)
        Script(a, shape).write()
    return a.program


def _outputs(a):
    """What comes last, behind another layer for good measure, and now and then something from between."""
    from fuzzing.layers import linear

    if a.chance(0.7):
        a.attempt(linear)
    a.program.outputs = [a.scope[-1]]
    while a.chance(0.25):
        a.program.outputs.append(a.pick())
    if not a.program.body:
        a.program.body.append(Statement("pass"))
