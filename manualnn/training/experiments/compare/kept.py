"""What a comparison keeps to go on with: its settings, and in each run's folder how far that one is."""

import json
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer

from manualnn.training.errors import TrainingError
from manualnn.training.experiments.runs import Progress, differences, numbered
from manualnn.training.run.checkpoints import well_formed
from manualnn.training.run.folder import is_held
from manualnn.training.run.saving import replacing

SETTINGS, PROGRESS = "comparison.json", "progress.json"


class KeptRun(Progress):
    """The progress of a run, kept in its folder.

    Args:
        folder: The run's.

    Attributes:
        found: The figures of a run that has finished.
        lost: Why a run has none, and would have none again.
    """

    def __init__(self, folder: Path):
        super().__init__()
        self.folder = folder
        path = folder / PROGRESS
        kept = _read(path)
        with well_formed(path):
            self.found: dict[str, float] | None = kept.get("found")
            if self.found is not None:
                self.found = {str(name): float(value) for name, value in self.found.items()}
            self.lost: str | None = kept.get("lost")
            for name, points in kept.get("curves", {}).items():
                self.curves[name] = [(float(epoch), float(value)) for epoch, value in points]
            self._seconds = float(kept.get("seconds", 0.0))
        self._began = time.perf_counter()

    @property
    def is_done(self) -> bool:
        return self.found is not None or self.lost is not None

    def going_on(self) -> list[str]:
        """The option with which `fit` goes on where the run was cut off; [] if it is to start."""
        self._began = time.perf_counter()
        last = self.folder / "checkpoints" / "last.ckpt"
        if last.is_file():
            return [f"--ckpt_path={last}"]
        if self.folder.exists():  # cut off before its first checkpoint
            shutil.rmtree(self.folder)
        self.curves.clear()
        self._seconds = 0.0
        return []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # What came after the checkpoint comes again.
        now = self._epochs(trainer)
        for points in self.curves.values():
            points[:] = [(epoch, value) for epoch, value in points if epoch <= now]

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_epoch_start(trainer, pl_module)
        self._keep()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_validation_end(trainer, pl_module)
        self._keep()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_end(trainer, pl_module)
        self._keep()

    def finish(self, found: dict[str, float]) -> None:
        self.found = {**found, "seconds": self._elapsed()}
        self._keep()

    def lose(self, why: str) -> None:
        self.lost = why
        self._keep()

    def _elapsed(self) -> float:
        """Seconds of training, of the parts of a run that was cut off together."""
        return self._seconds + time.perf_counter() - self._began

    def _keep(self) -> None:
        content = {"seconds": self._elapsed(), "curves": self.curves}
        for name in ("found", "lost"):
            if getattr(self, name) is not None:
                content[name] = getattr(self, name)
        _write(self.folder / PROGRESS, content)


def folder_of(parent: Path, settings: Mapping[str, Any], runs: Sequence[str]) -> tuple[Path, str]:
    """(the folder of the newest comparison of these settings that lacks a run, or of a new one; a note).

    Args:
        parent: Of all comparisons of the experiment.
        settings: What must be the same in all runs of a comparison.
        runs: The folders of the runs, in that of the comparison.
    """
    new, note = parent / numbered(parent, "version"), ""
    versions = [path for path in parent.glob("version_*") if path.name[8:].isdigit()]
    for version in sorted(versions, key=lambda path: int(path.name[8:]), reverse=True):
        kept = _read(version / SETTINGS)
        if not kept or is_held(version):
            continue
        with well_formed(version / SETTINGS):
            theirs, their_runs = dict(kept["settings"]), [version / run for run in kept["runs"]]
        if theirs == settings:
            if not all(KeptRun(version / run).is_done for run in runs):
                return version, ""
        elif not note and not all(KeptRun(run).is_done for run in their_runs):
            what = differences(settings, theirs)
            note = f"{version} was not finished, and had other settings ({what}): {new} begins anew"
    return new, note


def begin(folder: Path, settings: Mapping[str, Any], runs: Iterable[str]) -> None:
    """Writes down what the comparison is of; more runs than before may be asked for."""
    runs = list(dict.fromkeys([*_read(folder / SETTINGS).get("runs", ()), *runs]))
    _write(folder / SETTINGS, {"settings": settings, "runs": runs})


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (ValueError, RecursionError) as error:
        raise TrainingError(f"{path} is not what a comparison has written: {error}") from error
    if not isinstance(content, dict):
        raise TrainingError(f"{path} is not what a comparison has written")
    return content


def _write(path: Path, content: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        file.write(json.dumps(content, indent=1).encode())
