"""Questions about a tensor, for places where every microsecond counts; and what can make a saved one wrong."""

import torch

from manualnn._torch import is_functorch_tensor


def is_parameter(t):
    # isinstance and issubclass call torch's metaclasses, which takes longer than all the rest.
    return torch.nn.Parameter in type(t).__mro__


def is_ordinary(t):
    """Whether a tensor has strides and memory of its own: not a subclass, sparse, nested or quantized."""
    kind = type(t)
    return (
        (kind is torch.Tensor or kind is torch.nn.Parameter)  # is_plain, without its call
        and t.layout is torch.strided
        and not (t.is_nested or t.is_quantized or t.is_meta or is_functorch_tensor(t))
    )


def is_lazy(t):
    """Whether its memory holds other numbers: still to be conjugated or negated."""
    return t.is_conj() or t.is_neg()


def lies_within(part, t):
    """Whether ``part``, which shares the memory of ``t``, lies within ``t``, and ``t`` has no gaps."""
    first = part.storage_offset() - t.storage_offset()
    return _span(t) == t.numel() and 0 <= first and first + _span(part) <= t.numel()


def _span(t):
    """The number of elements in memory from the first of ``t`` to its last."""
    return (
        1 + sum((n - 1) * s for n, s in zip(t.shape, t.stride(), strict=True)) if t.numel() else 0
    )


def is_outside(t):
    """Whether a tensor was not computed in the graph: a parameter, a buffer, an input, noise, a statistic.

    Other code has it, and may change it where no version counter shows it.
    """
    if not has_history(t):
        return True
    base = t._base
    return is_parameter(t if base is None else base)


def has_history(t):
    """Whether autograd knows how ``t`` was computed. Of one of several views, once their base is overwritten,
    torch no longer says.
    """
    try:
        return t.grad_fn is not None
    except RuntimeError:
        return False


def memory_of(t):
    """The address of a tensor's storage, which its views share; None for a wrapper, which has no memory."""
    try:
        return t.untyped_storage().data_ptr()
    except RuntimeError:
        return None


def version_of(t):
    """How often a tensor has been changed in place; -1 for an inference tensor, which does not count."""
    try:
        return t._version
    except RuntimeError:
        return -1


RECOMPUTE_HINT = (
    ". Hint: it was needed to recompute another tensor; convert(model, keep='all') saves them all"
)


def changed(t, version, hint=""):
    """The error that autograd raises for a saved tensor that has been changed in place."""
    return RuntimeError(
        "one of the variables needed for gradient computation has been modified by an inplace operation: "
        f"[{t.type()} {list(t.shape)}] is at version {version_of(t)}; expected version {version} instead{hint}."
    )


def stream_of(t):
    """The current stream of a tensor's device, or None on a CPU: in another one a tensor may not be ready."""
    if not t.is_cuda:
        return None
    return torch.cuda.current_stream(t.device).stream_id
