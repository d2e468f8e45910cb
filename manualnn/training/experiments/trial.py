"""A trial: one run of `fit` with values that Optuna draws."""

import json
import math
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import optuna
from lightning.pytorch import LightningModule, Trainer
from optuna.exceptions import StorageInternalError
from sqlalchemy.exc import SQLAlchemyError

from manualnn.training.errors import DiskError, Diverged, Interrupted, out_of_memory
from manualnn.training.experiments.runs import FitRun, Progress, figures, option_text, options
from manualnn.training.experiments.study import TrialFailed, is_surplus
from manualnn.training.run.callbacks import RunRecord
from manualnn.training.run.configuration import USER_ERRORS
from manualnn.training.run.saving import disk_fault
from manualnn.training.text.messages import one_line

LOST = "lost"  # how the reason of a run that diverged begins


class Pruning(Progress):
    """Reports each validation to the trial, and ends the run when Optuna's pruner gives it up.

    The values drawn are written to TensorBoard's HParams beside the run's own.
    """

    def __init__(self, trial: optuna.Trial, monitor: str):
        super().__init__()
        self._trial, self._monitor = trial, monitor

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        for callback in trainer.callbacks:
            if isinstance(callback, RunRecord):
                callback.hyperparameters.update(self._trial.params)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_validation_end(trainer, pl_module)
        points = self.curves.get(self._monitor)
        if trainer.sanity_checking or not points:
            return
        epoch, value = points[-1]
        if not math.isfinite(value):
            raise Diverged(f"{self._monitor} is no longer finite after {epoch:g} epochs")
        self._trial.report(value, len(points) - 1)
        last = trainer.current_epoch + 1 == trainer.max_epochs
        if not last and self._trial.should_prune():
            self.pruned = trainer.should_stop = True


class Objective:
    """Runs a trial and returns the monitored value of its best epoch.

    A run whose loss is lost, or that does not fit in memory, counts as pruned at once: Optuna then
    avoids such values. Any other error is a failure. Either way the reason is saved in the trial's
    attribute "why", and the next trial follows.

    Args:
        base: The arguments of `fit` that all trials share.
        values: {option: value} of a trial.
        monitor: val/loss or val/acc.
        folder: The study's, in the form (save_dir, name).
        n_trials: How many trials the study is to have.
        say: Prints a line for the user.
        kind: What a run is called, in its folder and in what is printed.
    """

    def __init__(
        self,
        base: Sequence[str],
        values: Callable[[optuna.Trial], dict[str, Any]],
        monitor: str,
        folder: tuple[str, str],
        n_trials: int,
        say: Callable[[str], None],
        kind: str = "trial",
    ):
        self._base, self._values, self._monitor = base, values, monitor
        self._folder, self._n_trials, self._say, self._kind = folder, n_trials, say, kind

    def plan(self, trial: optuna.Trial) -> tuple[Path, Progress, list[str]]:
        """(the run's folder within the study's, what follows the run, its arguments of `fit`)."""
        args = [*self._base, *options(self._values(trial)), "--test_best=false"]
        return Path(f"{self._kind}_{trial.number:04d}"), Pruning(trial, self._monitor), args

    def describe(self, trial: optuna.Trial, result: str, found: dict | None = None) -> str:
        """What is printed when the trial has ended."""
        other = "val/acc" if self._monitor == "val/loss" else "val/loss"
        beside = f"  {other} {found[other]:.4f}" if found else ""
        return f"{self._kind} {trial.number:>3}  {result}{beside}  {listed(trial.params)}"

    def fault(self, trial: optuna.Trial, error: Exception) -> None:
        """Ends the trial with an error that is no mistake in the command, but a fault of a program's."""
        trial.set_user_attr("traceback", "".join(traceback.format_exception(error)))
        self._end(trial, f"failed: {type(error).__name__}: {one_line(error)}")

    def __call__(self, trial: optuna.Trial) -> float:
        if is_surplus(trial.study, trial.number, self._n_trials):
            trial.set_user_attr("surplus", True)
            raise TrialFailed
        place, progress, args = self.plan(trial)
        parent, folder = Path(*self._folder), Path(self._folder[1], place)
        trial.set_user_attr("folder", str(parent / place))
        try:
            run = FitRun(args, [progress], folder=(str(folder.parent), folder.name))
            found = progress.last() if progress.pruned else figures(run, progress)
        except (Interrupted, SQLAlchemyError, StorageInternalError):
            raise
        except Exception as error:
            fault = disk_fault(error, parent)
            if fault or isinstance(error, DiskError):  # not of the values: the trial is not spent
                raise DiskError(f"{place}: {fault or one_line(error)}") from error
            if isinstance(error, Diverged) or out_of_memory(error):
                kind = LOST if isinstance(error, Diverged) else "out of memory"
                self._end(trial, f"{kind}: {one_line(error)}")
                raise optuna.TrialPruned from error
            if isinstance(error, USER_ERRORS):
                self._end(trial, f"failed: {one_line(error)}")
            else:
                self.fault(trial, error)
            raise TrialFailed from error
        finally:
            trial.set_user_attr("seconds", progress.seconds)
        trial.set_user_attr("figures", found)
        result = f"{self._monitor} {found[self._monitor]:.4f}"
        if progress.pruned:
            self._end(trial, f"pruned after {found['epoch']:g} epochs, at {result}")
            raise optuna.TrialPruned
        self._say(self.describe(trial, result, found))
        return found[self._monitor]

    def _end(self, trial: optuna.Trial, why: str) -> None:
        trial.set_user_attr("why", why)
        self._say(self.describe(trial, why))


def listed(params: dict[str, Any]) -> str:
    """The values of a trial in one line, numbers short."""
    return "  ".join(f"{name.rpartition('.')[2]}={short(v)}" for name, v in params.items())


def short(value: Any, digits: int = 3) -> str:
    """A value for a table: few digits of a number, of a class with options its name."""
    if isinstance(value, float):
        return f"{value:.{digits}g}"
    text = option_text(value)
    if text.startswith('{"class_path"'):
        return json.loads(text)["class_path"].rpartition(".")[2]
    return text
