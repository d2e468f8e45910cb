"""How a picture becomes what a network was trained on; a checkpoint keeps it with the weights."""

from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from manualnn.training.data.batches import scaled
from manualnn.training.data.errors import DataError
from manualnn.training.data.folder import decode


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

    def state(self) -> dict:
        """What a checkpoint keeps: text, numbers and tensors, which torch.load takes for harmless."""
        fields = {**asdict(self), "class_names": list(self.class_names)}
        return {**fields, "factor": self.factor.cpu().clone(), "offset": self.offset.cpu().clone()}

    @classmethod
    def of_state(cls, state: dict) -> "Reading":
        state = {**state, "class_names": tuple(state["class_names"])}
        return cls(**{**state, "image_shape": tuple(state["image_shape"])})

    @property
    def from_files(self) -> bool:
        """Whether the training's images were picture files too, or came from a dataset's own."""
        return self.dataset == "ImageFolder"

    def levels(self, path: str | Path, resize: bool = False) -> Tensor:
        """One picture as the training would have read it: (C, H, W) uint8.

        Args:
            path: A picture that Pillow can open.
            resize: Bring it to the shape, as `resized` does.

        Raises:
            DataError: it cannot be read, has more than 8 bits a channel, or another size.
        """
        channels, *size = self.image_shape
        fit = self.resized or resize
        pixels = decode(str(path), channels, tuple(size) if fit else None)
        if pixels.shape != self.image_shape:
            height, width = pixels.shape[1:]
            raise DataError(
                f"the picture {path} is {height} x {width} (height x width); the network was trained "
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


def left_out(path: str | Path) -> list[str]:
    """What of a picture file its reading leaves out, in words; [] where it reads all of it.

    DataError: the file cannot be read.
    """
    from PIL import ExifTags, Image

    try:
        with Image.open(path) as picture:
            found = []
            # A camera's MPO holds previews of the same picture beside it.
            if getattr(picture, "n_frames", 1) > 1 and picture.format != "MPO":
                found.append("further frames")
            # Pillow opens colours of 16 bits as 8; grey ones keep theirs, and are refused later.
            if picture.mode.startswith("RGB") and ";16" in repr(getattr(picture, "tile", "")):
                found.append("more than 8 bits a channel")
            if picture.getexif().get(ExifTags.Base.Orientation, 1) != 1:
                found.append("an EXIF orientation")
            if picture.has_transparency_data and _is_transparent(picture):
                found.append("transparency")
    except Exception as fault:  # what a damaged file raises depends on its format
        raise DataError(f"the picture {path} cannot be read: {fault}") from fault
    return found


def _is_transparent(picture) -> bool:
    lowest, _ = picture.convert("RGBA").getchannel("A").getextrema()
    return lowest < 255
