"""The loggers that write into a run's folder, and how they go on in it: TensorBoard's and CSVLogger."""

import csv
import os
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter

from manualnn.training.run.folder import TABLE

KINDS = (TensorBoardLogger, CSVLogger)
UNNAMED = (None, "", "lightning_logs")  # what Lightning calls an experiment that nobody has named


def configured(chosen: Any) -> list[Namespace]:
    """Of a configuration's loggers those that write into the run's folder.

    None if the first is not one: that one says where the checkpoints lie.
    """
    listed = chosen if isinstance(chosen, list) else [chosen]
    kinds = [kind.__name__ for kind in KINDS]
    found = [
        one
        for one in listed
        if isinstance(one, Namespace) and one.class_path.rpartition(".")[2] in kinds
    ]
    return found if found and found[0] is listed[0] else []


def in_folder(trainer: Trainer) -> list[TensorBoardLogger | CSVLogger]:
    """As `configured`, of a trainer's loggers."""
    found = [logger for logger in trainer.loggers if isinstance(logger, KINDS)]
    return found if found and found[0] is trainer.loggers[0] else []


def folders(trainer: Trainer) -> list[Path]:
    """Where the curves lie; the run's own folder first."""
    return [*dict.fromkeys(Path(logger.log_dir) for logger in in_folder(trainer))]


def move(trainer: Trainer, logs: str) -> None:
    """The loggers of the run's folder write below `logs`."""
    moved = in_folder(trainer)
    before = moved[0].save_dir
    for logger in moved:
        if logger.save_dir == before:
            logger._root_dir = logs
            if isinstance(logger, CSVLogger):
                logger._save_dir = logs


def append(logger: TensorBoardLogger | CSVLogger) -> None:
    """A CSVLogger adds to the table that is there; its own way is to delete it."""
    begun = logger._experiment is not None
    if (
        not begun
        and isinstance(logger, CSVLogger)
        and os.path.isfile(os.path.join(logger.log_dir, TABLE))
    ):
        logger._experiment = _Appending(logger.log_dir)


class _Appending(ExperimentWriter):
    def __init__(self, log_dir: str):
        super().__init__(log_dir)
        table = Path(self.metrics_file_path)
        content = table.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):  # a killed process was writing
            os.truncate(table, whole)
        with table.open(newline="", encoding="utf-8") as file:
            self.metrics_keys = next(csv.reader(file), [])

    def _check_log_dir_exists(self) -> None:
        """It does, and stays as it is."""
