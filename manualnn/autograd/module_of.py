"""The module of an activation that a person wrote: its options are the arguments, or its parameters."""

from typing import Any

import torch
from torch import Tensor

# A module class of a person's own -> the class that convert puts in its place.
REPLACED: dict[type, type] = {}


def module_of(activation: Any) -> type[torch.nn.Module]:
    """A torch.nn.Module class whose forward applies the Activation ``activation``.

    A subclass of ``activation.replaces``, if that is stated: same constructor, and the options are read
    from the attributes of their names. Otherwise its constructor takes the options, with g's defaults,
    and ``inplace``; for learned ones ``channels=n`` gives each of n channels (dimension 1) its own.
    """
    names = [p.name for p in activation.options()]

    def forward(self, input):
        options = [_along_channels(getattr(self, name), input) for name in names]
        inplace = getattr(self, "inplace", False)
        return (activation.apply_ if inplace else activation.apply)(input, *options)

    namespace: dict[str, Any] = {
        "__module__": activation.__module__,
        "__qualname__": f"{activation.__qualname__}.Module",
        "__doc__": activation.__doc__,
        "activation": activation,
        "forward": forward,
    }
    base = activation.replaces
    if base is not None:
        made = type(base.__name__, (base,), namespace)
        REPLACED[base] = made
        return made

    def __init__(self, *options, channels=None, inplace=False, device=None, dtype=None, **named):
        torch.nn.Module.__init__(self)
        unknown = [name for name in named if name not in names]
        if unknown or len(options) > len(names):
            raise TypeError(
                f"{activation.__name__} takes the options {names}, not {unknown or list(options)}"
            )
        values = {p.name: p.default for p in activation.options() if p.default is not p.empty}
        values |= activation.learned | dict(zip(names, options, strict=False)) | named
        missing = [name for name in names if name not in values]
        if missing:
            raise TypeError(f"{activation.__name__} needs a value for {', '.join(missing)}")
        if channels is not None and not activation.learned:
            raise TypeError(f"{activation.__name__} learns nothing: channels has no meaning")
        for name in names:
            value = values[name]
            if name in activation.learned:
                shape = () if channels is None else (channels,)
                value = torch.full(shape, float(value), device=device, dtype=dtype)
                value = torch.nn.Parameter(value)
            setattr(self, name, value)
        self.inplace = inplace

    def extra_repr(self):
        shown = [
            f"{name}={getattr(self, name)}" for name in names if name not in activation.learned
        ]
        shown += [f"{name}: {tuple(getattr(self, name).shape)}" for name in activation.learned]
        return ", ".join(shown + ["inplace=True"] * self.inplace)

    namespace |= {"__init__": __init__, "extra_repr": extra_repr}
    namespace["_get_name"] = lambda self: activation.__name__
    return type(activation.__name__, (torch.nn.Module,), namespace)


def _along_channels(option: Any, input: Tensor) -> Any:
    """A learned option (n) laid along dimension 1 of the input; anything else as it is."""
    if isinstance(option, torch.Tensor) and option.dim() == 1 and input.dim() >= 2:
        return option.view(-1, *(1 for _ in input.shape[2:]))
    return option
