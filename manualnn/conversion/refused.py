"""Errors and warnings for tools that a converted model cannot be given to.

torch.ao.quantization looks layers up by their exact type, and would skip ours without a warning.
torch.fx traces a forward pass with proxies, with which a hand-written Function cannot compute.
"""

import warnings

import torch


class QConfig:
    """The attribute `qconfig` of a layer of ours, which tells torch.ao.quantization how to quantize a layer."""

    def __set__(self, layer: torch.nn.Module, value: object) -> None:
        message = (
            f"torch.ao.quantization knows layers by their exact type and leaves this {type(layer).__name__} of "
            "manualnn as it is: manualnn.revert(model) before the model is prepared"
        )
        if value is not None:
            raise TypeError(message)
        # torch sets None on the layers that are not to be quantized, as where only torch.nn.Conv2d is.
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
    """What to add to the message of an error of torch.fx's on a converted model; "" for any other error."""
    if type(error).__module__ == "torch.fx.proxy":
        return "; torch.fx cannot trace a hand-written Function: manualnn.revert(model) first"
    return ""
