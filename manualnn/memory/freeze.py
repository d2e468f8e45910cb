"""What a recipe holds besides its sources: values, not references that somebody may change later."""

from collections.abc import Callable

import torch

_ATOMS = {
    *(type(None), bool, int, float, complex, str, bytes, type(Ellipsis), range),
    *(torch.dtype, torch.device, torch.layout, torch.memory_format),
}


class Unfreezable(Exception):
    """An argument whose value cannot be held: the call has no recipe."""


def _refuse(t):
    raise Unfreezable


def frozen(value: object, tensor: Callable[[torch.Tensor], object] = _refuse) -> object:
    """``value`` such that a change of what was passed in is not seen: lists, slices and arrays are copied.

    tensor: what stands for a tensor.

    Raises:
        Unfreezable: its kind is not known.
    """
    kind = type(value)
    if kind in _ATOMS:
        return value
    if kind is tuple or kind is torch.Size or kind is list:
        return (tuple if kind is torch.Size else kind)([frozen(v, tensor) for v in value])
    if kind is slice:
        return slice(*(frozen(v, tensor) for v in (value.start, value.stop, value.step)))
    if isinstance(value, torch.Tensor):
        return tensor(value)
    if kind.__module__ == "numpy" and hasattr(value, "dtype") and not value.dtype.hasobject:
        return value.copy()
    if isinstance(value, (int, float, complex, str)):  # an enumeration's member, say
        return value
    raise Unfreezable
