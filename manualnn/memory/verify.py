"""What was recomputed is compared with the fingerprint of what was let go, before anyone uses it."""

import threading
import weakref

from manualnn._torch import after_backward


class RecomputationError(RuntimeError):
    """A tensor that was recomputed in backward is not the one that was let go in forward."""


class Place:
    """Where in a model a tensor was saved: the op, the layer whose forward called it, and the model."""

    __slots__ = ("layer", "model", "op")

    def __init__(self, op, layer, model):
        self.op, self.model = op, model
        self.layer = None if layer is None else weakref.ref(layer)

    def __str__(self):
        layer = None if self.layer is None else self.layer()
        model = None if self.model is None else self.model()
        if layer is None:
            return f"saved by {self.op}" if self.op else "saved in forward"
        names = [] if model is None else [n for n, m in model.named_modules() if m is layer]
        where = (
            f"{names[0]} ({type(layer).__name__})" if names and names[0] else type(layer).__name__
        )
        return f"saved by {self.op} in layer {where}" if self.op else f"saved in layer {where}"


def mismatch(value, place):
    """The error for a value that came out another one."""
    shape, _, dtype = value.like
    what = f"[{str(dtype).removeprefix('torch.')} {list(shape)}], the result of {value.op},"
    return RecomputationError(
        f"a tensor {what} {place}, was let go in forward, and what was recomputed in its place in "
        "backward is another one, so no gradient is given. Something that it is computed from has been "
        "changed where no version counter shows it: by .data, through NumPy or DLPack, by a collective, "
        "by a mode, or by an op that does not always give the same. Make that change before the forward "
        "pass or after backward, or convert(model, keep='all'), which saves the tensors themselves."
    )


def overwritten(value, place):
    """The error for a tensor that is another one than when autograd saved it."""
    shape, _, dtype = value.like
    what = f"[{str(dtype).removeprefix('torch.')} {list(shape)}], the result of {value.op},"
    return RecomputationError(
        f"a tensor {what} {place}, has been changed since, where no version counter shows it: it would be "
        "recomputed as it was, and torch would have gone on with what it is now. Change a clone of it, "
        "or convert(model, keep='all')."
    )


def compare(now, before, error):
    """Raise ``error()`` unless two fingerprints are equal; of a GPU at the end of this backward pass.

    There a comparison would wait for all that has been queued. Gradients may have been accumulated by
    then, but no call returns with them.
    """
    if isinstance(now, tuple):
        if now != before:
            raise error()
        return
    _later.add(now, before, error)


class _Later(threading.local):
    """Comparisons whose results are still on a GPU."""

    def __init__(self):
        self.open = []

    def add(self, now, before, error):
        differs = (now != before).any()
        if not self.open:
            try:
                after_backward(self.close)
            except RuntimeError:  # no backward pass is running: somebody looks at a node's tensors
                if differs.item():
                    raise error() from None
                return
        self.open.append((differs, error))

    def close(self):
        found, self.open = self.open, []
        for differs, error in found:
            if differs.item():
                raise error()


_later = _Later()
