"""Transfer learning: a network with weights that others have trained, another head, parts that stay.

The head and the first layer are changed by hand: torchvision changes neither a network's number of classes nor
of channels when it has weights for it, and what does (timm, fastai) brings networks of its own.
"""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from jsonargparse import ArgumentParser, Namespace
from torch import nn

from manualnn.training.errors import TrainingError

BACKBONE = "backbone"


def weights_of(config: Namespace) -> Any:
    """torchvision's weights that the configured network is asked to start with, or None."""
    network = config.model.get("network")
    arguments = network.get("init_args") if isinstance(network, Namespace) else None
    weights = (arguments or {}).get("weights")
    return weights if hasattr(weights, "get_state_dict") else None


def builds(network: Namespace | None) -> bool:
    """Whether the configured network is one of torchvision's classifiers, by the function that builds it."""
    from torchvision import models

    path = network.class_path if isinstance(network, Namespace) else ""
    module, _, name = path.rpartition(".")
    return module == "torchvision.models" and name in models.list_models(module=models)


def leave_out_defaults(network: Namespace) -> None:
    """Takes out what no one has said: the parser spells out the defaults of the class behind a builder's
    **kwargs, and builders refuse some of them, or do something else without them."""
    if not builds(network):
        return
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--network", type=nn.Module)
    spelled = parser.parse_args(["--network", network.class_path]).network.get("init_args")
    for name, value in (spelled or Namespace()).as_dict().items():
        if network.init_args.as_dict().get(name) == value:
            del network.init_args[name]


def fit_size(config: Namespace) -> None:
    """The pictures of a folder get the size that the weights were trained with, unless another is asked for."""
    if config.data.dataset == "ImageFolder" and config.data.image_size is None:
        config.data.image_size = weights_of(config).transforms().crop_size[0]


def fit_to_weights(config: Namespace, channels: int) -> None:
    """The network has the scores that its weights are for, and a head of its own then; images get the scale
    that the weights were trained with, unless another is asked for."""
    weights = weights_of(config)
    arguments = config.model.network.init_args
    if "num_classes" in arguments:
        arguments.num_classes = len(weights.meta["categories"])
    config.model.replace_head = True
    if config.data.normalize == "auto":
        trained_on = weights.transforms()
        scale = [trained_on.mean, trained_on.std]
        # One channel stands for all three.
        config.data.normalize = [[sum(x) / len(x)] if channels == 1 else list(x) for x in scale]


@contextmanager
def unfilled() -> Iterator[None]:
    """Within, torchvision's networks are made without fetching weights: a checkpoint's come in their place."""
    from torchvision.models import WeightsEnum

    with (
        patch.object(WeightsEnum, "get_state_dict", lambda *args, **options: {}),
        patch.object(nn.Module, "load_state_dict", lambda *args, **options: None),
    ):
        yield


@contextmanager
def weights_fetched(weights: Any) -> Iterator[None]:
    """Within, weights may be fetched; that they cannot be is said in one line."""
    from manualnn.training.data.catalogue import network_timeout

    try:
        with network_timeout():
            yield
    except Exception as error:  # of urllib, of the disk, of a file that is not what its name says
        causes = _with_causes(error)
        reason = causes[-1]
        frames = [f for cause in causes for f, _ in traceback.walk_tb(cause.__traceback__)]
        fetching = {"get_state_dict", "load_state_dict"} & {f.f_code.co_name for f in frames}
        if not fetching or not isinstance(reason, (OSError, RuntimeError)):
            raise  # of the network that is built
        folder = Path(torch.hub.get_dir(), "checkpoints")
        raise TrainingError(
            f"the weights {weights} cannot be fetched: {reason}. Where there is no network, put {weights.url} "
            f"into {folder}"
        ) from error


def _with_causes(error: BaseException) -> list[BaseException]:
    causes = [error]
    while (cause := causes[-1].__cause__) is not None and cause not in causes:  # it may be its own
        causes.append(cause)
    return causes


def head_of(network: nn.Module) -> str:
    """The name of the last layer with weights, which gives the scores."""
    kinds = nn.Linear, nn.Conv2d
    found = [name for name, module in network.named_modules() if isinstance(module, kinds)]
    if not found:
        raise TrainingError(
            f"{type(network).__name__} has no linear layer or convolution that could be its head"
        )
    return found[-1]


def replace_head(network: nn.Module, num_classes: int) -> str:
    """Puts a new layer in place of a head of other scores; what was done, in words, or ""."""
    name = head_of(network)
    old = network.get_submodule(name)
    bias = old.bias is not None
    if isinstance(old, nn.Linear):
        before, new = old.out_features, nn.Linear(old.in_features, num_classes, bias)
    else:
        before = old.out_channels
        new = _convolution(old, old.in_channels, num_classes)
    if before == num_classes:
        return ""
    network.set_submodule(name, new)
    return f"the head {name} is new: {num_classes} scores in place of {before}"


def take_channels(network: nn.Module, channels: int) -> str:
    """A first convolution of colours takes grey images: it gives what it gave for three equal channels.

    Returns what was done, in words, or "".
    """
    layers = ((n, m) for n, m in network.named_modules() if isinstance(m, nn.Conv2d))
    name, old = next(layers, ("", None))
    if old is None or channels != 1 or old.in_channels != 3 or old.groups != 1:
        return ""
    new = _convolution(old, 1, old.out_channels)
    with torch.no_grad():
        new.weight.copy_(old.weight.sum(1, keepdim=True))
        if old.bias is not None:
            new.bias.copy_(old.bias)
    network.set_submodule(name, new)
    return f"the first layer {name} takes one channel, its weights for three are added up"


def _convolution(like: nn.Conv2d, channels: int, out: int) -> nn.Conv2d:
    size = like.kernel_size, like.stride, like.padding, like.dilation
    options = {"bias": like.bias is not None, "padding_mode": like.padding_mode}
    return nn.Conv2d(channels, out, *size, **options)


def freeze(network: nn.Module, parts: str | list[str | int]) -> list[nn.Module]:
    """Lets the named parts, or all but the head, learn no more. Returns them: they stay in evaluation mode.

    Raises:
        TrainingError: there is no such part, or nothing is left that learns.
    """
    modules = dict(network.named_modules())
    # A Sequential calls its parts 0, 1, ...
    named = [parts] if isinstance(parts, str) else [str(part) for part in parts]
    if named == [BACKBONE]:
        head = head_of(network)
        learns = {id(p) for p in modules[head].parameters()}
        frozen = [p for p in network.parameters() if id(p) not in learns]
        # What holds the head goes on; its other parts do not.
        named = [name for name in modules if name and not f"{head}.".startswith(f"{name}.")]
    elif unknown := [name for name in named if not name or name not in modules]:
        known = ", ".join(name for name, _ in network.named_children())
        raise TrainingError(
            f"freeze: the network has no part {unknown[0]!r}; it has {known}, and what is in them "
            f"({next(reversed(modules))}); {BACKBONE} is all but the head"
        )
    else:
        frozen = [p for name in named for p in modules[name].parameters()]
        if empty := [name for name in named if not any(True for _ in modules[name].parameters())]:
            kind = type(modules[empty[0]]).__name__
            raise TrainingError(f"freeze: the part {empty[0]}, a {kind}, has nothing that learns")
    for parameter in frozen:
        parameter.requires_grad_(False)
    if not any(p.requires_grad for p in network.parameters()):
        raise TrainingError("freeze leaves nothing that learns")
    return [modules[name] for name in named]
