"""The pictures the user names: which files are meant, what of them is read, and what that leaves out."""

import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from manualnn.training.data import DataError
from manualnn.training.data.errors import together
from manualnn.training.data.folder import Walk, endings
from manualnn.training.data.reading import Reading, left_out
from manualnn.training.text.names import shown


def find(names: Iterable[str]) -> tuple[list[str], Counter[str]]:
    """(picture files, what was passed over and how often): files as they are, folders with all below.

    In a folder a file counts by the ending of its name, and hidden ones do not count; the order is
    that of the names.

    DataError: nothing is there, no file, a folder without a picture, one that cannot be read.
    """
    found: list[str] = []
    passed: Counter[str] = Counter()
    for name in names:
        if not Path(name).is_dir():
            if not Path(name).exists():
                raise DataError(f"there is no picture {shown(name)}")
            if not Path(name).is_file():
                raise DataError(f"{shown(name)} is no file, but a pipe, a socket or a device")
            found.append(name)
            continue
        walk = Walk(name)
        pictures = walk.pictures(name)
        if not pictures:
            raise DataError(f"the folder {shown(name)} holds no picture ({', '.join(endings())})")
        found += pictures
        passed += walk.left_out
    return found, passed


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
        """(B, C, H, W) uint8, in order. DataError: at the end, for all that cannot be used."""
        faults = []
        for start in range(0, len(paths), size):
            levels = []
            for path in paths[start : start + size]:
                try:
                    levels.append(self._levels(path))
                except DataError as fault:
                    faults.append(fault)
            if not faults:
                yield torch.stack(levels)
        if faults:
            raise together(faults)

    def _levels(self, path: str) -> Tensor:
        for what in left_out(path, self.reading.exif):
            if not self.reading.from_files:
                raise DataError(
                    f"the picture {shown(path)} has {what}, which the images of "
                    f"{self.reading.dataset} have not: save it without"
                )
            self.notes.setdefault(what, []).append(path)
        levels = self.reading.levels(path, self.resize)
        return 255 - levels if self.invert else levels

    def print_notes(self) -> None:
        for what, paths in self.notes.items():
            has = (
                f"{len(paths)} pictures, {shown(paths[0])} first, have"
                if paths[1:]
                else f"{shown(paths[0])} has"
            )
            print(f"note: {has} {what}, which is not used, as in training", file=sys.stderr)
