"""What a run leaves for people: a table of its figures, and a file of its predictions."""

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger

from manualnn.tools.files import replacing_text
from manualnn.tools.table import aligned
from manualnn.training.errors import DiskError
from manualnn.training.model.criterion import Prediction
from manualnn.training.model.metrics import MONITORED
from manualnn.training.text.names import cell, shown


def write_predictions(
    path: Path, images: Sequence[str], class_names: Sequence[str], predictions: Prediction
) -> None:
    """A row for each image: its name, the class with the largest score, and its probability.

    Raises:
        DiskError: there is no room; a file that was there is as it was.
    """
    best = predictions.order[:, :1]
    values, indices = predictions.probabilities.gather(1, best)[:, 0].tolist(), best[:, 0].tolist()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = [
            (image, class_names[index], f"{value:.4f}")
            for image, value, index in zip(images, values, indices, strict=True)
        ]
        write_csv(path, [("image", "class", "probability"), *rows])
    except OSError as error:
        was = "; the one that was there is as it was" if path.exists() else ""
        raise DiskError(f"{path} could not be written: {error.strerror}{was}") from error


def print_result(trainer: Trainer, checkpoint: ModelCheckpoint, log_dir: str | None) -> None:
    """The table at the end of `fit`: of the test, where there was one, else of the validation."""
    metrics = trainer.callback_metrics
    network = trainer.lightning_module.network
    rows = [
        ("dataset", trainer.datamodule.dataset),
        ("weights", f"{sum(p.numel() for p in network.parameters()):,}"),
        ("epochs, steps", f"{trainer.current_epoch}, {trainer.global_step}"),
    ]
    score = getattr(checkpoint, "best_model_score", None)
    if score is not None:
        rows.append((f"best {checkpoint.monitor}", f"{float(score):.4f}"))
    kind = "test" if "test/acc" in metrics else "val"
    measured = [x.replace("val", kind) for x in MONITORED if x.startswith("val")]
    for name in ("train/loss", "train/acc", *measured):
        if name in metrics:
            rows.append((name, f"{float(metrics[name]):.4f}"))
    if getattr(checkpoint, "best_model_path", ""):
        rows.append(("checkpoint", checkpoint.best_model_path))
    if isinstance(trainer.logger, TensorBoardLogger):
        rows.append(("curves", f"tensorboard --logdir {trainer.logger.save_dir}"))
    elif trainer.logger is not None and log_dir:
        rows.append(("curves", log_dir))
    print_rows(rows)


def print_rows(rows: Iterable[Iterable[object]], right: Sequence[int] = ()) -> None:
    """A table below an empty line."""
    print("", *aligned([[*map(shown, row)] for row in rows], right), sep="\n")


def write_csv(path: Path, rows: Iterable[Iterable[Any]]) -> None:
    """The file is complete or what it was; no cell is one that a spreadsheet computes."""
    with replacing_text(path) as file:
        csv.writer(file).writerows(
            [cell(x) if isinstance(x, str) else x for x in row] for row in rows
        )
