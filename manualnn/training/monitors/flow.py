"""The flow picture: what goes forward through the layers, what comes back, and what is kept for it."""

import math
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache

import torch
from PIL import Image
from torch import Tensor

from manualnn.tools.copies import copied
from manualnn.tools.palette import BLUE, BROWN, DARK, LIGHT, ORANGE, RED
from manualnn.training.monitors.drawing import SMALL, USUAL, Canvas, cut, length
from manualnn.training.monitors.history import Record
from manualnn.training.monitors.layers import MonitoredLayer

NODE = "Network"  # the op of nn.MLP, which runs as one
FAR = 1e-3  # a layer this far from the last one is marked
NARROWEST = 0.35  # of the widest box
# In pixels: beside the boxes, and the highest of them.
LEFT, RIGHT, TALLEST = 78, 14, 105


def kept_bytes(
    network: torch.nn.Module,
    images: Tensor,
    layers: list[MonitoredLayer],
    autocast: torch.dtype | None,
) -> list[float] | None:
    """Bytes an image that backward keeps in each layer and in what follows it, by the ledger.

    Measured on a copy of the network, with the random state put back: the run notices nothing. None
    where a network cannot be copied, or run on two images.
    """
    from manualnn.tools.ledgers.live import Live, given, region, total
    from manualnn.tools.ledgers.record import Book, Layers

    devices = {p.device for p in network.parameters() if p.device.type == "cuda"}
    try:
        twin = copied(network).train()
        watched = Layers(twin)
        live = Live(given(twin, (images,)), watched.running)
        book = Book(watched, live, (images,), with_floor=False)
        with torch.random.fork_rng(list(devices)), torch.enable_grad(), live:
            with region(images.device, autocast), book.open():
                scores = total(twin(images))
            book.close(scores)
    except Exception:  # whatever the user's own module raises: a picture is not worth a run
        return None
    numbers = {layer.path: i for i, layer in enumerate(layers)}
    totals, current, seen = [0.0] * len(layers), 0, Counter()
    for entry in book.entries:
        if entry.op == NODE:
            # A whole network: of each kind the first one is the first layer's, the second one the second's.
            inside = [i for path, i in numbers.items() if path.startswith(f"{entry.layer}.")]
            kind = entry.layer, entry.why.split(":")[0]
            current = inside[min(seen[kind], len(inside) - 1)] if inside else current
            seen[kind] += 1
        current = numbers.get(entry.layer, current)
        totals[current] += entry.bytes / len(images)
    return totals


def draw_flow(
    labels: list[str], record: Record, kept: list[float] | None, title: str
) -> Image.Image:
    """The picture of one record.

    Above, blue: the standard deviation of each layer's a, on a logarithmic scale; the grey part of a
    box is the share of its units that are dead or saturated. Below, orange: the spread of dz. A box is
    wide where much is kept for backward.
    """
    page = _page(tuple(labels), tuple(kept or ()))
    canvas, layers = page.canvas.copy(), record.layers
    canvas.words(8, 15, title, anchor="lm")
    spreads = [signals.a_spread for signals in layers]
    off = [max(signals.dead or 0.0, signals.saturated or 0.0) for signals in layers]
    marks = [_mark_forward(spread, spreads) for spread in spreads]
    notes = [
        f"{share:.0%} " + ("dead" if signals.dead else "flat") if share >= 0.05 else ""
        for share, signals in zip(off, layers, strict=True)
    ]
    _draw_side(canvas, page, 1, BLUE, spreads, marks, off, notes)
    marks = _marks_backward([signals.dz_norm for signals in layers])
    nothing = [0.0] * len(layers), [""] * len(layers)
    _draw_side(canvas, page, -1, ORANGE, [s.dz_spread for s in layers], marks, *nothing)
    return canvas.flat()


def _draw_side(canvas, page, sign, colour, values, marks, off, notes) -> None:
    """The boxes of the values, up (sign 1) or down (-1) from the line: red where there is a mark, grey in the
    share that is off; value, mark and note written behind its end."""
    low, high = _decades(values)

    def y(share: float) -> float:
        return page.zero - sign * TALLEST * share

    decades = range(high, low, -math.ceil((high - low) / 12))
    for decade in decades:
        line = y((decade - low) / (high - low))
        canvas.box(LEFT, line, canvas.image.width - RIGHT, line + 1, LIGHT)
        if decade in (decades[0], decades[-1]):
            canvas.words(LEFT - 6, line, f"1e{decade}", size=SMALL, anchor="rm")
    size, turn, anchor = USUAL, 0, "md" if sign > 0 else "ma"
    if page.crowded:
        size, turn, anchor = SMALL, 90, "lm" if sign > 0 else "rm"
    for i, (x, width, value, mark, share, note) in enumerate(
        zip(page.places, page.widths, values, marks, off, notes, strict=True)
    ):
        end = y(_height(value, low, high))
        left, right, top, bottom = x - width / 2, x + width / 2, *sorted((end, page.zero))
        canvas.box(left, top, right, bottom, colour)
        canvas.hatched(left, top, left + width * share, bottom)
        if mark:
            canvas.frame(left, top, right, bottom, RED)
        if i % page.thinned == 0 or (mark and not marks[i - 1]):  # of marks in a row the first
            words = "\n".join(filter(None, (_written(value), mark, note)))
            canvas.words(x, end - 3 * sign, words, RED if mark else DARK, size, anchor, turn)
    canvas.box(LEFT - 14, page.zero, canvas.image.width - RIGHT + 4, page.zero + 1, DARK)


@dataclass(frozen=True)
class FlowPage:
    """What the pictures of a run have in common: where the boxes stand, and what is written beside them.

    zero: y of the line between forward and backward. places, widths: of each layer, the x of its middle and
    the width of its boxes; in pixels. crowded: the words at the boxes have to be turned. thinned: only each
    so many-th layer has room for words.
    """

    canvas: Canvas
    zero: int
    places: list[float]
    widths: list[float]
    crowded: bool
    thinned: int


@lru_cache(maxsize=1)
def _page(labels: tuple[str, ...], kept: tuple[float, ...]) -> FlowPage:
    count = len(labels)
    crowded = count > 14
    width = min(1440, max(560, LEFT + RIGHT + 76 * count))
    each = (width - LEFT - RIGHT) / count
    zero = 30 + (64 if crowded else 44) + TALLEST
    under = zero + TALLEST + (70 if crowded else 38)  # where the layers' names begin

    turned = max(map(length, labels)) > each - 8
    # At 40 degrees; the first one has the least room, down to the left border.
    longest = min(150, (LEFT + each / 2 - 12) / math.cos(math.radians(40)))
    names = [cut(label, longest, SMALL) for label in labels] if turned else labels
    if kept:
        names = [f"{name}\n{_bytes(size)}" for name, size in zip(names, kept, strict=True)]
    room = 30 + 0.65 * max(length(name, SMALL) for name in names) if turned else 34
    canvas = Canvas.of_size(width, round(under + room))
    places = [LEFT + each * (i + 0.5) for i in range(count)]
    thinned = math.ceil(26 / each)  # a name has two lines
    for x, name in list(zip(places, names, strict=True))[::thinned]:
        if turned:
            canvas.words(x - 6, under, name, size=SMALL, anchor="ra", turn=40)
        else:
            canvas.words(x, under, name, anchor="ma")
    canvas.words(22, zero - TALLEST / 2, "forward →\nspread of a", BLUE, turn=90)
    canvas.words(22, zero + TALLEST / 2, "← backward\nspread of dz", BROWN, turn=90)
    if kept:
        words = f"width of a box: kept for backward, {_bytes(sum(kept))} an image"
        canvas.words(width - RIGHT, 15, words, anchor="rm")
    widths = [0.86 * each * share for share in _shares(kept, count)]
    return FlowPage(canvas, zero, places, widths, crowded, thinned)


def _shares(kept: tuple[float, ...], count: int) -> list[float]:
    """Of the widest box there may be."""
    if not kept or not max(kept):
        return [0.7] * count
    return [NARROWEST + (1 - NARROWEST) * size / max(kept) for size in kept]


def _decades(values: list[float | None]) -> tuple[int, int]:
    """Whole powers of ten around the values, three apart at least."""
    seen = [math.log10(v) for v in values if v and math.isfinite(v)]
    if not seen:
        return -3, 0
    low, high = math.floor(min(seen) - 0.3), math.ceil(max(seen))
    return min(low, high - 3), high


def _height(value: float | None, low: int, high: int) -> float:
    """0 to 1 of the way from the lowest decade to the highest."""
    if not value:
        return 0.0
    return max(0.02, (math.log10(value) - low) / (high - low)) if math.isfinite(value) else 1.05


def _mark_forward(value: float | None, values: list[float | None]) -> str:
    if value is not None and not math.isfinite(value):
        return "not finite"
    seen = [v for v in values if v is not None and math.isfinite(v)]
    return "no signal" if value is not None and value < FAR * max(seen) else ""


def _marks_backward(norms: list[float | None]) -> list[str]:
    """By |dz|, not by its spread: the same error over more units is spread thinner."""
    last = next((n for n in reversed(norms) if n), None)
    marks = []
    for norm in norms:
        if norm is None or last is None:
            marks.append("")
        elif not math.isfinite(norm):
            marks.append("not finite")
        else:
            ratio = norm / last
            marks.append("vanishing" if ratio < FAR else "exploding" if ratio > 1 / FAR else "")
    return marks


def _written(value: float | None) -> str:
    if value is None:
        return "none"
    return f"{value:.2g}"


def _bytes(size: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024 or unit == "GiB":
            return f"{size:.0f} {unit}" if unit == "B" or size >= 100 else f"{size:.1f} {unit}"
        size /= 1024
    raise AssertionError
