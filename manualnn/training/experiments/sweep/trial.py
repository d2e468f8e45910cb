"""A trial: one run of `fit` with values that Optuna draws."""

import json
import math
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import optuna
from lightning.pytorch import LightningModule, Trainer
from optuna.exceptions import StorageInternalError
from sqlalchemy.exc import SQLAlchemyError

from manualnn.training.errors import DiskError, Diverged, Interrupted, out_of_memory
from manualnn.training.experiments.runs import Progress, Run, figures, option_text, options
from manualnn.training.experiments.sweep.study import TrialFailed, is_surplus
from manualnn.training.run.callbacks import RunRecord
from manualnn.training.run.configuration import MISTAKES
from manualnn.training.run.saving import disk_fault
from manualnn.training.text.messages import one_line


class Pruning(Progress):
    """Reports each validation to the trial, and ends the run when Optuna's pruner gives it up.

    The values drawn are written to TensorBoard's HParams beside the run's own.
    """

    def __init__(self, trial: optuna.Trial, monitor: str):
        super().__init__()
        self._trial, self._monitor = trial, monitor
        self.pruned = False

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
    keeps away from such values. Any other error is a failure. Either way the reason is kept in the
    trial's attribute "why", and the sweep goes on.

    Args:
        base: The arguments of `fit` that all trials share.
        values: {option: value} of a trial.
        monitor: val/loss or val/acc.
        folder: The study's, in the form (save_dir, name).
        n_trials: How many trials the study is to have.
        say: Takes a line for the person.
        kind: What a run is called, in its folder and to the person.
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
        self._base, self._values, self._monitor = list(base), values, monitor
        self._folder, self._n_trials, self._say, self._kind = folder, n_trials, say, kind

    def __call__(self, trial: optuna.Trial) -> float:
        if is_surplus(trial.study, trial.number, self._n_trials):
            trial.set_user_attr("surplus", True)
            raise TrialFailed
        values = self._values(trial)
        version = f"{self._kind}_{trial.number:04d}"
        trial.set_user_attr("folder", str(Path(*self._folder, version)))
        started = time.perf_counter()
        watch = Pruning(trial, self._monitor)
        args = [*self._base, *options(values), "--test_best=false"]
        try:
            run = Run(args, [watch], folder=(self._folder[1], version))
            found = watch.last() if watch.pruned else figures(run, watch)
        except (Interrupted, SQLAlchemyError, StorageInternalError):
            raise
        except Exception as error:
            # Of the disk, not of the values: the trial is not spent.
            if isinstance(error, DiskError) or disk_fault(error, Path(*self._folder)):
                fault = disk_fault(error, Path(*self._folder)) or one_line(error)
                raise DiskError(f"{self._kind} {trial.number}: {fault}") from error
            raise self._end_of(trial, error) from error
        finally:
            trial.set_user_attr("seconds", round(time.perf_counter() - started, 1))
        trial.set_user_attr("figures", found)
        if watch.pruned:
            why = f"pruned after {found['epoch']:g} epochs, at {self._monitor} {found[self._monitor]:.4f}"
            trial.set_user_attr("why", why)
            self._tell(trial, why)
            raise optuna.TrialPruned
        value = found[self._monitor]
        self._tell(trial, f"{self._monitor} {value:.4f}", found)
        return value

    def _end_of(self, trial: optuna.Trial, error: Exception) -> Exception:
        """What ends a trial whose run ended in this error; the reason is written down."""
        why = one_line(error)
        if isinstance(error, Diverged) or out_of_memory(error):
            end = optuna.TrialPruned()
            why = f"{'lost' if isinstance(error, Diverged) else 'out of memory'}: {why}"
        else:
            end = TrialFailed()
            if not isinstance(error, MISTAKES):
                # A fault of a program's, perhaps of a network of the person's own.
                why = f"{type(error).__name__}: {why}"
                trial.set_user_attr("traceback", "".join(traceback.format_exception(error)))
            why = f"failed: {why}"
        trial.set_user_attr("why", why)
        self._tell(trial, why)
        return end

    def _tell(self, trial: optuna.Trial, result: str, found: dict | None = None) -> None:
        other = "val/acc" if self._monitor == "val/loss" else "val/loss"
        beside = f"  {other} {found[other]:.4f}" if found else ""
        self._say(f"{self._kind} {trial.number:>3}  {result}{beside}  {listed(trial.params)}")


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
