"""Where the windows of a pooling layer lie, and how the place of one element in its window is numbered."""

from functools import lru_cache
from math import prod
from typing import NamedTuple

import torch

from manualnn.function import eager


class Windows(NamedTuple):
    """Of each dimension: the size of the input, the windows' first elements, and how far each reaches.

    Of a regular pool the o-th window starts at o · stride − padding, before the input perhaps; of an
    adaptive pool at ⌊o · size / count⌋.
    """

    size: tuple
    count: tuple
    extent: tuple
    stride: tuple = None
    padding: tuple = None

    def starts(self, dim, device):
        o = torch.arange(self.count[dim], device=device)
        if self.stride is None:
            return o * self.size[dim] // self.count[dim]
        return o * self.stride[dim] - self.padding[dim]

    def origins(self, radix, device):
        """The first elements of the windows as numbers whose digits count in ``radix``: (L…)."""
        total = 0
        for dim in range(len(self.size)):
            later = len(self.size) - 1 - dim
            start = self.starts(dim, device) * prod(radix[dim + 1 :])
            total = total + start.view(-1, *(1 for _ in range(later)))
        return total

    def position(self, index):
        """An element's place in the input, as torch numbers it, as its place in its window: a byte."""
        place = reread(index, self.size, self.extent, prod(self.size))
        return (place - self.origins(self.extent, index.device)).to(self.dtype)

    def index(self, position):
        """The inverse of ``position``."""
        place = reread(position.to(torch.int64), self.extent, self.size, prod(self.extent))
        return place + self.origins(self.size, position.device)

    def positions(self, device):
        """``position`` for many blocks."""
        origins = self.origins(self.extent, device)
        return Rereader(self.size, self.extent, -origins, prod(self.size))

    def indices(self, device):
        """``index`` for many blocks."""
        origins = self.origins(self.size, device)
        return Rereader(self.extent, self.size, origins, prod(self.extent))

    @property
    def dtype(self):
        """The narrowest that can number every place of a window."""
        places = prod(self.extent)
        if places <= 1 << 8:
            return torch.uint8
        return torch.int16 if places <= 1 << 15 else torch.int32


def regular(size, count, kernel, stride, padding, dilation):
    # The holes of a dilated window are numbered, too: it saves a division.
    extent = tuple(d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True))
    return Windows(tuple(size), tuple(count), extent, stride, padding)


def adaptive(size, count):
    pairs = zip(size, count, strict=True)
    extent = tuple(n // o if n % o == 0 else n // o + 2 for n, o in pairs)
    return Windows(tuple(size), tuple(count), extent)


def reread(number, old, new, limit):
    """The number whose digits, in the mixed radix ``new``, are those of ``number`` in ``old``.

    As sums of ``number``, below ``limit``, divided by the places of each digit: digits are differences.
    """
    result = number
    for places, factor in _terms(old, new):
        result = torch.add(result, _divided(number, places, limit), alpha=factor)
    return result


class Rereader:
    """``reread`` of many blocks, a shift added: in memory of its own, so that it stays in the cache."""

    def __init__(self, old, new, shift, limit):
        self.terms = [(*_reciprocal(n, limit), factor) for n, factor in _terms(old, new)]
        largest = limit * max((factor for factor, _, _ in self.terms), default=1)
        self.dtype = torch.int32 if largest < 1 << 31 else torch.int64
        self.shift, self.memory = shift.to(self.dtype), None

    def __call__(self, numbers, into):
        if self.memory is None or self.memory[0].shape != numbers.shape:
            self.memory = [torch.empty_like(numbers, dtype=self.dtype) for _ in range(3)]
        number, result, leading = self.memory
        number.copy_(numbers)
        torch.add(number, self.shift, out=result)
        for reciprocal, bits, factor in self.terms:
            torch.mul(number, reciprocal, out=leading).bitwise_right_shift_(bits)
            result.add_(leading, alpha=factor)
        return into.copy_(result)


def _terms(old, new):
    for dim in range(len(old) - 1):
        factor = prod(new[dim + 1 :]) - old[dim + 1] * prod(new[dim + 2 :])
        yield prod(old[dim + 1 :]), factor


def _divided(number, n, limit):
    if not eager() or limit >= 1 << 30:
        return number // n
    reciprocal, bits = _reciprocal(n, limit)
    return (number * reciprocal).bitwise_right_shift_(bits)


@lru_cache
def _reciprocal(n, limit):
    """r and b with ⌊number / n⌋ = number · r >> b for 0 ≤ number < limit: a division takes longer."""
    bits = 0
    while True:
        reciprocal = -(-(1 << bits) // n)
        if limit * (reciprocal * n - (1 << bits)) <= 1 << bits:
            return reciprocal, bits
        bits += 1
