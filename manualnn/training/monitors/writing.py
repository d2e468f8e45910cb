"""Where the numbers and pictures go: numbers to every logger, pictures and words to TensorBoard's."""

import io
import math
import time

import numpy as np
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from tensorboard.compat.proto.summary_pb2 import HistogramProto, Summary
from torch.utils.tensorboard import SummaryWriter

from manualnn.training.monitors.layers import LayerSignals, MonitoredLayer

# The group that a signal's curves form in TensorBoard. Norms as log10: a layer whose error is a thousandth of
# the next one's is then seen as such, and not as another curve at 0.
GROUPS = {
    "dz_norm": "dz_log10",
    "dW_norm": "dW_log10",
    "update": "update_log10",
    "a_mean": "a_mean",
    "a_spread": "a_spread",
    "dead": "dead_units",
    "saturated": "saturated_units",
}
NORMS = ("dz_norm", "dW_norm")
BOXES = 30  # of a histogram
# A curve at -3, in the chart of the updates: about there they should be.
USUAL = "update_log10/usual"

# One chart a signal with a curve a layer: twenty layers stay readable.
LAYOUT = {
    "the run": {
        "loss": ["Multiline", ["train/loss", "val/loss"]],
        "accuracy": ["Multiline", ["train/acc", "val/acc"]],
    },
    "backward, by layer": {
        "log10 |dz|": ["Multiline", ["dz_log10/.*"]],
        "log10 |dW|": ["Multiline", ["dW_log10/.*"]],
        "log10 |update of W| / |W|, usual: -3": ["Multiline", ["update_log10/.*"]],
    },
    "forward, by layer": {
        "mean of a": ["Multiline", ["a_mean/.*"]],
        "spread of a": ["Multiline", ["a_spread/.*"]],
        "share of dead units": ["Multiline", ["dead_units/.*"]],
        "share of saturated units": ["Multiline", ["saturated_units/.*"]],
    },
}


class Board:
    """The loggers of a run: numbers go to all of them, pictures and words to TensorBoard's, each folder once.

    TensorBoard's writer is a thread, and waking it costs more than a small network's step: what is written
    waits here for up to a second, and what belongs together becomes one event.
    """

    def __init__(self, trainer: Trainer):
        found = {
            logger.log_dir: logger.experiment
            for logger in trainer.loggers
            if isinstance(logger, TensorBoardLogger)
        }
        self.writers: list[SummaryWriter] = list(found.values())
        self._others = [x for x in trainer.loggers if not isinstance(x, TensorBoardLogger)]
        self._waiting: list[tuple[Summary, int, float]] = []
        self._written = time.monotonic()

    def scalars(self, line: dict[str, float], step: int) -> None:
        if not line:
            return
        for logger in self._others:
            logger.log_metrics(line, step=step)
        self._put([Summary.Value(tag=tag, simple_value=value) for tag, value in line.items()], step)

    def _put(self, values: list[Summary.Value], step: int) -> None:
        if self.writers and values:
            self._waiting.append((Summary(value=values), step, time.time()))
            if time.monotonic() - self._written > 1:
                self.flush()

    def flush(self) -> None:
        for writer in self.writers:
            for summary, step, when in self._waiting:
                writer.file_writer.add_summary(summary, step, when)
        self._waiting, self._written = [], time.monotonic()

    def settle(self) -> None:
        """All that was written is in the files: what comes before a checkpoint must not be lost after it."""
        self.flush()
        for writer in self.writers:
            writer.flush()

    def layout(self) -> None:
        for writer in self.writers:
            writer.add_custom_scalars(LAYOUT)

    def images(self, pictures: dict[str, Image.Image | None], step: int) -> None:
        """By their tags."""
        values = []
        for tag, picture in pictures.items():
            if picture is not None:
                file = io.BytesIO()
                picture.save(file, "PNG", compress_level=3)  # on lines and boxes 9 gains little
                image = Summary.Image(
                    encoded_image_string=file.getvalue(),
                    width=picture.width,
                    height=picture.height,
                    colorspace=3,
                )
                values.append(Summary.Value(tag=tag, image=image))
        self._put(values, step)

    def words(self, tag: str, markdown: str, step: int) -> None:
        self.flush()
        for writer in self.writers:
            writer.add_text(tag, markdown, step)
            writer.flush()

    def histograms(self, labels: list[str], layers: list[MonitoredLayer], step: int) -> None:
        """a, dz and W of each layer, from a sample of the entries."""
        values = []
        for label, layer in zip(labels, layers, strict=True):
            for name, sample in (*sorted(layer.samples.items()), ("W", layer.sampled_weight())):
                numbers = sample.double().cpu().numpy()
                if numbers.size and np.isfinite(numbers).all():
                    values.append(Summary.Value(tag=f"{name}/{label}", histo=histogram(numbers)))
        self._put(values, step)


def histogram(values: np.ndarray) -> HistogramProto:
    """Boxes of one width, as TensorBoard draws them, and between them the quantiles, for what lies close
    together."""
    values = np.sort(values)
    quantiles = values[np.linspace(0, values.size - 1, BOXES + 1).astype(int)]
    edges = np.unique(np.concatenate([np.linspace(values[0], values[-1], BOXES + 1), quantiles]))
    counts = np.diff(np.searchsorted(values, edges[1:-1]), prepend=0, append=values.size)
    return HistogramProto(
        min=values[0],
        max=values[-1],
        num=values.size,
        sum=values.sum(),
        sum_squares=values @ values,
        bucket_limit=edges[1:] if edges.size > 1 else edges,  # the upper ones
        bucket=counts,
    )


def as_line(labels: list[str], signals: list[LayerSignals]) -> dict[str, float]:
    """{"dz_log10/01_conv1": ...} of all that is there."""
    line = {}
    for name, group in GROUPS.items():
        for label, one in zip(labels, signals, strict=True):
            value = getattr(one, name)
            if name in NORMS and value is not None:
                value = math.log10(value) if value else None  # of no error there is no logarithm
            if value is not None:
                line[f"{group}/{label}"] = value
    if any(key.startswith("update_log10/") for key in line):
        line[USUAL] = -3.0
    return line
