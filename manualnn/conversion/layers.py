"""Swap the layers of a model for ours, in place, and back.

A class of ours differs from its torch.nn twin only in `forward`, so changing the class of a layer is the
whole conversion: its parameters, buffers, hooks and attributes stay where they are.
"""

import sys
from typing import Any, TypeVar

import torch
from torch.nn.utils import parametrize

from manualnn import nn
from manualnn.autograd.activation import Activation
from manualnn.autograd.module_of import REPLACED
from manualnn.conversion.model import is_memory_saving, memory_saving, original_class
from manualnn.conversion.refused import QConfig
from manualnn.memory.allocator import keep_freed_memory

Model = TypeVar("Model", bound=torch.nn.Module)


def _classes_of_ours() -> dict[str, type[torch.nn.Module]]:
    """The module classes that `manualnn.nn` defines itself, by name."""
    return {
        name: cls
        for name, cls in vars(nn).items()
        if isinstance(cls, type)
        and issubclass(cls, torch.nn.Module)
        and cls is not getattr(torch.nn, name, None)
        and cls.__module__.split(".")[0] == "manualnn"
    }


def _torch_base(cls: type) -> type:
    """The torch.nn class that `cls` derives from: torch.nn.Linear of Linear, torch.nn.Sequential of MLP."""
    return next(base for base in cls.__mro__ if base.__module__.split(".")[0] == "torch")


_OURS = _classes_of_ours()
_cls: Any
for _cls in _OURS.values():
    _cls.qconfig = QConfig()
_TO_OURS = {
    getattr(torch.nn, name): cls
    for name, cls in _OURS.items()
    if hasattr(torch.nn, name) and issubclass(cls, getattr(torch.nn, name))
}
# A class that derives from torch.nn.Module alone has no torch.nn layer to turn back into.
_TO_TORCH = {
    cls: _torch_base(cls) for cls in _OURS.values() if _torch_base(cls) is not torch.nn.Module
}

# These only copy and rename. Only exact types count, as for the layers.
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
    """Turn every supported layer and loss of `model` into ours, in place; and let it save less for backward.

    Outputs and gradients are bit-identical to those of the layers alone (`keep="all"`); undo with `revert`.

    A layer is converted if its class is exactly one that `manualnn.nn` has a subclass of, or one that a
    `manualnn.Activation` says it replaces. Left as they are: a user's own subclass, a lazy layer that has
    not seen its first input, and a layer whose `forward` was replaced on the instance.
    Parameters stay the same objects, so an optimizer made before goes on working; so do shared
    layers, tied weights, hooks and parametrizations. Converting twice changes nothing.

    With `keep="less"` a call of the model (of `model`, not of a part of it) is recorded: torch's functions
    that it calls (F.relu, a residual sum, a concatenation) become ours too, and between two matrix products,
    convolutions or attentions only one tensor is saved for backward. Backward recomputes what lies between
    (norms, activations, dropout, sums) from what is saved, once, by the same kernels. A tensor that was
    changed in place, or computed by something unknown, has no recipe: it is saved itself. So is one of 128 KiB
    or less.

    Recomputed tensors are verified. A fingerprint of each dropped tensor is saved, the bits of 24 of its
    elements. The recomputed tensor must have the same before anything uses it, else
    `manualnn.RecomputationError` names the layer. On a GPU that error comes at the end of `backward`.

    Then glibc keeps the memory that this process frees, for the next step, unless the environment sets
    `MALLOC_TRIM_THRESHOLD_` or the like: to give it back and to ask for it anew took up to a tenth of a step.

    Under torch.compile, torch.export and torch.func, in forward-mode differentiation, under a function or
    dispatch mode of other code, and inside its hooks for saved tensors (a checkpoint's, an offloader's) a
    model computes as with `keep="all"`; so do compiled parts of it, and what user code saves itself.

    Code that compares types (`type(m) is torch.nn.Linear`) no longer recognises a converted layer, nor a
    recorded model; `isinstance` does. `torch.jit.script` and `torch.fx.symbolic_trace` cannot read a
    hand-written Function, and `torch.ao.quantization` does not know its layers: revert before.

    Args:
        model: any module; a single layer or loss too.
        strict: refuse a model that does not become ours as a whole.
        keep: "less"; or "all", which saves whatever the layers' backward passes need: a little faster, and,
            for networks of norms and activations, about twice the memory.
        verify: True compares 24 elements of each recomputed tensor; "full" compares a checksum of all, for
            tests and doubters; False compares nothing, and an unnoticed change gives wrong gradients.

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
    called: Any = _inside_wrappers(model)
    called.__class__ = original_class(type(called))
    if keep == "less" and _is_recordable(called):
        cls: Any = type(called)
        called.__class__ = memory_saving(cls, verify)
        keep_freed_memory()
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
        if is_memory_saving(type(module)):
            module.__class__ = original_class(type(module))
    back = {ours: theirs for theirs, ours in (REPLACED | _of_torchvision()).items()}
    return _swap(model, _TO_TORCH | back)


def _replacements() -> dict[type, type]:
    """Each class that is replaced, and the class of ours that replaces it; the user's own among them."""
    return _TO_OURS | _of_torchvision() | REPLACED


def _of_torchvision() -> dict[type, type]:
    """torchvision's layers, if the user has imported it: to import it here would take time."""
    ops = sys.modules.get("torchvision.ops")
    return {} if ops is None else {ops.StochasticDepth: nn.StochasticDepth}


def _check_is_module(model: object, caller: str) -> None:
    if not isinstance(model, torch.nn.Module):
        got = f"the class {model.__name__}" if isinstance(model, type) else type(model).__name__
        raise TypeError(f"{caller}() takes a torch.nn.Module, not {got}")


def _swap(model: Model, twins: dict[type, type]) -> Model:
    """Give every layer of `model` whose class is a key of `twins` the class that is its value."""
    for module in model.modules():
        if _is_swappable(module, twins):
            twin = twins[_plain_type(module)]
            module.__class__ = _parametrized(twin, module) if _is_parametrized(module) else twin
    return model


def _inside_wrappers(model: torch.nn.Module) -> torch.nn.Module:
    """The model inside a parallel wrapper, which calls it, in its own threads or after other work."""
    wrappers = (torch.nn.DataParallel, torch.nn.parallel.DistributedDataParallel)
    return _inside_wrappers(model.module) if isinstance(model, wrappers) else model


def _is_recordable(model: torch.nn.Module) -> bool:
    """Whether `model` has layers and may be given a class: it is not compiled, scripted or parametrized."""
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
    # A forward that is set on the instance hides the class's, and is the user's.
    return _plain_type(module) in twins and "forward" not in vars(module)


def _is_parametrized(module: torch.nn.Module) -> bool:
    """Whether torch has put a `Parametrized...` class between this module and its own class.

    Asked of the class: `parametrize.is_parametrized` asks the instance, and a wrapper that passes
    attributes on (torch.compile's) answers for the module inside.
    """
    cls: Any = type(module)
    return (
        cls.__module__ == parametrize.__name__
        and cls.__name__ == f"Parametrized{cls.__base__.__name__}"
    )


def _plain_type(module: torch.nn.Module) -> type:
    # type() and not __class__, which a class may define as a property of its own.
    cls: Any = original_class(type(module))
    return cls.__base__ if _is_parametrized(module) else cls


def _parametrized(twin: type, module: torch.nn.Module) -> type:
    """A copy of the `Parametrized...` class of `module` that derives from `twin`.

    A new class for each module, as torch makes them: it has one property for each parametrized tensor,
    which `remove_parametrizations` deletes. The present class cannot be changed instead: deep copies
    share it, and those outside the model must stay as they are.
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
    # They only contain tensors of the layer above them. Parametrizations in the first are modules of their own.
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
    """Whether `module` is ours, or a user's subclass of ours with the same `forward`."""
    cls: Any = type(module)
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
