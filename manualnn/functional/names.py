"""What torch calls a thing in its messages, and how it takes an option that is a tensor."""

import torch


def scalar_type(t):
    """As torch calls it in its messages: Long, Byte, ComplexDouble."""
    return t.type().rpartition(".")[2].removesuffix("Tensor")


def number(function, name, value):
    """A tensor as its value now; TypeError, as torch, where it is none, or its gradient would be lost."""
    if not isinstance(value, torch.Tensor):
        return value
    if value.requires_grad or value.dim():
        raise TypeError(f"{function}(): argument '{name}' must be float, not Tensor")
    return value.item()
