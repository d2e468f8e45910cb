"""What torch calls a thing in its messages, and what it takes for a tensor and for a number."""

from collections.abc import Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

Size: TypeAlias = int | Sequence[int]  # a number, or one for each dimension
OutputSize: TypeAlias = int | Sequence[int | None] | None  # None: as large as the input


def scalar_type(t: Tensor) -> str:
    """As torch calls it in its messages: Long, Byte, ComplexDouble."""
    return t.type().rpartition(".")[2].removesuffix("Tensor")


def require_tensor(function: str, position: int, name: str, value: object) -> None:
    """TypeError, as torch, of what is no tensor and does not stand for one."""
    if not isinstance(value, torch.Tensor) and not hasattr(type(value), "__torch_function__"):
        raise TypeError(
            f"{function}(): argument '{name}' (position {position}) must be Tensor, "
            f"not {type(value).__name__}"
        )


def number(function: str, name: str, value: float | Tensor | None) -> Any:
    """A tensor as its value now; TypeError, as torch, where it is none, or its gradient would be lost."""
    if type(value) is float or not isinstance(value, torch.Tensor):
        return value
    if value.requires_grad or value.dim():
        raise TypeError(f"{function}(): argument '{name}' must be float, not Tensor")
    return value.item()
