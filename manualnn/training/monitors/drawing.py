"""Pictures for TensorBoard by Pillow, which draws one in a millisecond or two; matplotlib takes fifty.

Small files, too: TensorBoard's writer computes a checksum in Python, a tenth of a millisecond a kilobyte.
"""

import math
from bisect import bisect_right
from functools import cache

import numpy as np
from matplotlib import colormaps
from matplotlib.font_manager import findfont
from PIL import Image, ImageColor, ImageDraw, ImageFont

from manualnn.tools.palette import BLUE, BROWN, DARK, GREY, ORANGE, RED

SMALL, USUAL = 10, 11  # of letters, in pixels


class Canvas:
    """A picture of flat colours, boxes and words; (x, y) in pixels from its upper left corner."""

    def __init__(self, image: Image.Image):
        self.image = image
        self._draw = ImageDraw.Draw(image)

    @classmethod
    def of_size(cls, width: int, height: int) -> "Canvas":
        return cls(Image.new("RGB", (width, height), "white"))

    def copy(self) -> "Canvas":
        return Canvas(self.image.copy())

    def box(self, left, top, right, bottom, colour: str) -> None:
        """From (left, top) until just before (right, bottom)."""
        left, top, right, bottom = _pixels(left, top, right, bottom)
        if left < right and top < bottom:
            self._draw.rectangle((left, top, right - 1, bottom - 1), colour)

    def frame(self, left, top, right, bottom, colour: str) -> None:
        """The edge of such a box, two pixels wide to its inside; something of it is seen in any case."""
        left, top, right, bottom = _pixels(left, top, right, bottom)
        corners = left, top, max(left, right - 1), max(top + 1, bottom - 1)
        self._draw.rectangle(corners, None, colour, 2)

    def hatched(self, left, top, right, bottom) -> None:
        """A box of grey under dark lines."""
        left, top, right, bottom = _pixels(left, top, right, bottom)
        if left < right and top < bottom:
            self.image.paste(_hatching().crop((0, 0, right - left, bottom - top)), (left, top))

    def words(self, x, y, words: str, colour=DARK, size=USUAL, anchor="mm", turn=0) -> None:
        """One line or several.

        anchor: the point of the words that is at (x, y), in Pillow's letters: l m r, then a m d for the top,
        the middle and the bottom. turn: degrees against the clock about that point.
        """
        x, y = _pixels(x, y)
        if turn:
            mask = _turned(words, size, anchor, turn)
            reach = mask.width // 2
            self.image.paste(colour, (x - reach, y - reach, x + reach, y + reach), mask)
        else:
            _write(self._draw, x, y, words, colour, size, anchor)

    def flat(self) -> Image.Image:
        """In the colours above, their shades and nothing else: a third of the bytes."""
        return self.image.quantize(palette=_palette(), dither=Image.Dither.NONE)


def _pixels(*places: float) -> tuple[int, ...]:
    return tuple(math.floor(place + 0.5) for place in places)


def _write(draw, x, y, words, colour, size, anchor) -> None:
    align = {"l": "left", "m": "center", "r": "right"}[anchor[0]]
    draw.text((x, y), words, colour, font(size), anchor, spacing=2, align=align)


def _turned(words: str, size: int, anchor: str, turn: float) -> Image.Image:
    """The words as a mask, with their anchor in its middle."""
    reach = length(words, size) + 2 * size * (words.count("\n") + 1)
    mask = Image.new("L", (2 * reach, 2 * reach))
    _write(ImageDraw.Draw(mask), reach, reach, words, 255, size, anchor)
    return mask.rotate(turn, Image.Resampling.BICUBIC)


@cache
def font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(findfont("DejaVu Sans"), size)


def length(words: str, size: int = USUAL) -> int:
    """Of the longest line, in pixels."""
    return round(max(map(font(size).getlength, words.split("\n"))))


def cut(words: str, room: float, size: int = USUAL) -> str:
    """As much of it as has room, in pixels."""
    if length(words, size) <= room:
        return words
    fitting = bisect_right(range(1, len(words)), room, key=lambda n: length(words[:n] + "…", size))
    return words[:fitting] + "…"


def blues(shares: np.ndarray) -> np.ndarray:
    """(..., 3) uint8: a share of 0 white, of 1 dark blue."""
    return colormaps["Blues"](shares, bytes=True)[..., :3]


@cache
def _palette() -> Image.Image:
    """White, the colours in steps towards white, as the edges of letters are, and the blues."""
    colours = [ImageColor.getrgb(c) for c in (BLUE, ORANGE, RED, GREY, DARK, BROWN)]
    shades = [255 + (np.array(colours) - 255) * share for share in (0, 0.25, 0.5, 0.75, 1)]
    rows = np.concatenate([*shades, blues(np.linspace(0, 1, 65))]).round().astype(np.uint8)
    palette = Image.new("P", (1, 1))
    palette.putpalette(np.unique(rows, axis=0).tobytes())
    return palette


@cache
def _hatching() -> Image.Image:
    image = Image.new("RGB", (1440, 120), GREY)
    draw = ImageDraw.Draw(image)
    for x in range(0, 1560, 8):
        draw.line((x, 0, x - 120, 120), DARK)
    return image
