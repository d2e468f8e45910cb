"""Matrix products; torch.nn.functional has none, so they are not among the public names."""

from manualnn.function import autocast
from manualnn.ops.matmul import Matmul


def matmul(input, other):
    """A B, as torch.matmul: (*, n, k) and (*, k, m) -> (*, n, m); either may be a vector."""
    return Matmul.apply(*autocast("matmul", input, other))
