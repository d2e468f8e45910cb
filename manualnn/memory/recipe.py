"""How one tensor of a forward pass is recomputed in backward."""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch


class Source(Protocol):
    """What a recipe recomputes a tensor from: a SavedValue, or a Constant."""

    nbytes: int
    depth: int


# A NamedTuple, because one is made for nearly every op: a frozen dataclass takes three times as long to make.
class Recipe(NamedTuple):
    """How a tensor is recomputed, from which sources, at which cost. Immutable.

    recompute  ``recompute(*tensors of the sources)`` is the tensor, bit for bit
    sources    what it is recomputed from
    op         the name of the op, for messages, and to recognize concatenations
    is_view    whether the tensor is a view of its one source
    layout     shape, strides and dtype of the tensor
    number     of the recipe among those of the forward pass
    depth      recipes between the tensor and the furthest tensor that has none
    in_place   computes the same and writes it over the first source; None if there is no such way
    into       ``into(out, *tensors)`` computes the same and writes it into ``out``; None likewise
    """

    recompute: Callable[..., torch.Tensor]
    sources: tuple[Source, ...]
    op: str
    is_view: bool
    layout: tuple[torch.Size, tuple[int, ...], torch.dtype]
    number: int
    depth: int
    in_place: Callable[..., torch.Tensor] | None = None
    into: Callable[..., torch.Tensor] | None = None

    @property
    def cost(self) -> int:
        """The bytes that recomputing reads and writes: its time, for no recipe is a matrix product."""
        if self.is_view:
            return 0
        shape, _, dtype = self.layout
        return shape.numel() * dtype.itemsize + sum(source.nbytes for source in self.sources)

    def laid_out(self, tensor: torch.Tensor) -> torch.Tensor:
        """The recomputed tensor with the strides of the original: views of it are taken by strides."""
        shape, strides, dtype = self.layout
        if tensor.shape != shape or tensor.dtype != dtype:
            raise RuntimeError(
                f"a {tuple(shape)} of {dtype} was recomputed as {tuple(tensor.shape)} of {tensor.dtype}"
            )
        if tensor.stride() == strides:
            return tensor
        return torch.empty_strided(shape, strides, dtype=dtype, device=tensor.device).copy_(tensor)
