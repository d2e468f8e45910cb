"""Formulas applied element by element.

A formula made of several tensor operations walks through memory once for each. ``evaluate`` has a large
tensor walked through once, by the formula's kernel (``manualnn.kernels``), or block by block, so that the
temporaries stay in the processor's cache. Both give the same bits. It computes in float32 where the dtype is
narrower, so that a result is rounded once.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from manualnn import kernels
from manualnn.autograd.moment import eager, first_order

# In elements: a few float32 temporaries of this size fit in a core's second-level cache.
BLOCK = 1 << 16
_NARROW = (torch.bfloat16, torch.float16)


def evaluate(formula, *tensors, options=()):
    """``formula(*tensors, *options)``, element by element, in the dtype of the first tensor.

    Args:
        formula: takes tensors of one shape and the options; returns a tensor of that shape.
        tensors: of one shape. Narrow dtypes (bfloat16, float16) are computed in float32.
        options: handed to the formula after the tensors.
    """
    first = tensors[0]
    # The compiler first: to it a look at the size is a bound on the size.
    if torch.compiler.is_compiling() or not kernels.is_large(first) or first.device.type != "cpu":
        return _once(formula, tensors, options)
    if not (first_order() and eager()):
        return _once(formula, tensors, options)
    count, large = first.numel(), first.numel() >= 4 * BLOCK
    flat = first.dim() == 0 or all(t.is_contiguous() for t in tensors)
    # A block is some elements of a flat tensor, and of another some of its first dimension.
    rows = BLOCK if flat else max(1, BLOCK * first.shape[0] // count)
    block = rows if flat else rows * count // first.shape[0]
    found = kernels.run(_once, formula, tensors, options, block if large else max(1, count))
    if found is not None:
        return found
    if not large:
        return _once(formula, tensors, options)
    if flat:
        return _in_blocks(formula, [t.view(-1) for t in tensors], options, rows).view(first.shape)
    return _in_blocks(formula, tensors, options, rows)


def pays(tensor):
    """Whether a formula of several of PyTorch's kernels may be one: a large float32 or float64 on a CPU.

    Narrower dtypes PyTorch's kernels round one after the other, and ``evaluate`` once.
    """
    if torch.compiler.is_compiling() or not isinstance(tensor, torch.Tensor):
        return False
    if not kernels.is_large(tensor) or tensor.device.type != "cpu":
        return False
    if not tensor.is_contiguous():  # PyTorch's results may lie in memory otherwise than they
        return False
    return tensor.dtype in (torch.float32, torch.float64) and first_order() and eager()


def times(da, slope):
    """da ∗ slope; a truth value selects. A slope may be a plain number, and conjugate if complex."""
    if isinstance(slope, torch.Tensor):
        if slope.dtype is torch.bool:
            return torch.where(slope, da, 0)
        if slope.is_complex():
            return da * slope.conj()
    return da * slope


class TimesSlope(NamedTuple):
    """The formula da ∗ g′(saved, options) of a slope g′. Two of one slope are the same formula."""

    slope: Callable[..., Any]

    def __call__(self, da: torch.Tensor, saved: torch.Tensor, *options: Any) -> torch.Tensor:
        return times(da, self.slope(saved, *options))

    @property
    def formula_parts(self) -> tuple[Any, ...]:
        """What it is made of, and is looked at for what it reads."""
        return (self.slope,)

    @property
    def names(self) -> tuple[str, ...]:
        """Of its tensors."""
        return ("da", *kernels.names_of(self.slope))


class WithTensors(NamedTuple):
    """``formula(*tensors, *options)`` with tensors among its options.

    It is called with the tensors, then with those options, then with the numbers. takes: how many tensors come
    first. are_tensors: of each option, whether it is one.
    """

    formula: Callable[..., Any]
    takes: int
    are_tensors: tuple[bool, ...]

    def __call__(self, *given: Any) -> torch.Tensor:
        first = self.takes + sum(self.are_tensors)
        tensors, numbers = iter(given[self.takes : first]), iter(given[first:])
        options = [next(tensors if is_tensor else numbers) for is_tensor in self.are_tensors]
        return self.formula(*given[: self.takes], *options)

    @property
    def formula_parts(self) -> tuple[Any, ...]:
        """What it is made of, and is looked at for what it reads."""
        return (self.formula,)

    @property
    def names(self) -> tuple[str, ...]:
        """Of its tensors."""
        names = kernels.names_of(self.formula)
        options = zip(names[self.takes :], self.are_tensors, strict=False)
        return (*names[: self.takes], *(name for name, is_tensor in options if is_tensor))


class Elementwise(NamedTuple):
    """``function(*tensors, *options)``, element by element: a recipe that may be joined with others.

    by_channel: how many of the tensors, the last ones, have one number for each channel. The function is one of
    torch's or of manualnn's: what it computes depends on nothing else.
    """

    function: Callable[..., Any]
    options: tuple[Any, ...] = ()
    by_channel: int = 0

    def __call__(self, *tensors: torch.Tensor) -> torch.Tensor:
        return self.function(*tensors, *self.options)


def wide(dtype):
    """The dtype in which a formula is computed."""
    return torch.float32 if dtype in _NARROW else dtype


def _once(formula, tensors, options):
    if not any(t.dtype in _NARROW for t in tensors):
        return formula(*tensors, *options)
    return formula(*(t.to(wide(t.dtype)) for t in tensors), *options).to(tensors[0].dtype)


def _in_blocks(formula, tensors, options, size):
    out = torch.empty_like(tensors[0])
    for into, *blocks in zip(*(t.split(size) for t in (out, *tensors)), strict=True):
        into.copy_(_once(formula, blocks, options))
    return out
