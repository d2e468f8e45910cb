"""A formula of an activation, its expression, and the C and Triton that are printed of it."""

import torch

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


def beside(*columns):
    inside = "\n".join(f"<div markdown>\n\n{column}\n\n</div>" for column in columns)
    return f'<div class="beside even" markdown>\n{inside}\n</div>\n'
