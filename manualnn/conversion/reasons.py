"""Which layer of a model an exception comes from, said in its message."""

from typing import Any

import torch

from manualnn.conversion.refused import tracing_hint

# What torch raises on an input that a layer cannot take. Anything else is a fault in a program, or a signal.
REFUSALS: Any = (RuntimeError, ValueError, IndexError, TypeError, AssertionError)


def name_layer(model: torch.nn.Module, error: Exception) -> None:
    """Puts the name of the layer of `model` that raised `error` in front of the error's message.

    The layer is the `self` of the innermost frame whose `self` is a part of `model`; `model` itself has no
    name. Where a converted model is a part of another, the outer one's name replaces the inner one's.
    The exception stays the same object; one that carries anything else than one text is left as it is.
    """
    if not isinstance(error, REFUSALS) or error.args != (str(error),):
        return
    name = _innermost(model, error)
    said = getattr(error, "said_by_layer", error.args[0] + tracing_hint(error))
    if name or said != error.args[0]:
        error.said_by_layer, error.args = said, (f"{name}: {said}" if name else said,)


def _innermost(model: torch.nn.Module, error: Exception) -> str:
    names = {id(module): name for name, module in model.named_modules()}
    found, step = "", error.__traceback__
    while step is not None:
        found = names.get(id(step.tb_frame.f_locals.get("self")), found)
        step = step.tb_next
    return found
