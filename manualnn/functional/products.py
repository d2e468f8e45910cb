"""Matrix products; torch.nn.functional has none, so they are not among the public names."""

import torch
from torch import Tensor

from manualnn.autograd.autocast import autocast
from manualnn.ops.products import Matmul


def matmul(input: Tensor, other: Tensor) -> Tensor:
    """A B, as torch.matmul: (*, n, k) and (*, k, m) -> (*, n, m); either may be a vector."""
    if input is other:  # its two gradients are added in an order that depends on torch's own nodes
        return torch.matmul(input, other)
    return Matmul.apply(*autocast("matmul", input, other))
