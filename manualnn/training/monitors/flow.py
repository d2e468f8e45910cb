"""The flow picture: what goes forward through the layers, what comes back, and what is kept for it."""

import copy
import math

import numpy as np
import torch
from torch import Tensor

from manualnn.training.monitors.drawing import (
    BLUE,
    BROWN,
    DARK,
    GREY,
    ORANGE,
    RED,
    new_figure,
    pixels,
)
from manualnn.training.monitors.history import Record
from manualnn.training.monitors.layers import Layer

FAR = 1e-3  # a layer this far from the last one is marked
NARROWEST = 0.35  # of the widest box


def kept_bytes(
    network: torch.nn.Module, images: Tensor, layers: list[Layer], autocast: torch.dtype | None
) -> list[float] | None:
    """Bytes an image that backward keeps in each layer and in what follows it, by the ledger.

    Measured on a copy of the network, with the random state put back: the run notices nothing. None
    where a network cannot be copied, or run on two images.
    """
    from manualnn.ledger.live import Live, given, region, total
    from manualnn.ledger.record import Book, Layers

    devices = {p.device for p in network.parameters() if p.device.type == "cuda"}
    try:
        twin = copy.deepcopy(network).train()
        watched = Layers(twin)
        live = Live(given(twin, (images,)), watched.running)
        book = Book(watched, live, (images,), with_floor=False)
        with torch.random.fork_rng(list(devices)), torch.enable_grad(), live:
            with region(images.device, autocast), book.open():
                scores = total(twin(images))
            book.close(scores)
    except Exception:  # whatever a person's own module raises: a picture is not worth a run
        return None
    numbers = {layer.path: i for i, layer in enumerate(layers)}
    totals, current = [0.0] * len(layers), 0
    for entry in book.entries:
        current = numbers.get(entry.layer, current)
        totals[current] += entry.bytes / len(images)
    return totals


def draw(labels: list[str], record: Record, kept: list[float] | None, title: str) -> np.ndarray:
    """The picture (height, width, 3) of one record.

    Above, blue: the standard deviation of each layer's a, on a logarithmic scale; the grey part of a
    box is the share of its units that are dead or saturated. Below, orange: the spread of dz. A box is
    wide where much is kept for backward.
    """
    count = len(labels)
    many = count > 14
    width = min(16.0, max(7.0, 1.2 + 0.85 * count))
    figure = new_figure(width, 5.0, dpi=90)
    # Without matplotlib's axes and ticks, which take longer to draw than all the rest.
    left = 0.8 / width
    axes = figure.add_axes((left, 0.24, 0.99 - left, 0.67))
    axes.set_axis_off()
    widths = _widths(kept, count)
    off = [max(signals.dead or 0.0, signals.saturated or 0.0) for signals in record.layers]
    marks = _marks_backward([signals.dz_norm for signals in record.layers])
    size, turn = (6.5, 90) if many else (8, 0)
    for sign, name, colour in ((1, "a_spread", BLUE), (-1, "dz_spread", ORANGE)):
        values = [getattr(signals, name) for signals in record.layers]
        low, high = _decades(values)
        for decade in range(low + 1, high + 1):
            y = sign * (decade - low) / (high - low)
            axes.plot((-0.5, count - 0.5), (y, y), color=GREY, linewidth=0.4, zorder=0)
            if decade == high or (decade == low + 1 and high - low > 1):
                axes.text(-0.53, y, f"1e{decade}", ha="right", va="center", fontsize=7, color=DARK)
        for x, value in enumerate(values):
            mark = marks[x] if sign < 0 else _mark_forward(value, values)
            height = _height(value, low, high)
            axes.bar(x, sign * height, widths[x], color=colour, edgecolor=RED if mark else colour,
                     linewidth=2 if mark else 0.5)  # fmt: skip
            words = [_written(value)] + ([mark] if mark else [])
            if sign > 0 and off[x] > 0:
                axes.bar(x - widths[x] / 2, height, widths[x] * off[x], color=GREY, align="edge",
                         hatch="////", edgecolor=DARK, linewidth=0.5)  # fmt: skip
                if off[x] >= 0.05:
                    words.append(f"{off[x]:.0%} " + ("dead" if record.layers[x].dead else "flat"))
            axes.text(x, sign * (height + 0.03), "\n".join(words), fontsize=size, rotation=turn,
                      color=RED if mark else DARK, ha="center", va="bottom" if sign > 0 else "top")  # fmt: skip
    axes.plot((-0.6, count - 0.4), (0, 0), color=DARK, linewidth=1.2)
    axes.set_xlim(-0.6, count - 0.4)
    axes.set_ylim(-1.45, 1.45)
    turned = many or max(map(len, labels)) > 12
    for x, label in enumerate(labels):
        words = f"{label}\n{_bytes(kept[x])}" if kept else label
        axes.text(x, -1.5, words, fontsize=7 if many else 8, rotation=40 if turned else 0, va="top",
                  ha="right" if turned else "center", rotation_mode="anchor")  # fmt: skip
    for y, words, colour in (
        (0.74, "forward →\nspread of a", BLUE),
        (0.41, "← backward\nspread of dz", BROWN),
    ):
        figure.text(
            0.18 / width, y, words, rotation=90, va="center", color=colour, fontsize=9, ha="left"
        )
    total = f"; width of a box: kept for backward, {_bytes(sum(kept))} an image" if kept else ""
    figure.text(0.18 / width, 0.95, f"{title}{total}", fontsize=10)
    return pixels(figure)


def _widths(kept: list[float] | None, count: int) -> list[float]:
    if not kept or not max(kept):
        return [0.6] * count
    return [0.86 * (NARROWEST + (1 - NARROWEST) * size / max(kept)) for size in kept]


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
