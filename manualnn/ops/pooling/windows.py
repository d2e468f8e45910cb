"""Where the windows of a pooling layer lie, and how the place of one element in its window is numbered."""

from functools import lru_cache
from math import prod
from typing import NamedTuple

import torch

from manualnn.autograd.moment import plain


class Windows(NamedTuple):
    """Of each dimension: the size of the input, the number of windows, and how far each reaches.

    Of a regular pool the o-th window starts at o · stride − padding, before the input perhaps; of an
    adaptive pool at ⌊o · size / count⌋. The places of a window are numbered row by row, ``radix`` to a row.
    """

    size: tuple
    count: tuple
    extent: tuple
    radix: tuple
    stride: tuple = None
    padding: tuple = None

    def starts(self, dim, device, unit=1):
        """The first places of the windows along one dimension, in steps of ``unit``."""
        if self.stride is None:
            return (
                torch.arange(self.count[dim], device=device)
                * self.size[dim]
                // self.count[dim]
                * unit
            )
        step, first = self.stride[dim] * unit, -self.padding[dim] * unit
        return torch.arange(first, first + self.count[dim] * step, step, device=device)

    def origins(self, radix, device):
        """The first elements of the windows as numbers whose digits count in ``radix``: (L…)."""
        last = len(self.size) - 1
        total = self.starts(last, device)
        for dim in range(last):
            start = self.starts(dim, device, prod(radix[dim + 1 :]))
            total = total + start.view(-1, *(1 for _ in range(last - dim)))
        return total

    def position(self, index):
        """An element's place in the input, as torch numbers it, as its place in its window: a byte."""
        if self.by_lowest_byte:
            return (index - self.origins(self.size, index.device)).to(self.dtype)
        place = reread(index, self.size, self.radix, prod(self.size))
        return (place - self.origins(self.radix, index.device)).to(self.dtype)

    def index(self, position):
        """The inverse of ``position``."""
        place = reread(position.to(torch.int64), self.radix, self.size, self.places)
        return place + self.origins(self.size, position.device)

    def positions(self, device):
        """``position`` for many blocks: a function of them and of where to write to."""
        if self.by_lowest_byte:
            origins = self.origins(self.size, device).to(self.dtype)
            return lambda index, into: into.copy_(index).sub_(origins)
        origins = self.origins(self.radix, device)
        return Rereader(self.size, self.radix, -origins, prod(self.size))

    def indices(self, device):
        """``index`` for many blocks: a function of them and of where to write to."""
        return Rereader(self.radix, self.size, self.origins(self.size, device), self.places)

    @property
    def places(self):
        return 1 + sum((n - 1) * prod(self.radix[d + 1 :]) for d, n in enumerate(self.extent))

    @property
    def by_lowest_byte(self):
        return self.radix != self.extent

    @property
    def dtype(self):
        """The narrowest that can number every place of a window."""
        if self.places <= 1 << 8:
            return torch.uint8
        return torch.int16 if self.places <= 1 << 15 else torch.int32


def regular(size, count, kernel, stride, padding, dilation):
    # The holes of a dilated window are numbered, too: it saves a division.
    extent = tuple(d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True))
    size = tuple(size)
    return Windows(size, tuple(count), extent, numbering(size, extent), stride, padding)


def adaptive(size, count):
    pairs = zip(size, count, strict=True)
    extent = tuple(n // o if n % o == 0 else n // o + 2 for n, o in pairs)
    size = tuple(size)
    return Windows(size, tuple(count), extent, numbering(size, extent))


def numbering(size, extent):
    """How many places to a row of a window: as many as it has, or, where a byte still holds them all, as
    the input's row has beyond a multiple of 256. Then a place in the window is the lowest byte of the
    difference of two places in the input, and no division finds it.
    """
    low = (extent[0], *(n % 256 for n in size[1:]))
    apart = all(r >= n for r, n in zip(low, extent, strict=True))
    last = sum((n - 1) * prod(low[d + 1 :]) for d, n in enumerate(extent))
    return low if apart and last < 256 else extent


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
    if limit >= 1 << 30 or not plain(number):
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
