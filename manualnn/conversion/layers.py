"""Swap the layers of a model for ours, in place, and back.

A class of ours differs from its torch.nn twin in nothing but `forward`, so changing the class of a
layer is the whole conversion: its parameters, buffers, hooks and attributes stay where they are.
"""

import sys
from typing import TypeVar

import torch
from torch.nn.utils import parametrize

from manualnn import nn
from manualnn.autograd.activation import Activation
from manualnn.autograd.module_of import REPLACED
from manualnn.conversion.model import is_sparing, plain, sparing
from manualnn.conversion.refused import QConfig

Model = TypeVar("Model", bound=torch.nn.Module)


def _classes_of_ours() -> dict[str, type[torch.nn.Module]]:
    """The module classes that `manualnn.nn` defines, without those it passes on from torch.nn."""
    return {
        name: cls
        for name, cls in vars(nn).items()
        if isinstance(cls, type)
        and issubclass(cls, torch.nn.Module)
        and cls is not getattr(torch.nn, name, None)
        and cls.__module__.split(".")[0] == "manualnn"
    }


def _torch_base(cls: type) -> type:
    """The torch.nn class that `cls` is made from: Linear's is torch.nn.Linear, MLP's Sequential."""
    return next(base for base in cls.__mro__ if base.__module__.split(".")[0] == "torch")


_OURS = _classes_of_ours()
for _cls in _OURS.values():
    _cls.qconfig = QConfig()
_TO_OURS = {
    getattr(torch.nn, name): cls
    for name, cls in _OURS.items()
    if hasattr(torch.nn, name) and issubclass(cls, getattr(torch.nn, name))
}
# A class made straight from torch.nn.Module has no torch.nn layer to go back to.
_TO_TORCH = {
    cls: _torch_base(cls) for cls in _OURS.values() if _torch_base(cls) is not torch.nn.Module
}

# What these compute is copying and renaming; only exact types count, as for the layers.
_NO_ARITHMETIC = {
    torch.nn.Sequential,
    torch.nn.ModuleList,
    torch.nn.ModuleDict,
    torch.nn.ParameterList,
    torch.nn.ParameterDict,
    torch.nn.Flatten,
    torch.nn.Unflatten,
    torch.nn.Identity,
    torch.nn.PixelShuffle,
    torch.nn.PixelUnshuffle,
    torch.nn.ChannelShuffle,
}


def convert(
    model: Model, strict: bool = False, keep: str = "less", verify: bool | str = True
) -> Model:
    """Turn every supported layer and loss of `model` into ours, in place; and let it keep less.

    A layer is converted if its class is exactly one that `manualnn.nn` has a subclass of, or one that a
    `manualnn.Activation` says it replaces. Left as they are: a user's own subclass, a lazy layer that has
    not seen its first input, and a layer whose `forward` was replaced on the instance.
    Parameters stay the same objects, so an optimizer made before goes on working; so do shared
    layers, tied weights, hooks and parametrizations. Converting again changes nothing.

    With `keep="less"` a call of the model (of `model`, not of a part of it) is recorded: torch's functions
    that it calls (F.relu, a residual sum, a concatenation) become ours too, and between two matrix products,
    convolutions or attentions only one tensor is saved for backward. What lies between, norms, activations,
    dropout, sums, is recomputed in backward from what is saved, once, by the same kernels: gradients stay as
    they are with `keep="all"`, to the last bit. Where how a tensor was computed is in doubt, because it was
    changed in place or made by something unknown, the tensor itself is saved.

    And it is verified: of a tensor that is let go a fingerprint stays, the bits of 24 of its elements, and
    what is recomputed in its place must have the same before anyone uses it, else
    `manualnn.RecomputationError` names the layer. On a GPU that error comes at the end of `backward`.

    Under torch.compile, torch.export and torch.func, in forward-mode differentiation, under a function or
    dispatch mode of others, and inside others' hooks for saved tensors (a checkpoint's, an offloader's) a model
    computes as with `keep="all"`; so do compiled parts of it, and what user code saves itself.

    Code that compares types (`type(m) is torch.nn.Linear`) no longer recognises a converted layer, nor a
    recorded model; `isinstance` does. `torch.jit.script` and `torch.fx.symbolic_trace` cannot read a
    hand-written Function, and `torch.ao.quantization` does not know its layers: revert before.

    Args:
        model: any module; a single layer or loss too.
        strict: refuse a model that does not become ours as a whole.
        keep: "less", or "all" that the layers' own backward passes ask for: a little faster, and, for
            networks of norms and activations, about twice the memory.
        verify: True compares 24 elements of each tensor that is recomputed; "full" a checksum of all, for
            tests and doubters; False nothing, and what is changed unseen is a silently wrong number.

    Returns:
        `model` itself.

    Raises:
        TypeError: `model` is not a torch.nn.Module.
        ValueError: `keep` or `verify` is none of these; or `strict`, and some layer cannot be converted
            that has parameters of its own, or that has no layers inside and is not known to do no
            arithmetic. It names each of them; nothing has been changed.

    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU())
    >>> weight = model[0].weight
    >>> y = convert(model)(torch.ones(1, 4))
    >>> y.grad_fn.name()
    'ReLUBackward'
    >>> type(model[0]) is nn.Linear and model[0].weight is weight
    True
    """
    _check_is_module(model, "convert")
    if keep not in ("less", "all"):
        raise ValueError(f'keep must be "less" or "all", not {keep!r}')
    if not (verify is True or verify is False or verify == "full"):
        raise ValueError(f'verify must be True, False or "full", not {verify!r}')
    if strict:
        _check_all_convertible(model)
    _swap(model, _replacements())
    watched = _inside_wrappers(model)
    watched.__class__ = plain(type(watched))
    if keep == "less" and _is_watchable(watched):
        watched.__class__ = sparing(type(watched), verify)
    return model


def revert(model: Model) -> Model:
    """Turn every layer of ours in `model` back into torch.nn's, in place.

    Undoes `convert`; layers that were written as ours are turned too, an `MLP` into the
    `torch.nn.Sequential` of its layers. A user's subclass of a layer of ours is left as it is.

    Args:
        model: any module; a single layer or loss too.

    Returns:
        `model` itself, with the same Parameter objects.

    Raises:
        TypeError: `model` is not a torch.nn.Module.

    >>> revert(nn.MLP([4, 3, 2]))
    Sequential(
      (0): Linear(in_features=4, out_features=3, bias=True)
      (1): ReLU()
      (2): Linear(in_features=3, out_features=2, bias=True)
    )
    """
    _check_is_module(model, "revert")
    for module in model.modules():
        if is_sparing(type(module)):
            module.__class__ = plain(type(module))
    back = {ours: theirs for theirs, ours in (REPLACED | _of_torchvision()).items()}
    return _swap(model, _TO_TORCH | back)


def _replacements() -> dict[type, type]:
    """Every class that has one of ours to take its place, a person's own among them."""
    return _TO_OURS | _of_torchvision() | REPLACED


def _of_torchvision() -> dict[type, type]:
    """torchvision's layers, if it is loaded: we do not load it."""
    ops = sys.modules.get("torchvision.ops")
    return {} if ops is None else {ops.StochasticDepth: nn.StochasticDepth}


def _check_is_module(model: object, caller: str) -> None:
    if not isinstance(model, torch.nn.Module):
        got = f"the class {model.__name__}" if isinstance(model, type) else type(model).__name__
        raise TypeError(f"{caller}() takes a torch.nn.Module, not {got}")


def _swap(model: Model, twins: dict[type, type]) -> Model:
    """Give every layer of `model` whose class is a key of `twins` the class that stands there."""
    for module in model.modules():
        if _is_swappable(module, twins):
            twin = twins[_plain_type(module)]
            module.__class__ = _parametrized(twin, module) if _is_parametrized(module) else twin
    return model


def _inside_wrappers(model: torch.nn.Module) -> torch.nn.Module:
    """The model that a parallel wrapper calls, in threads of its own or after work of its own."""
    wrappers = (torch.nn.DataParallel, torch.nn.parallel.DistributedDataParallel)
    return _inside_wrappers(model.module) if isinstance(model, wrappers) else model


def _is_watchable(model: torch.nn.Module) -> bool:
    """A model with layers inside, whose own class may be changed: not compiled, scripted or parametrized."""
    cls = type(model)
    return (
        any(True for _ in model.children())
        and cls not in _OURS.values()
        and "forward" not in vars(model)
        and not _is_parametrized(model)
        and not isinstance(model, torch.jit.ScriptModule)
        and not cls.__module__.startswith("torch._dynamo")
    )


def _is_swappable(module: torch.nn.Module, twins: dict[type, type]) -> bool:
    # A forward set on the instance hides the class's: what it computes is not ours to change.
    return _plain_type(module) in twins and "forward" not in vars(module)


def _is_parametrized(module: torch.nn.Module) -> bool:
    """Whether torch has put a `Parametrized...` class between this module and its own class.

    Asked of the class: `parametrize.is_parametrized` asks the instance, and a wrapper that passes
    attributes on (torch.compile's) answers for the module inside.
    """
    cls = type(module)
    return (
        cls.__module__ == parametrize.__name__
        and cls.__name__ == f"Parametrized{cls.__base__.__name__}"
    )


def _plain_type(module: torch.nn.Module) -> type:
    # type() and not __class__, which a class may define as a property of its own.
    cls = plain(type(module))
    return cls.__base__ if _is_parametrized(module) else cls


def _parametrized(twin: type, module: torch.nn.Module) -> type:
    """The `Parametrized...` class of `module` once more, over `twin`.

    A new class for each module, as torch makes them: it holds one property a parametrized tensor,
    which `remove_parametrizations` deletes from it. Deep copies share theirs, and those outside the
    model must stay as they are, so the class at hand cannot be changed instead.
    """
    return type(f"Parametrized{twin.__name__}", (twin,), dict(vars(type(module))))


def _check_all_convertible(model: torch.nn.Module) -> None:
    stuck = [
        f"  {name or '(the model itself)'}: {_describe(module)}"
        for name, module in model.named_modules()
        if _stays_foreign(module)
    ]
    if stuck:
        raise ValueError(
            f"cannot convert the whole model, {len(stuck)} of its layers would stay as they are:\n"
            + "\n".join(stuck)
        )


def _stays_foreign(module: torch.nn.Module) -> bool:
    """Whether arithmetic that is not ours would remain in `module` itself after `convert`."""
    cls = _plain_type(module)
    if _is_swappable(module, _replacements()) or _has_our_forward(module):
        return False
    # They only hold the tensors of the layer above them; parametrizations in the first are seen next.
    if cls in (
        parametrize.ParametrizationList,
        torch.nn.modules.linear.NonDynamicallyQuantizableLinear,
    ):
        return False
    if _is_parametrized(module) or any(True for _ in module.parameters(recurse=False)):
        return True
    is_leaf = next(module.children(), None) is None
    return is_leaf and cls not in _NO_ARITHMETIC


def _has_our_forward(module: torch.nn.Module) -> bool:
    """Ours, or a user's subclass of ours that keeps `forward`."""
    cls = type(module)
    if "forward" in vars(module):
        return False
    if getattr(cls, "activation", None) is not None and issubclass(cls.activation, Activation):
        return cls.forward is cls.activation.Module.forward
    return any(base in _OURS.values() and cls.forward is base.forward for base in cls.__mro__)


def _describe(module: torch.nn.Module) -> str:
    cls = _plain_type(module)
    name = cls.__qualname__
    place = "torch.nn" if getattr(torch.nn, name, None) is cls else cls.__module__
    note = ", whose forward was replaced" if cls in _TO_OURS or cls in _TO_TORCH else ""
    return f"{place}.{name}{note}"
