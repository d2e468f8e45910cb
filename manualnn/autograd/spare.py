"""Whether the gradient that a backward is given may be written over: nothing else holds it.

dz = da ∗ g′ is as large as da, which nobody needs once dz is there. Written over da it takes no new memory, and
less goes to memory and back. PyTorch's engine does the same where it adds gradients up; it asks, as is asked
here, how many hold the tensor and its memory.

A hook that keeps the gradient, a view of it, an array or a capsule that shows its memory, a node that it goes
to as well, a caller that gave it to ``backward``: each is one holder more, and then it is left as it is.
"""

import contextlib
import functools
import math
import sys
from typing import Any

import torch

from manualnn._torch import (
    holders,
    is_batched,
    without_dispatch_modes,
    without_torch_function,
)

LARGE = 1 << 15  # elements; of fewer it takes longer to ask than to write somewhere else
KEPT = 2  # tensors of a pile: what one layer needs at once
# References of Python's to a gradient while the engine's call, the backward and ``held`` have it. More would be
# those of a tool that keeps what a frame holds.
MOST = 4
NOBODY: tuple[int, ...] = ()


def held(d: torch.Tensor) -> tuple[int, ...]:
    """How many hold a gradient, and its memory. To be asked by the very function that autograd calls."""
    storage = d.untyped_storage()
    return (sys.getrefcount(d), *holders(d, storage), sys.getrefcount(storage))


class Pile:
    """Tensors that were needed for a while, and whose memory the next may take once nothing else holds it.

    To give memory back and to ask for it anew costs more than to fill it: the system clears each new page.
    """

    def __init__(self) -> None:
        self._tensors: list[torch.Tensor] = []

    def add(self, t: torch.Tensor) -> None:
        """Keeps a tensor, in the place of the one that has been here longest."""
        if t.numel() >= LARGE and may_be_written_over(t):
            self._tensors.append(t)
            del self._tensors[:-KEPT]

    def take(
        self, shape: Any, dtype: torch.dtype, strides: Any, exactly: bool
    ) -> torch.Tensor | None:
        """A tensor of this shape, dtype and layout without gaps, in the memory of one; None: none is free.

        strides: () of rows. exactly: of as many bytes; else of up to twice as many.
        """
        wanted = math.prod(shape) * dtype.itemsize
        free = _free(self._tensors)
        for t in free:
            there = t.untyped_storage().nbytes()
            if there == wanted or (not exactly and wanted <= there <= 2 * wanted):
                self._tensors = [other for other in self._tensors if other is not t]
                new = torch.empty(0, dtype=dtype, device="cpu")
                return new.set_(t.untyped_storage(), 0, shape, strides)
        return None

    def clear(self) -> None:
        self._tensors.clear()


def _free(tensors):
    """Those that nothing holds but the list."""
    found = []
    for i in range(len(tensors)):
        if _held_in(tensors, i) == _alone_in_list():
            found.append(tensors[i])
    return found


def _held_in(tensors, i):
    t = tensors[i]
    storage = t.untyped_storage()
    return (sys.getrefcount(t), *holders(t, storage), sys.getrefcount(storage))


@functools.cache
def _alone_in_list():
    with torch.no_grad(), without_torch_function(), without_dispatch_modes():
        return _held_in([torch.empty(2, device="cpu")], 0)


def may_be_written_over(d: torch.Tensor) -> bool:
    """Whether it is a tensor that one can write over, if nothing else holds it."""
    return (
        type(d) is torch.Tensor
        and not is_batched(
            d
        )  # as ``is_grads_batched`` has it: of many gradients, and without memory
        and d.is_cpu
        and d.layout is torch.strided
        and not (d.requires_grad or d.is_neg() or d.is_conj() or d.is_inference() or d._is_view())
        and _is_dense(d)
        and _is_its_own(d, d.untyped_storage())
        and sys.gettrace()
        is sys.getprofile()
        is None  # a debugger holds what the frames held that it saw
        and alone() != NOBODY
    )


def alike(d: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether the other lies in memory as d does: what is computed of both would, too."""
    return d.dtype is other.dtype and d.shape == other.shape and d.stride() == other.stride()


def _is_its_own(d, storage):
    """Whether it has memory that PyTorch has allocated, not NumPy, a file or another process, and all of it."""
    return storage.resizable() and storage.nbytes() == d.numel() * d.element_size()


def _is_dense(d):
    if d.is_contiguous():
        return True
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    return d.dim() in formats and d.is_contiguous(memory_format=formats[d.dim()])


@functools.cache
def alone() -> tuple[int, ...]:
    """What ``held`` says of a gradient that nothing else holds: found in a backward pass of one node.

    NOBODY's where reference counts tell nothing, or cannot be had.
    """
    found: list[tuple[int, ...]] = []

    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    def backward(ctx: Any, d: torch.Tensor, *more: Any) -> torch.Tensor:
        with contextlib.suppress(AttributeError):  # another PyTorch may count otherwise
            found.append(held(d))
        return d * 2

    # As faces.eager_face: autograd calls this backward itself.
    namespace: Any = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
    probe: Any = type("Probe", (torch.autograd.Function,), namespace)
    probe._backward_cls.apply = backward
    with torch.enable_grad(), without_torch_function(), without_dispatch_modes():
        x = torch.ones(2, dtype=torch.float32, device="cpu", requires_grad=True)
        torch.autograd.grad((probe.apply(x * 1.0) * 2.0).sum(), x)
    counted = getattr(sys, "_is_gil_enabled", lambda: True)()
    return found[0] if counted and found and found[0][0] <= MOST else NOBODY
