"""Formulas applied element by element.

A formula made of several tensor operations walks through memory once for each. ``evaluate`` walks a
large tensor block by block instead, so that the temporaries stay in the processor's cache, and
computes in float32 where the dtype is narrower, so that a result is rounded once.
"""

import torch

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
    if torch.compiler.is_compiling() or first.numel() < 4 * BLOCK or first.device.type != "cpu":
        return _once(formula, tensors, options)
    if not (first_order() and eager()):
        return _once(formula, tensors, options)
    if first.dim() == 0 or all(t.is_contiguous() for t in tensors):
        return _in_blocks(formula, [t.view(-1) for t in tensors], options, BLOCK).view(first.shape)
    rows = max(1, BLOCK * first.shape[0] // first.numel())
    return _in_blocks(formula, tensors, options, rows)


def times(da, slope):
    """da ∗ slope; a truth value selects. A slope may be a plain number, and conjugate if complex."""
    if isinstance(slope, torch.Tensor):
        if slope.dtype is torch.bool:
            return torch.where(slope, da, 0)
        if slope.is_complex():
            return da * slope.conj()
    return da * slope


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
