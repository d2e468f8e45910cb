"""A person's own pictures: one folder a class, as torchvision's ImageFolder reads them.

Either `root/class/picture.png`, split here into training, validation and test by a seed, or
`root/train/class/picture.png` with `val` and `test` beside `train` or without them.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from manualnn.training.data.errors import DataError

Pictures = list[tuple[str, int]]  # (path, label)


@dataclass(frozen=True)
class Folder:
    """What lies in the folder. `val` or `test` is None where it has to be split off `train`."""

    class_names: tuple[str, ...]
    train: Pictures
    val: Pictures | None
    test: Pictures | None


def scan(root: Path) -> Folder:
    """Lists the pictures without opening one.

    DataError: no folder, not readable, fewer than two classes, a class without a picture, a class
    in `val` or `test` that `train` lacks, folders beside `train` that are neither.
    """
    names = _subfolders(root)
    if "train" not in names or not _subfolders(root / "train"):
        class_names, train = _classes(root, names)
        return Folder(class_names, train, None, None)
    if strange := sorted(set(names) - {"train", "val", "test"}):
        raise DataError(
            f"{root} holds {', '.join(strange)} beside train; the parts are called train, val, test"
        )
    class_names, train = _classes(root / "train", _subfolders(root / "train"))
    parts: dict[str, Pictures] = {}
    for part in ("val", "test"):
        if part in names:
            parts[part] = _part(root / part, class_names)
    return Folder(class_names, train, parts.get("val"), parts.get("test"))


def _subfolders(root: Path) -> list[str]:
    try:
        entries = [entry.name for entry in os.scandir(root) if entry.is_dir()]
    except FileNotFoundError as fault:
        raise DataError(
            f"the picture folder {root.resolve()} does not exist; point --data.root at a folder "
            "with one subfolder a class"
        ) from fault
    except OSError as fault:
        raise DataError(f"the picture folder {root} cannot be read: {fault.strerror}") from fault
    return sorted(name for name in entries if not name.startswith((".", "__MACOSX")))


def _classes(root: Path, names: list[str]) -> tuple[tuple[str, ...], Pictures]:
    if not names:
        loose = (
            " (pictures directly in it are not read, by predict neither)" if _loose(root) else ""
        )
        raise DataError(
            f"{root} holds no class{loose}: one subfolder a class is needed, two at least"
        )
    if len(names) == 1:
        raise DataError(f"{root} holds one class only ({names[0]}); two at least are needed")
    pictures = _pictures(root, names)
    found = {label for _, label in pictures}
    if empty := [name for label, name in enumerate(names) if label not in found]:
        raise DataError(f"{root / empty[0]} holds no picture ({_known_endings()})")
    return tuple(names), pictures


def _loose(root: Path) -> bool:
    from torchvision.datasets.folder import IMG_EXTENSIONS

    return any(entry.name.lower().endswith(IMG_EXTENSIONS) for entry in os.scandir(root))


def _part(root: Path, class_names: tuple[str, ...]) -> Pictures:
    if unknown := sorted(set(_subfolders(root)) - set(class_names)):
        raise DataError(f"{root / unknown[0]}: no class of that name in {root.parent / 'train'}")
    pictures = _pictures(root, class_names)
    if not pictures:
        raise DataError(f"{root} holds no picture ({_known_endings()})")
    return pictures


def _pictures(root: Path, class_names) -> Pictures:
    from torchvision.datasets.folder import IMG_EXTENSIONS, make_dataset

    labels = {name: label for label, name in enumerate(class_names)}
    return make_dataset(root, labels, extensions=IMG_EXTENSIONS, allow_empty=True)


def _known_endings() -> str:
    from torchvision.datasets.folder import IMG_EXTENSIONS

    return ", ".join(IMG_EXTENSIONS)


def decode(path: str, channels: int, size: tuple[int, int] | None) -> np.ndarray:
    """One picture as uint8 (channels, H, W); with `size`, scaled to cover it and cut to it."""
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as picture:
            # PIL would cut 16-bit and float pixels off at 255, which leaves a white picture.
            deep = picture.mode.startswith("I") or picture.mode == "F"
            if not deep:
                picture = picture.convert("L" if channels == 1 else "RGB")
                if size is not None and picture.size != (size[1], size[0]):
                    picture = ImageOps.fit(picture, (size[1], size[0]), Image.Resampling.BILINEAR)
                pixels = np.array(picture)
    except Exception as fault:  # what a damaged file raises depends on its format
        raise DataError(f"the picture {path} cannot be read: {fault}") from fault
    if deep:
        raise DataError(f"the picture {path} has more than 8 bits a channel; save it with 8")
    return pixels[None] if channels == 1 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def picture_size(path: str) -> tuple[int, int]:
    """(height, width), from the file's header."""
    from PIL import Image

    try:
        with Image.open(path) as picture:
            return picture.height, picture.width
    except Exception as fault:
        raise DataError(f"the picture {path} cannot be read: {fault}") from fault


class PictureBatches(Dataset):
    """Decodes pictures when they are asked for: indices -> (images (B, C, H, W), labels (B,))."""

    def __init__(self, pictures: Pictures, image_shape: tuple[int, int, int], resize: bool):
        self.paths = np.array([path for path, _ in pictures])  # one block: workers share its pages
        self.labels = torch.tensor([label for _, label in pictures], dtype=torch.int64)
        self.image_shape = image_shape
        self.resize = resize

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, index: int) -> Tensor:
        """One picture. DataError names the file that is damaged or has another size."""
        channels, *size = self.image_shape
        path = str(self.paths[index])
        pixels = decode(path, channels, tuple(size) if self.resize else None)
        if pixels.shape != self.image_shape:
            height, width = pixels.shape[1:]
            raise DataError(
                f"the picture {path} is {height} x {width} (height x width) where the first one is "
                f"{size[0]} x {size[1]}; set --data.image_size to bring all to one size"
            )
        return torch.from_numpy(pixels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.image(index), self.labels[index]

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        return torch.stack([self.image(i) for i in indices]), self.labels[indices]

    def decode_all(self) -> tuple[Tensor, Tensor]:
        """Every picture in one tensor, decoded by threads (PIL decodes without Python's lock)."""
        images = torch.empty((len(self), *self.image_shape), dtype=torch.uint8)

        def put(index: int) -> None:
            images[index] = self.image(index)

        with ThreadPoolExecutor(os.cpu_count()) as threads:
            try:
                for _ in threads.map(put, range(len(self))):
                    pass
            except DataError:
                threads.shutdown(cancel_futures=True)
                raise
        return images, self.labels
