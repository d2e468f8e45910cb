"""What a converted model cannot be given to, said where it happens and not only in a docstring.

torch.ao.quantization looks layers up by their exact type, and would pass ours over without a word.
torch.fx reads a forward pass with placeholders, which a hand-written Function cannot compute with.
"""

import warnings

import torch


class QConfig:
    """The attribute by which torch.ao.quantization is told what to do with a layer, on a layer of ours."""

    def __set__(self, layer: torch.nn.Module, value: object) -> None:
        message = (
            f"torch.ao.quantization knows layers by their exact type and leaves this {type(layer).__name__} of "
            "manualnn as it is: manualnn.revert(model) before the model is prepared"
        )
        if value is not None:
            raise TypeError(message)
        # Set so where another type is asked for: torch.nn.Linear, say.
        warnings.warn(message, stacklevel=2)
        vars(layer)["qconfig"] = value

    def __get__(self, layer: torch.nn.Module | None, cls: type) -> object:
        if layer is None:
            return self
        if "qconfig" not in vars(layer):
            raise AttributeError(f"{cls.__name__!r} object has no attribute 'qconfig'")
        return vars(layer)["qconfig"]

    def __delete__(self, layer: torch.nn.Module) -> None:
        vars(layer).pop("qconfig", None)


def tracing_hint(error: Exception) -> str:
    """What to add to the message of an error that torch.fx raises on a converted model; "" of any other."""
    if type(error).__module__ == "torch.fx.proxy":
        return "; torch.fx cannot trace a hand-written Function: manualnn.revert(model) first"
    return ""
