"""The fully connected layer."""

from manualnn.function import autocast
from manualnn.ops.linear import Linear


def linear(input, weight, bias=None):
    """z = x Wᵀ + b. input (*, i), weight (o, i) or (i), bias (o) or () -> (*, o) or (*)."""
    input, weight, bias = autocast("linear", input, weight, bias)
    if weight.dim() == 1:
        if bias is not None and input.dim() == 2:
            raise RuntimeError("addmm: mat2 must be a matrix, got 1-D tensor")
        return Linear.apply(input, weight.unsqueeze(0), bias).squeeze(-1)
    return Linear.apply(input, weight, bias)
