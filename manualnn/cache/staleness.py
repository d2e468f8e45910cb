"""What could make a kept tensor wrong: a change in place, another stream."""

import torch


def version_of(t):
    """How often a tensor has been changed in place; an inference tensor does not count."""
    return -1 if t.is_inference() else t._version


def changed(t, version):
    """The error that autograd raises for a saved tensor that has been changed in place."""
    return RuntimeError(
        "one of the variables needed for gradient computation has been modified by an inplace operation: "
        f"[{t.type()} {list(t.shape)}] is at version {version_of(t)}; expected version {version} instead. "
        "Hint: it was needed to make another tensor again; convert(model, keep='all') keeps them all."
    )


def stream_of(t):
    """The stream in which a value is being made; one of another stream may not be ready."""
    if not t.is_cuda:
        return None
    return torch.cuda.current_stream(t.device).stream_id
