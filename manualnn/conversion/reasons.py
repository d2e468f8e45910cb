"""Puts the name of the layer that raised an exception into its message."""

from typing import Any

import torch

from manualnn.conversion.refused import tracing_hint

# What torch raises when a layer refuses its input. Anything else is a fault in a program, or a signal.
REFUSALS: Any = (RuntimeError, ValueError, IndexError, TypeError, AssertionError)


def name_layer(model: torch.nn.Module, error: Exception) -> None:
    """Put the name of the layer of `model` that raised `error` in front of the error's message.

    The layer is the `self` of the innermost frame whose `self` is a part of `model`; `model` itself has no
    name. If a converted model is a part of another, the name in the outer one replaces that in the inner one.
    The exception stays the same object. One whose arguments are not a single text is left as it is.
    """
    if not isinstance(error, REFUSALS) or error.args != (str(error),):
        return
    name = _innermost(model, error)
    message = getattr(error, "message_of_layer", error.args[0] + tracing_hint(error))
    if name or message != error.args[0]:
        error.message_of_layer = message
        error.args = (f"{name}: {message}" if name else message,)


def _innermost(model: torch.nn.Module, error: Exception) -> str:
    names = {id(module): name for name, module in model.named_modules()}
    found, step = "", error.__traceback__
    while step is not None:
        found = names.get(id(step.tb_frame.f_locals.get("self")), found)
        step = step.tb_next
    return found
