"""Dropout by its own kernels: ``masks.c``, called where they give ATen's bits; None: ATen is to serve."""

import ctypes
import functools
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from manualnn._torch import without_torch_function
from manualnn.kernels import build, trust
from manualnn.kernels.running import (
    is_large,
    is_plain,
    lies_by_rows,
    may_run,
    pointers,
    shares,
)

_SOURCE = Path(__file__).with_suffix(".c")
_SIZES = (1, 7, 8, 64, 1000, 2051)


class Masking(NamedTuple):
    """out = z q where the mask is 1, and else z · 0; then ``on`` or ``off`` is added, if given."""

    q: float
    on: float | None = None
    off: float | None = None

    @property
    def shifts(self) -> tuple[float, float] | None:
        """Both, if given."""
        return None if self.on is None or self.off is None else (self.on, self.off)


class Kernels(NamedTuple):
    """The functions of ``masks.c``, and what keeps them loaded."""

    and_pack: Any
    by_bits: Any
    object: Any


def and_pack(z: Tensor, mask: Tensor, how: Masking) -> tuple[Tensor, Tensor] | None:
    """The masked z, and the mask as bits. z and mask (*), float32 and bool, without gaps."""
    if not _fit(z) or mask.dtype is not torch.bool or mask.shape != z.shape or not _plain(mask):
        return None
    kernels = _loaded()
    if kernels is None:
        return None
    out, bits = torch.empty_like(z), z.new_empty(-(-z.numel() // 8), dtype=torch.uint8)
    _call(kernels.and_pack, z.numel(), how, (out, bits, z, mask))
    return out, bits


def by_bits(z: Tensor, bits: Tensor, how: Masking) -> Tensor | None:
    """The masked z, by a mask of as many bits, of which the last byte's are filled up."""
    fits = _fit(z) and bits.dtype is torch.uint8 and bits.numel() == -(-z.numel() // 8)
    if not fits or not _plain(bits):
        return None
    kernels = _loaded()
    if kernels is None:
        return None
    out = torch.empty_like(z)
    _call(kernels.by_bits, z.numel(), how, (out, z, bits))
    return out


def _fit(z):
    return is_large(z) and z.dtype is torch.float32 and z.numel() > 0 and may_run() and _plain(z)


def _plain(t):
    return is_plain(t) and lies_by_rows(t)


@functools.cache
def _loaded() -> Kernels | None:
    loaded = build.built_from(_SOURCE, ("mask_and_pack", "mask_by_bits"))
    if loaded is None:
        return None
    found = Kernels(loaded.mask_and_pack, loaded.mask_by_bits, loaded)
    for function in found[:2]:
        numbers = (ctypes.c_float, ctypes.c_float, ctypes.c_float, ctypes.c_int)
        function.argtypes = (ctypes.c_longlong, ctypes.c_int, *numbers, ctypes.c_void_p)
        function.restype = None
    with torch.no_grad(), without_torch_function():
        agrees = trust.passes(lambda: all(_agrees(found, size) for size in _SIZES))
        return found if agrees else None


def _agrees(kernels, size):
    """Whether both have the bits of ATen's operations on random and special values."""
    generator = torch.Generator().manual_seed(size)
    here: Any = {"dtype": torch.float32, "device": "cpu"}
    z = torch.randn(size, generator=generator, **here) * 3
    special = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, torch.nan, 1e-40, 3e38], **here)
    at = torch.randint(size, (min(size, 14),), generator=generator, device="cpu")
    z[at] = special.repeat(2)[: len(at)]
    mask = torch.rand(size, generator=generator, **here) < 0.6
    bits = torch.cat((mask, mask.new_zeros(-size % 8))).view(-1, 8).to(torch.uint8)
    bits = (bits << torch.arange(7, -1, -1, dtype=torch.uint8, device="cpu")).sum(1).to(torch.uint8)
    for how in (Masking(1 / 0.7), Masking(1.0), Masking(0.7, 0.3, -1.1), Masking(1.3, 0.0, -0.0)):
        expected = (z * mask) * how.q
        if how.shifts is not None:
            on, off = (torch.tensor(shift, **here) for shift in how.shifts)
            expected = expected + torch.where(mask, on, off)
        out, packed, again = torch.empty_like(z), torch.empty_like(bits), torch.empty_like(z)
        _call(kernels.and_pack, size, how, (out, packed, z, mask))
        _call(kernels.by_bits, size, how, (again, z, bits))
        same = trust.same_bits(out, expected) and trust.same_bits(again, expected)
        if not (same and torch.equal(packed, bits)):
            return False
    return True


def _call(function, count, how, tensors):
    threads = min(torch.get_num_threads(), shares(count))
    on, off = how.shifts or (0.0, 0.0)
    function(count, threads, how.q, on, off, how.shifts is not None, pointers(*tensors))
