"""The errors for a recomputed tensor that differs from the dropped one, and where that one was saved."""

import sys
import weakref
from types import FrameType

import torch

FRAMES = 12  # from an op up to the forward of the layer that called it, at most


class RecomputationError(RuntimeError):
    """A tensor that backward recomputed differs from the one that forward dropped."""

    __module__ = "manualnn"  # where users find it


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


def running_layer():
    """The layer whose forward is running, found on the stack: to note it in each layer would cost time."""
    frame: FrameType | None = sys._getframe(3)  # above those that decide about an op
    for _ in range(FRAMES):
        if frame is None:
            return None
        if frame.f_code.co_name == "forward":
            layer = frame.f_locals.get("self")
            if isinstance(layer, torch.nn.Module):
                return layer
        frame = frame.f_back
    return None


def mismatch(recipe, place):
    """The error for a recomputed tensor whose fingerprint differs."""
    return RecomputationError(
        f"a tensor {_described(recipe)} {place}, was dropped in forward, and what backward recomputed in its "
        "place differs from it, so no gradient is given. Something that it is computed from has been "
        "changed where no version counter shows it: by .data, through NumPy or DLPack, by a collective, "
        "by a mode, or by an op that does not always give the same. Make that change before the forward "
        "pass or after backward, or convert(model, keep='all'), which saves the tensors themselves."
    )


def overwritten(recipe, place):
    """The error for a tensor that differs from what it was when autograd saved it."""
    return RecomputationError(
        f"a tensor {_described(recipe)} {place}, has been changed since, where no version counter shows it: "
        "it would be recomputed as it was, and torch would have gone on with what it is now. Change a clone "
        "of it, or convert(model, keep='all')."
    )


def _described(recipe):
    shape, _, dtype = recipe.layout
    return f"[{str(dtype).removeprefix('torch.')} {list(shape)}], the result of {recipe.op},"
