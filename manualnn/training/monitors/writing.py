"""Where the numbers and pictures go: numbers to every logger, pictures and words to TensorBoard's."""

import math
import time

import numpy as np
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.compat.proto.summary_pb2 import Summary
from torch.utils.tensorboard import SummaryWriter

from manualnn.training.monitors.layers import Layer, Signals

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

    TensorBoard's writer is a thread, and waking it costs more than a small network's step: numbers wait here
    for up to a second, and those of a step become one event.
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
        if self.writers:
            values = [Summary.Value(tag=tag, simple_value=value) for tag, value in line.items()]
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

    def image(self, tag: str, picture: np.ndarray | torch.Tensor | None, step: int) -> None:
        """(height, width, 3) uint8 or (3, height, width) in 0 to 1."""
        if picture is not None:
            order = "HWC" if isinstance(picture, np.ndarray) else "CHW"
            for writer in self.writers:
                writer.add_image(tag, picture, step, dataformats=order)

    def words(self, tag: str, markdown: str, step: int) -> None:
        self.flush()
        for writer in self.writers:
            writer.add_text(tag, markdown, step)
            writer.flush()

    def histograms(self, labels: list[str], layers: list[Layer], step: int) -> None:
        """a, dz and W of each layer, from a sample of the entries."""
        for label, layer in zip(labels, layers, strict=True):
            for name, values in (*sorted(layer.samples.items()), ("W", layer.sampled_weight())):
                values = values.float().cpu()
                if values.numel() and torch.isfinite(values).all():
                    for writer in self.writers:
                        writer.add_histogram(f"{name}/{label}", values, step)


def as_line(labels: list[str], signals: list[Signals]) -> dict[str, float]:
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
