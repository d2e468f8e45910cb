"""Transforms of torchvision's, by their names in torchvision.transforms.v2."""

import copy
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from manualnn.training.data.errors import DataError

MIXING = ("MixUp", "CutMix")  # they take a batch with its labels, the others a picture
TRIALS = 8  # draws of each transform, before the first step


class Augment:
    """Changes training images, each on its own, and mixes them with their labels.

    What a transform draws comes from the global generator, which is seeded for each batch and put back.

    Args:
        wanted: Name or names, or name -> options, in the order in which they are applied. `size` is the
            images' and `num_classes` theirs where a transform asks for it and is given none. Of MixUp and
            CutMix one is drawn for each batch.
        image_shape: (channels, height, width).
        num_classes: Of the labels.

    Raises:
        DataError: there is no such transform, or it does not take these options or these images.
    """

    def __init__(
        self,
        wanted: str | list[str] | dict[str, dict[str, Any] | None],
        image_shape: tuple[int, int, int],
        num_classes: int,
    ):
        names = [wanted] if isinstance(wanted, str) else wanted
        options = wanted if isinstance(wanted, dict) else {}
        known = {"size": list(image_shape[1:]), "num_classes": num_classes}
        made = [(name, _made(name, options.get(name) or {}, known)) for name in names]
        self._mixing = [(name, transform) for name, transform in made if name in MIXING]
        self._single = [(name, transform) for name, transform in made if name not in MIXING]
        self._classes = num_classes
        # Before the first step, with all that is done by chance.
        image = torch.zeros(image_shape, dtype=torch.uint8)
        with seeded(0, torch.device("cpu")):
            for name, transform in self._single:
                certain = _certain(transform)
                for _ in range(TRIALS):
                    self._changed(name, certain, image)
            images, labels = torch.stack([image, image]).float(), torch.tensor([0, num_classes - 1])
            for name, transform in self._mixing:
                self._mixed(name, transform, images, labels)

    def _changed(self, name: str, transform: Any, image: Tensor) -> Tensor:
        try:
            made = transform(image)
        except Exception as fault:  # what a transform raises is its author's choice
            raise DataError(f"augment: {name} fails on these images: {_line(fault)}") from fault
        if not isinstance(made, Tensor) or (made.shape, made.dtype) != (image.shape, image.dtype):
            what = f"{tuple(made.shape)} {made.dtype}" if isinstance(made, Tensor) else type(made)
            raise DataError(
                f"augment: {name} makes {what} of an image {tuple(image.shape)} torch.uint8; it must "
                "keep both"
            )
        return made

    def _mixed(
        self, name: str, transform: Any, images: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor]:
        try:
            mixed, shares = transform(images, labels)
        except Exception as fault:
            raise DataError(f"augment: {name} fails on these images: {_line(fault)}") from fault
        if mixed.shape != images.shape or shares.shape != (len(labels), self._classes):
            raise DataError(
                f"augment: {name} makes labels {tuple(shares.shape)} of {len(labels)} images; needed is a "
                f"share of each of the {self._classes} classes"
            )
        return mixed, shares

    def change(self, images: Tensor, seed: int) -> Tensor:
        """images (B, C, H, W) uint8, each changed on its own."""
        if not self._single:
            return images
        with seeded(seed, images.device):
            changed = []
            for image in images:
                for name, transform in self._single:
                    image = self._changed(name, transform, image)
                changed.append(image)
        return torch.stack(changed)

    def mix(self, images: Tensor, labels: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        """images (B, C, H, W) floats, labels (B,) -> mixed, with labels (B, classes): each class's share."""
        if not self._mixing:
            return images, labels
        with seeded(seed, images.device):
            which = int(torch.randint(len(self._mixing), ()))
            return self._mixed(*self._mixing[which], images, labels)


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Within, the global generators start from `seed`; outside they go on as if nothing had been drawn."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield


def _made(name: str, options: dict[str, Any], known: dict[str, Any]) -> Any:
    from torchvision.transforms import v2

    kind = getattr(v2, name, None) if isinstance(name, str) else None
    if not (isinstance(kind, type) and issubclass(kind, v2.Transform)):
        raise DataError(
            f"augment: torchvision.transforms.v2 has no transform {name!r}; such as RandAugment, "
            "RandomResizedCrop, ColorJitter, RandomErasing, MixUp, CutMix"
        )
    asked = inspect.signature(kind).parameters
    needed = {
        key: value
        for key, value in known.items()
        if key in asked and (key == "num_classes" or asked[key].default is inspect.Parameter.empty)
    }
    try:
        return kind(**{**needed, **options})
    except Exception as fault:  # what a transform raises is its author's choice
        raise DataError(f"augment: {name} takes other options: {_line(fault)}") from fault


def _certain(transform: Any) -> Any:
    """A copy that leaves nothing undone by chance."""
    certain = copy.deepcopy(transform)
    for module in certain.modules():
        if isinstance(p := getattr(module, "p", None), float) and p > 0:
            module.p = 1.0
    return certain


def _line(fault: Exception) -> str:
    return " ".join(str(fault).split()) or type(fault).__name__
