"""Subclasses of Tensor: which there are, and how what was computed of one becomes one again."""

import torch

from manualnn._torch import no_torch_function

# Of these types nothing is a subclass of Tensor. isinstance calls torch's metaclass, which takes longer.
_OTHERS = {type(None), bool, int, float, str, tuple, torch.Tensor, torch.nn.Parameter}


def is_plain(t):
    return type(t) is torch.Tensor or type(t) is torch.nn.Parameter


def comes_out(value):
    """Whether a value is a subclass of Tensor that wants to be what comes out, too."""
    if not isinstance(value, torch.Tensor) or is_plain(value):
        return False
    return type(value).__torch_function__ is not no_torch_function


def with_subclass(outputs, inputs):
    """What was computed of subclasses with ``__torch_function__`` switched off, as the first of them.

    torch does the same after each of its functions. Within a Function it would make views, which autograd
    forbids to change in place when they come out.
    """
    for i in inputs:
        if type(i) not in _OTHERS and comes_out(i):
            return _as_kind(type(i), outputs, inputs)
    return outputs


def _as_kind(kind, outputs, inputs):
    if isinstance(outputs, tuple):
        return tuple(with_subclass(o, inputs) for o in outputs)
    is_other = isinstance(outputs, torch.Tensor) and type(outputs) is not kind
    return outputs.as_subclass(kind) if is_other else outputs
