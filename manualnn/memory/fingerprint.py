"""A fingerprint of a tensor that is dropped: what is recomputed in its place must have the same.

By default it consists of the bits of a few dozen elements; in full, of sums over the bits of all. On a CPU it
is a tuple of numbers, about a kilobyte; on a GPU it is a tensor, so that the CPU does not wait for it.

NaN is NaN: PyTorch's own kernels give it one set of bits in a full vector and another in the rest.
"""

import ctypes
import functools
import math
from collections.abc import Callable
from operator import itemgetter
from typing import Any

import torch

Fingerprint = tuple[int, ...] | torch.Tensor

ELEMENTS = 24
MOST = 4096  # sizes whose places are cached
_WIDTHS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_DTYPES = [d for d in vars(torch).values() if isinstance(d, torch.dtype)]
_BITS = {
    d: _WIDTHS[d.itemsize]
    for d in _DTYPES
    if (d.is_floating_point or d.is_complex) and d.itemsize in _WIDTHS
}
# The memory of a tensor as the bits of its elements: an array without an end, of which only a few places are
# read.
_MEMORY = {
    torch.float64: ctypes.c_int64 * (1 << 40),
    torch.float32: ctypes.c_int32 * (1 << 40),
    torch.bfloat16: ctypes.c_int16 * (1 << 40),
    torch.float16: ctypes.c_int16 * (1 << 40),
}
# The bits of infinity, and those of a number without its sign: NaN is above.
_INFINITY = {
    torch.float64: (0x7FF0 << 48, (1 << 63) - 1),
    torch.float32: (0x7F80 << 16, (1 << 31) - 1),
    torch.bfloat16: (0x7F80, (1 << 15) - 1),
    torch.float16: (0x7C00, (1 << 15) - 1),
}
# Odd, and as far from a regular step as a multiplier gets, so that the places follow no stride or channel
# count.
_SPREAD = 0x9E3779B97F4A7C15


def sample(t: torch.Tensor) -> Fingerprint:
    """The bits of ELEMENTS elements of ``t``, the first and the last among them; of all, if ``t`` is small."""
    # Runs three times for each dropped tensor, when its code has left the CPU's caches: to read the elements
    # where they lie, without an op, takes half the time.
    memory: Any
    n, memory = t.numel(), _MEMORY.get(t.dtype)
    if n > ELEMENTS and memory and t.is_cpu and not t.is_neg():
        address = t.data_ptr()
        if address:
            picked = _picked(n) if t.is_contiguous() else _picked_strided(t.shape, t.stride())
            return picked(memory.from_address(address))
    known = t.dtype in _INFINITY  # of others there may be no operation but on their bits
    seen = t.detach() if known else bits_of(t)
    n = seen.numel()
    seen = seen if n <= ELEMENTS else seen.take(_places_on(n, t.device))
    return _numbers((bits_of(_without_payloads(seen)) if known else seen).clone())


def checksum(t: torch.Tensor) -> Fingerprint:
    """Two sums over the bits of all elements of ``t``; in the second the place of each counts, too."""
    bits = bits_of(_without_payloads(t.detach())).reshape(-1).to(torch.int64)
    places = torch.arange(1, bits.numel() + 1, device=bits.device).mul_(_signed(_SPREAD))
    # A product with an odd number, and a shift, mix the upper bits into the lower ones, which every sum sees.
    mixed = (bits + places).mul_(_signed(0xBF58476D1CE4E5B9))
    mixed ^= mixed >> 31
    return _numbers(torch.stack((bits.sum(), mixed.sum())))


def differ(now: Fingerprint, before: Fingerprint, dtype: torch.dtype) -> bool | torch.Tensor:
    """Whether two fingerprints of tensors of that dtype differ; on a GPU a tensor that says so."""
    if isinstance(now, torch.Tensor):
        return torch.ne(now, before).any()  # type: ignore[arg-type]  # both are of one kind
    if now == before:
        return False
    if dtype not in _INFINITY or isinstance(before, torch.Tensor):
        return True
    infinity, magnitude = _INFINITY[dtype]
    nan = [n & magnitude > infinity for n in now]
    pairs = zip(now, before, nan, strict=False)
    differing = [a != b and not (is_nan and b & magnitude > infinity) for a, b, is_nan in pairs]
    return len(now) != len(before) or any(differing)


FINGERPRINTS: dict[object, Callable[[torch.Tensor], Fingerprint] | None] = {
    True: sample,
    "full": checksum,
    False: None,
}


def bits_of(t: torch.Tensor) -> torch.Tensor:
    """``t`` as integers, so that NaN equals NaN and 0 differs from −0; nothing is copied."""
    bits, t = _BITS.get(t.dtype), t.detach()
    if bits is not None:
        return t.view(bits)
    return torch.view_as_real(t).view(torch.int64) if t.dtype is torch.complex128 else t


def _without_payloads(t):
    """``t`` with the same bits for each NaN; complex numbers, and what has no NaN, as they are."""
    return t.masked_fill(t.isnan(), math.nan) if t.dtype in _INFINITY else t


def _numbers(seen):
    return tuple(seen.flatten().tolist()) if seen.is_cpu else seen


@functools.lru_cache(maxsize=MOST)
def _places(n):
    """ELEMENTS places among ``n``: the first, the last, and one in each stretch between, anywhere in it."""
    step = n / (ELEMENTS - 1)
    inner = [
        int((i + (i * _SPREAD % (1 << 64)) / (1 << 64)) * step) for i in range(1, ELEMENTS - 1)
    ]
    return [0, *(min(p, n - 1) for p in inner), n - 1]


@functools.lru_cache(maxsize=MOST)
def _picked(n):
    return itemgetter(*_places(n))


@functools.lru_cache(maxsize=MOST)
def _picked_strided(shape, strides):
    """As ``_picked``, for elements that do not lie in memory in their order."""
    offsets = []
    for place in _places(math.prod(shape)):
        offset = 0
        for size, stride in zip(reversed(shape), reversed(strides), strict=True):
            place, at = divmod(place, size)
            offset += at * stride
        offsets.append(offset)
    return itemgetter(*offsets)


@functools.lru_cache(maxsize=MOST)
def _places_on(n, device):
    return torch.tensor(_places(n), device=device)


def _signed(number: int) -> int:
    return number - (1 << 64) if number >= 1 << 63 else number
