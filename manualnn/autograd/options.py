"""The options of an activation: numbers, as they are when it is called."""

import torch

from manualnn.autograd.moment import bypass_function_mode

_NUMBERS = {float, int, bool}


@bypass_function_mode
def any_requires_grad(*values):
    return any(isinstance(v, torch.Tensor) and v.requires_grad for v in values)


def numbers(options):
    """The options, the value in place of a tensor, which might be another one by the time of backward.

    Raises TypeError, as torch does, for a tensor that is no number, or whose gradient would be lost.
    """
    for option in options:
        if type(option) not in _NUMBERS:
            return _numbers(options)
    return tuple(options)


def _numbers(options):
    if any_requires_grad(*options):
        raise TypeError(
            "the options of an activation must be Number, not Tensor that requires grad: one whose gradient "
            "is needed has to be among those that are `learned`"
        )
    if any(isinstance(o, torch.Tensor) and o.dim() for o in options):
        raise TypeError("the options of an activation must be Number, not Tensor with dimensions")
    return tuple(map(_number, options))


def _number(option):
    """A tensor's value, and that of a scalar of NumPy's, which PyTorch's kernels do not take."""
    if type(option) in _NUMBERS:
        return option
    return option.item() if isinstance(option, torch.Tensor) or hasattr(option, "dtype") else option
