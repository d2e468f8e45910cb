"""The pictures a person names: which files are meant, what of them is read, and what that leaves out."""

import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from manualnn.training.data import DataError
from manualnn.training.data.reading import Reading, left_out


def find(names: Iterable[str]) -> tuple[list[str], int]:
    """(picture files, how many files were passed over): files as they are, folders with all below them.

    In a folder a file counts by the ending of its name, and hidden ones do not count at all; the
    order is that of the names.

    DataError: nothing is there, a folder without a picture, one that cannot be read.
    """
    from torchvision.datasets.folder import IMG_EXTENSIONS

    found: list[str] = []
    passed = 0
    for name in names:
        if not Path(name).is_dir():
            if not Path(name).exists():
                raise DataError(f"there is no picture {name}")
            found.append(name)
            continue
        files = list(_below(name))
        pictures = [file for file in files if file.lower().endswith(IMG_EXTENSIONS)]
        if not pictures:
            raise DataError(f"the folder {name} holds no picture ({', '.join(IMG_EXTENSIONS)})")
        found += pictures
        passed += len(files) - len(pictures)
    return found, passed


def _below(folder: str) -> Iterator[str]:
    def refuse(fault: OSError):
        raise DataError(f"the folder {fault.filename} cannot be read: {fault.strerror}") from fault

    seen: set[str] = set()
    for place, folders, files in os.walk(folder, onerror=refuse, followlinks=True):
        real = os.path.realpath(place)
        # A link may lead back up.
        folders[:] = [] if real in seen else sorted(f for f in folders if not f.startswith("."))
        if real not in seen:
            yield from (os.path.join(place, f) for f in sorted(files) if not f.startswith("."))
        seen.add(real)


class Reader:
    """Reads pictures as the training did.

    A dataset such as MNIST has no picture files, so nothing says what became of transparency or of
    an animation: there, what reading would leave out is refused. A folder of pictures was read with
    the same function as here: what that leaves out is left out again, and noted.

    Args:
        resize: Bring pictures of another size to the network's, where the training knew no other.
        invert: Light becomes dark, for dark digits on paper where the training's are light on dark.
    """

    def __init__(self, reading: Reading, resize: bool, invert: bool):
        self.reading, self.resize, self.invert = reading, resize, invert
        self.notes: dict[str, list[str]] = {}  # what was left out -> of which pictures

    def batches(self, paths: list[str], size: int) -> Iterator[Tensor]:
        """(B, C, H, W) uint8, in order."""
        for start in range(0, len(paths), size):
            yield torch.stack([self._levels(path) for path in paths[start : start + size]])

    def _levels(self, path: str) -> Tensor:
        for what in left_out(path):
            if not self.reading.from_files:
                raise DataError(
                    f"the picture {path} has {what}, which the images of {self.reading.dataset} have "
                    "not: save it without"
                )
            self.notes.setdefault(what, []).append(path)
        levels = self.reading.levels(path, self.resize)
        return 255 - levels if self.invert else levels

    def print_notes(self) -> None:
        for what, paths in self.notes.items():
            has = (
                f"{len(paths)} pictures, {paths[0]} first, have" if paths[1:] else f"{paths[0]} has"
            )
            print(f"note: {has} {what}, which is not used, as in training", file=sys.stderr)
