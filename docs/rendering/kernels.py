"""A formula of an activation, or a chain, its expression, and the C and Triton that are printed of it."""

import torch

from manualnn.kernels import chains
from manualnn.kernels.chains import BY_CHANNEL, EACH, Link
from manualnn.ops.activations import ReLU
from manualnn.ops.norms.batch import shifted
from manualnn.tools.kernels import activation, options_of, printed
from rendering.source import fenced


def kernel(name, title):
    """The formula of that title, then its expression; below, C and Triton side by side."""
    cls = activation(name)
    (shown,) = [
        p for p in printed(cls, options_of(cls, None), torch.float32) if p.title.startswith(title)
    ]
    above = beside(
        fenced(shown.formula.rstrip(), "the formula"),
        fenced(shown.expression, "what it computes", "text"),
    )
    return (
        above
        + "\n"
        + beside(fenced(shown.c.rstrip(), "C", "c"), fenced(shown.triton.rstrip(), "Triton"))
    )


def chain():
    """What stands at the end of a residual block: batch norm, the sum with the input, ReLU."""
    norm = Link(shifted, (EACH, BY_CHANNEL, BY_CHANNEL, BY_CHANNEL))
    block = Link(ReLU.forward, (Link(torch.add, (norm, EACH)),))
    names = "x", "scale", "mu", "beta", "residual"
    expression, program = chains.printed(block, torch.float32, names)
    return beside(
        fenced(str(expression), "batch norm, residual sum, ReLU", "text"),
        fenced(program.body, "C", "c"),
    )


def beside(*columns):
    inside = "\n".join(f"<div markdown>\n\n{column}\n\n</div>" for column in columns)
    return f'<div class="beside even" markdown>\n{inside}\n</div>\n'
