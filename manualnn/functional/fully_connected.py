"""The fully connected layer."""

import torch

from manualnn.function import autocast, eager
from manualnn.ops.linear import Linear


def linear(input, weight, bias=None):
    """z = x Wᵀ + b. input (*, i), weight (o, i) or (i), bias (o) or () -> (*, o) or (*)."""
    input, weight, bias = autocast("linear", input, weight, bias)
    if weight.dim() == 1:
        if bias is not None and input.dim() == 2:
            raise RuntimeError("addmm: mat2 must be a matrix, got 1-D tensor")
        return Linear.apply(input, weight.unsqueeze(0), bias).squeeze(-1)
    if gathers_rows(input, weight):
        # As torch does, before the product: it is this copy that backward reads.
        z = Linear.apply(input.reshape(-1, input.shape[-1]), weight, None)
        z = torch.ops.aten._unsafe_view(z, (*input.shape[:-1], weight.shape[0]))
        return z if bias is None else z + bias
    return Linear.apply(input, weight, bias)


def gathers_rows(x, W):
    """Whether torch copies the rows of a strided x together, to make one product of matrices of them."""
    return x.dim() > 2 and not x.is_contiguous() and W.requires_grad and eager() and x.numel() > 0
