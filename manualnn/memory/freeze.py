"""Freezes the arguments of a call for its recipe: a recipe holds values, not references to what may change."""

from collections.abc import Callable
from typing import Any

import torch

# Of these types a value never changes.
ATOMS = {
    *(type(None), bool, int, float, complex, str, bytes, type(Ellipsis), range),
    *(torch.dtype, torch.device, torch.layout, torch.memory_format),
}


class Unfreezable(Exception):
    """An argument whose value cannot be frozen: the call has no recipe."""


def _refuse(t):
    raise Unfreezable


def frozen(value: Any, tensor: Callable[[torch.Tensor], Any] = _refuse) -> Any:
    """``value``, independent of later changes to it: lists, slices and arrays are copied.

    tensor: is called with each tensor, and returns what takes its place.

    Raises:
        Unfreezable: the type of a part is not known, or ``tensor`` refuses a tensor.
    """
    kind = type(value)
    if kind in ATOMS:
        return value
    if kind is tuple or kind is torch.Size or kind is list:
        return (tuple if kind is torch.Size else kind)([frozen(v, tensor) for v in value])
    if kind is slice:
        return slice(*(frozen(v, tensor) for v in (value.start, value.stop, value.step)))
    if isinstance(value, torch.Tensor):
        return tensor(value)
    if kind.__module__ == "numpy" and hasattr(value, "dtype") and not value.dtype.hasobject:
        return value.copy()
    if isinstance(value, (int, float, complex, str)):  # a member of an enumeration, say
        return value
    raise Unfreezable
