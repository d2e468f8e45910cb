"""How a picture becomes what a network was trained on; a checkpoint keeps it with the weights."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from manualnn.training.data.batches import scaled
from manualnn.training.data.errors import DataError
from manualnn.training.data.folder import endings
from manualnn.training.text.names import shown

# How Pillow calls what it reads of 16 bits as 8; "BGR;16" has 16 bits for all three colours.
_SIXTEEN_BITS = re.compile(r"'(?:RGB|LA|CMYK)[AaXx]*;16[BLN]")


MALFORMED = "what the checkpoint says of how pictures are read is malformed"


@dataclass(frozen=True)
class Reading:
    """What the training made of a picture: its shape, its colours, its scale.

    Args:
        dataset: The dataset's name.
        class_names: One for each score, in the scores' order.
        image_shape: (channels, height, width).
        resized: Pictures of any size were scaled to cover the shape and cut to it.
        factor, offset: (C, 1, 1) float32; levels 0 ... 255 times factor plus offset is what the
            network was given.
    """

    dataset: str
    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]
    resized: bool
    factor: Tensor
    offset: Tensor
    exif: bool = False  # of a run of an older version, too

    def state(self) -> dict:
        """What a checkpoint keeps: text, numbers and tensors, which torch.load takes for harmless."""
        fields = {**asdict(self), "class_names": list(self.class_names)}
        return {**fields, "factor": self.factor.cpu().clone(), "offset": self.offset.cpu().clone()}

    @classmethod
    def of_state(cls, state: dict) -> "Reading":
        """DataError: it is not what `state` has made."""
        try:
            state = {**state, "class_names": tuple(state["class_names"])}
            made = cls(**{**state, "image_shape": tuple(state["image_shape"])})
            channels, height, width = made.image_shape
            scales = [part.shape == (channels, 1, 1) for part in (made.factor, made.offset)]
            sound = all(scales) and min(channels, height, width) > 0
            sound = sound and all(isinstance(name, str) for name in made.class_names)
        except (TypeError, ValueError, KeyError, AttributeError) as fault:
            raise DataError(f"{MALFORMED}: {fault}") from fault
        if not sound:
            raise DataError(MALFORMED)
        return made

    @property
    def from_files(self) -> bool:
        """Whether the training's images were picture files too, or came from a dataset's own."""
        return self.dataset == "ImageFolder"

    def levels(self, path: str | Path, resize: bool = False) -> Tensor:
        """One picture as the training would have read it: (C, H, W) uint8.

        Args:
            path: A picture of one of the `formats`.
            resize: Bring it to the shape, as `resized` does.

        Raises:
            DataError: it cannot be read, has more than 8 bits a channel, or another size.
        """
        channels, *size = self.image_shape
        fit = self.resized or resize
        pixels = decode(str(path), channels, tuple(size) if fit else None, self.exif)
        if pixels.shape != self.image_shape:
            height, width = pixels.shape[1:]
            raise DataError(
                f"the picture {shown(path)} is {height} x {width} (height x width); the network was trained "
                f"on {size[0]} x {size[1]} ({self.dataset}). --resize scales and cuts it"
            )
        return torch.from_numpy(pixels)

    def scale(self, levels: Tensor) -> Tensor:
        """(B, C, H, W) uint8 -> float32, as in training."""
        return scaled(levels, self.factor.to(levels.device), self.offset.to(levels.device))

    @property
    def mean_and_std(self) -> tuple[list[float], list[float]]:
        """What is subtracted from pixels in 0 ... 1, and what they are then divided by; (C,) each."""
        std = 1 / (255 * self.factor.double().flatten())
        # Adding 0 turns the -0.0 of no offset into 0.0.
        return (-self.offset.double().flatten() * std + 0.0).tolist(), std.tolist()


@cache
def formats() -> tuple[str, ...]:
    """Pillow's names for what has the endings that are read.

    A file is what its content says. Of the other formats one starts Ghostscript: a PostScript file
    that is called a.png would run as a program.
    """
    from PIL import Image

    known = Image.registered_extensions()
    return tuple(sorted({known[ending] for ending in endings() if ending in known}))


@contextmanager
def opened(path: str | Path) -> Iterator:
    """The picture, as Pillow opens it. DataError: it cannot be read, here or in what is done to it."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path, formats=formats()) as picture:
            yield picture
    except DataError:
        raise
    except UnidentifiedImageError as fault:
        raise DataError(
            f"the picture {shown(path)} cannot be read: its content is of no format that is read"
        ) from fault
    except Exception as fault:  # what a damaged file raises depends on its format
        raise DataError(f"the picture {shown(path)} cannot be read: {fault}") from fault


def decode(
    path: str, channels: int, size: tuple[int, int] | None = None, exif: bool = False
) -> np.ndarray:
    """One picture, or its first frame, as uint8 (channels, H, W).

    Args:
        size: (height, width): it is scaled to cover that, and cut to it.
        exif: Turn it first, as its EXIF orientation says.
    """
    from PIL import Image, ImageOps

    with opened(path) as picture:
        check_depth(picture, path)
        if exif and orientation(picture) != 1:
            picture = ImageOps.exif_transpose(picture)
        picture = picture.convert("L" if channels == 1 else "RGB")
        if size is not None and picture.size != (size[1], size[0]):
            picture = ImageOps.fit(picture, (size[1], size[0]), Image.Resampling.BILINEAR)
        pixels = np.array(picture)
    return pixels[None] if channels == 1 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def check_depth(picture, path: str | Path) -> None:
    """DataError: Pillow would cut pixels of 16 bits and floats off at 255, which leaves it white."""
    if _is_deep(picture):
        raise DataError(f"the picture {shown(path)} has more than 8 bits a channel; save it with 8")


def _is_deep(picture) -> bool:
    return picture.mode.startswith("I") or picture.mode == "F"


def orientation(picture) -> int:
    """1 (upright) to 8, by the EXIF; 1 where it says nothing that can be read."""
    from PIL import ExifTags

    try:
        found = picture.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # damaged EXIF, beside pixels that are whole
        return 1
    return found if found in range(1, 9) else 1


def picture_size(picture, exif: bool = False) -> tuple[int, int]:
    """(height, width), from the file's header; as it is turned."""
    turned = exif and orientation(picture) >= 5
    return (picture.width, picture.height) if turned else (picture.height, picture.width)


def left_out(path: str | Path, exif: bool = False) -> list[str]:
    """What of a picture file its reading leaves out, in words; [] where it reads all of it.

    DataError: the file cannot be read.
    """
    with opened(path) as picture:
        found = []
        # A camera's MPO holds previews of the same picture beside it.
        if getattr(picture, "n_frames", 1) > 1 and picture.format != "MPO":
            found.append("further frames")
        # Grey pictures of 16 bits keep theirs, and are refused.
        if _SIXTEEN_BITS.search(repr(getattr(picture, "tile", ""))):
            found.append("more than 8 bits a channel")
        if not exif and orientation(picture) != 1:
            found.append("an EXIF orientation")
        if not _is_deep(picture) and picture.has_transparency_data and _is_transparent(picture):
            found.append("transparency")
    return found


def _is_transparent(picture) -> bool:
    lowest, _ = picture.convert("RGBA").getchannel("A").getextrema()
    return lowest < 255
