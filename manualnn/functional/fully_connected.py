"""The fully connected layer."""

from itertools import pairwise

from torch import Tensor

from manualnn._torch import unsafe_view
from manualnn.autograd.autocast import autocast
from manualnn.autograd.moment import eager
from manualnn.functional.names import require_tensor
from manualnn.ops.fully_connected import Linear
from manualnn.ops.products import Matmul


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """z = x Wᵀ + b. input (*, i), weight (o, i) or (i), bias (o) or () -> (*, o) or (*)."""
    require_tensor("linear", 1, "input", input)
    require_tensor("linear", 2, "weight", weight)
    input, weight, bias = autocast("linear", input, weight, bias)
    if weight.dim() == 1:
        if bias is not None and input.dim() == 2:
            raise RuntimeError("addmm: mat2 must be a matrix, got 1-D tensor")
        z = Matmul.apply(
            input, weight
        )  # as torch has it: another order of adding up than in a matrix
        return z if bias is None else z + bias
    if gathers_rows(input, weight):
        # As torch does, before the product: it is this copy that backward reads.
        z = Linear.apply(input.reshape(-1, input.shape[-1]), weight, None)
        z = unsafe_view(z, (*input.shape[:-1], weight.shape[0]))
        return z if bias is None else z + bias
    return Linear.apply(input, weight, bias)


def gathers_rows(x: Tensor, W: Tensor) -> bool:
    """Whether torch makes one product of matrices of a strided x: its rows are copied together if W needs a
    gradient, and seen as a matrix if they lie as one."""
    if not eager() or x.dim() <= 2 or x.is_contiguous() or x.numel() == 0:
        return False
    return W.requires_grad or in_rows(x)


def in_rows(x: Tensor) -> bool:
    """Whether the rows of x lie as those of one matrix, so that it takes no copy to see them as one."""
    lengths = [(n, s) for n, s in zip(x.shape[:-1], x.stride(), strict=False) if n != 1]
    return all(s == inner_n * inner_s for (_, s), (inner_n, inner_s) in pairwise(lengths))
