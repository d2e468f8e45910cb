"""Whether a kernel gives ATen's bits on this machine: compared when it is loaded.

About a kilobyte of values: random ones of several sizes, and those at which something might go another way: the
numbers in the formula and their neighbours, zeros of both signs, infinities, NaN, the smallest and the
largest. One difference, and ATen serves. NaN is NaN, whatever its other bits are.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from manualnn.kernels.c import Given
from manualnn.kernels.expressions import Expression

COUNT = 256  # of a float32 a kilobyte; whole vectors, and too few for a second thread of ATen's
SINGLES = (0.7, -1.3, 0.0)  # values of what is one number for all elements
ROUNDS = 4

_BITS = {8: torch.int64, 4: torch.int32, 2: torch.int16}


def agrees(
    compute: Callable[[list[Any]], Any],
    reference: Callable[..., Any],
    expression: Expression,
    given: Sequence[Given],
) -> bool:
    """Whether ``compute(tensors)`` has the bits of ``reference(*tensors)`` on every set of values."""
    generator = torch.Generator().manual_seed(0)
    for tensors in _sets(expression, given, generator):
        if not same_bits(compute(tensors), reference(*tensors)):
            return False
    return True


def passes(comparison: Callable[[], bool]) -> bool:
    """What a comparison says; False where ATen itself does not take what it is given."""
    try:
        return comparison()
    except Exception:  # whatever it is, ATen meets it as well, and says it in its own words
        return False


def same_bits(mine: Any, other: Any) -> bool:
    """Whether two tensors are equal to the last bit, NaN apart."""
    if mine.dtype is not other.dtype or mine.shape != other.shape:
        return False
    bits = _BITS[mine.element_size()]
    differ = mine.contiguous().view(bits) != other.contiguous().view(bits)
    return not bool((differ & ~(mine.isnan() & other.isnan())).any())


def values(expression: Expression, dtype: torch.dtype, generator: torch.Generator) -> Any:
    """COUNT values of a dtype, in an order that the generator chooses."""
    some = special(expression, dtype)
    sizes = torch.tensor([0.1, 1.0, 4.0, 30.0], dtype=torch.float64)
    drawn = torch.randn(COUNT, generator=generator, dtype=torch.float64)
    drawn = drawn * sizes[torch.randint(4, (COUNT,), generator=generator)]
    drawn = drawn.to(dtype)
    drawn[: len(some)] = some[:COUNT]
    return drawn[torch.randperm(COUNT, generator=generator)]


def special(expression: Expression, dtype: torch.dtype) -> Any:
    """The values at which something might go another way."""
    info = torch.finfo(dtype)
    found = [0.0, -0.0, math.inf, -math.inf, math.nan, info.tiny, -info.tiny, info.max, info.min]
    found += [info.smallest_normal / 2, -info.smallest_normal / 2, info.eps, 1 + info.eps]
    found += [88.0, -88.0, 104.0, -104.0, 710.0, -746.0, 1e4, -1e4]
    numbers = {s.value for s in expression.steps if s.kind == "constant" and math.isfinite(s.value)}
    at = torch.tensor(sorted({n * sign for n in numbers for sign in (1, -1)})[:32], dtype=dtype)
    around = [torch.tensor(found, dtype=torch.float64).to(dtype), at]
    for direction in (math.inf, -math.inf):
        around.append(torch.nextafter(at, torch.full_like(at, direction)))
    return torch.cat(around)[: COUNT * 3 // 4]


def _sets(expression, given, generator) -> Iterator[list[Any]]:
    singles = [SINGLES if g.single else (None,) for g in given]
    for chosen in itertools.islice(itertools.product(*singles), 9):
        for _ in range(ROUNDS if len(given) > 1 else 1):
            yield [
                values(expression, g.dtype, generator)
                if one is None
                else torch.tensor(one, dtype=g.dtype).expand(COUNT)
                for g, one in zip(given, chosen, strict=True)
            ]
