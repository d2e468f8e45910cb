"""What a tensor is, asked where every microsecond of an op counts; and what could make a saved one wrong."""

import torch

from manualnn._torch import is_functorch_tensor
from manualnn.autograd.subclasses import is_plain


def is_parameter(t):
    # isinstance and issubclass ask torch's metaclasses, which takes longer than all the rest.
    return torch.nn.Parameter in type(t).__mro__


def is_ordinary(t):
    """A tensor with strides and memory of its own: no subclass, sparse, nested or quantised one."""
    return (
        is_plain(t)
        and t.layout is torch.strided
        and not t.is_nested
        and not t.is_quantized
        and not t.is_meta
        and not is_functorch_tensor(t)
    )


def is_lazy(t):
    """Whether its memory holds other numbers: to be conjugated, or with the other sign."""
    return t.is_conj() or t.is_neg()


def shows_no_more(part, t):
    """Whether all that ``part`` shows of the memory of ``t`` are elements of ``t``, which has no gaps."""
    first = part.storage_offset() - t.storage_offset()
    return _span(t) == t.numel() and 0 <= first and first + _span(part) <= t.numel()


def _span(t):
    """Elements from its first to its last in memory."""
    return (
        1 + sum((n - 1) * s for n, s in zip(t.shape, t.stride(), strict=True)) if t.numel() else 0
    )


def is_outside(t):
    """Whether a tensor was not computed in a graph: a parameter, a buffer, an input, noise, statistics.

    Others hold it, and may change it by ways that no version counter shows.
    """
    return not has_history(t) or is_parameter(t if t._base is None else t._base)


def has_history(t):
    """Not one of several views whose base was overwritten: torch does not say what it comes from any more."""
    try:
        return t.grad_fn is not None
    except RuntimeError:
        return False


def memory_of(t):
    """Where a tensor's storage begins: views of one share it. None of a wrapper of another, which has none."""
    try:
        return t.untyped_storage().data_ptr()
    except RuntimeError:
        return None


def version_of(t):
    """How often a tensor has been changed in place; an inference tensor does not count."""
    try:
        return t._version
    except RuntimeError:
        return -1


TO_RECOMPUTE = (
    ". Hint: it was needed to recompute another tensor; convert(model, keep='all') saves them all"
)


def changed(t, version, hint=""):
    """The error that autograd raises for a saved tensor that has been changed in place."""
    return RuntimeError(
        "one of the variables needed for gradient computation has been modified by an inplace operation: "
        f"[{t.type()} {list(t.shape)}] is at version {version_of(t)}; expected version {version} instead{hint}."
    )


def stream_of(t):
    """The stream in which a value is being computed; one of another stream may not be ready."""
    if not t.is_cuda:
        return None
    return torch.cuda.current_stream(t.device).stream_id
