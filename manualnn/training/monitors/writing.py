"""Where the numbers and pictures go: numbers to every logger, pictures and words to TensorBoard's."""

from collections.abc import Iterator

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.compat.proto.summary_pb2 import Summary
from torch.utils.tensorboard import SummaryWriter

from manualnn.training.monitors.layers import NAMES, Layer, Signals

# Signal -> the group that its curves form in TensorBoard.
GROUPS = {
    "dz_norm": "dz_norm",
    "dz_spread": "dz_spread",
    "dW_norm": "dW_norm",
    "update": "update_log10",
    "a_mean": "a_mean",
    "a_spread": "a_spread",
    "dead": "dead_units",
    "saturated": "saturated_units",
}
assert tuple(sorted(GROUPS)) == tuple(sorted(NAMES))
# A curve at -3, in the chart of the updates: about there they should be.
USUAL = "update_log10/usual"

# One chart a signal with a curve a layer: twenty layers stay readable.
LAYOUT = {
    "the run": {
        "loss": ["Multiline", ["train/loss", "val/loss"]],
        "accuracy": ["Multiline", ["train/acc", "val/acc"]],
    },
    "backward, by layer": {
        "|dz|": ["Multiline", ["dz_norm/.*"]],
        "|dW|": ["Multiline", ["dW_norm/.*"]],
        "log10 |update of W| / |W|, usual: -3": ["Multiline", ["update_log10/.*"]],
    },
    "forward, by layer": {
        "mean of a": ["Multiline", ["a_mean/.*"]],
        "spread of a": ["Multiline", ["a_spread/.*"]],
        "share of dead units": ["Multiline", ["dead_units/.*"]],
        "share of saturated units": ["Multiline", ["saturated_units/.*"]],
    },
}


def boards(trainer: Trainer) -> Iterator[SummaryWriter]:
    """The TensorBoard writers of the run, each folder once."""
    seen = set()
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger) and logger.log_dir not in seen:
            seen.add(logger.log_dir)
            yield logger.experiment


def write_scalars(trainer: Trainer, line: dict[str, float], step: int) -> None:
    """To TensorBoard as one event with all the values: a tenth of the time of an event a value."""
    if not line:
        return
    values = [Summary.Value(tag=name, simple_value=value) for name, value in line.items()]
    for writer in boards(trainer):
        writer.file_writer.add_summary(Summary(value=values), step)
    for logger in trainer.loggers:
        if not isinstance(logger, TensorBoardLogger):
            logger.log_metrics(line, step=step)


def as_line(labels: list[str], signals: list[Signals]) -> dict[str, float]:
    """{"dz_norm/01_conv1": ...} of all that is there."""
    line = {}
    for name, group in GROUPS.items():
        for label, one in zip(labels, signals, strict=True):
            value = getattr(one, name)
            if value is not None:
                line[f"{group}/{label}"] = value
    if any(key.startswith("update_log10/") for key in line):
        line[USUAL] = -3.0
    return line


def write_histograms(
    writer: SummaryWriter, labels: list[str], layers: list[Layer], step: int
) -> None:
    """a, dz and W of each layer, from a sample of the entries."""
    for label, layer in zip(labels, layers, strict=True):
        for name, values in (*sorted(layer.samples.items()), ("W", layer.sampled_weight())):
            values = values.float().cpu()
            if values.numel() and torch.isfinite(values).all():
                writer.add_histogram(f"{name}/{label}", values, step)
