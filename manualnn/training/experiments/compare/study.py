"""The runs of a comparison, as the trials of a study in its folder."""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import optuna
from lightning.pytorch import LightningModule, Trainer
from optuna.trial import FrozenTrial, TrialState

from manualnn.training.errors import TrainingError
from manualnn.training.experiments.compare.variants import Variant
from manualnn.training.experiments.runs import Progress, differences
from manualnn.training.experiments.study import (
    database_errors,
    drop_unfinished,
    open_study,
    standing,
    work,
)
from manualnn.training.experiments.trial import LOST, Objective
from manualnn.training.run.checkpoints import well_formed
from manualnn.training.run.folder import alone, is_locked, locked, next_version, number_of
from manualnn.training.text.names import shown

LARGEST = 2**32 - 1  # of seeds
Runs = Mapping[str, tuple[Variant, int]]  # folder in that of the comparison -> (variant, seed)


class Comparison:
    """A comparison's study. This process holds the folder, and so is the study's only worker.

    Args:
        folder: Of the comparison.
        runs: All that there are to be.
    """

    def __init__(self, folder: Path, runs: Runs):
        self.folder, self._runs = folder, runs
        self.url = f"sqlite:///{folder / 'study.db'}"
        with well_formed(f"the database {self.url}"), database_errors(self.url):
            never = optuna.pruners.NopPruner()
            self.study = open_study(self.url, "comparison", "maximize", never, 0)
            self.settings = self.study.user_attrs.get("experiment")
            standing(self.study)
            if self._newest() and not isinstance(self.settings, dict):
                raise TrainingError(
                    f"{folder} holds runs of a comparison that is not in {self.url}"
                )

    def _newest(self) -> dict[str, FrozenTrial]:
        """The last trial of each run; one that was interrupted has several."""
        trials = self.study.get_trials(deepcopy=False)
        return {str(trial.user_attrs["run"]): trial for trial in trials}

    def _done(self) -> set[str]:
        """The runs that would end the same again: complete, or diverged."""
        return {
            place
            for place, trial in self._newest().items()
            if trial.state == TrialState.COMPLETE
            or str(trial.user_attrs.get("why")).startswith(LOST)
        }

    def count_done(self) -> int:
        return len(self._runs.keys() & self._done())

    def is_whole(self) -> bool:
        """Whether each run that it was begun with is done."""
        return self._newest().keys() <= self._done()

    def run(self, base: Sequence[str], monitor: str, folder: tuple[str, str]) -> None:
        """Runs what is not done; one that was interrupted goes on with what it has saved."""
        drop_unfinished(self.study)
        newest, done = self._newest(), self._done()
        for place, (variant, seed) in self._runs.items():
            if place in done:
                continue
            saved = newest[place].user_attrs if place in newest else {}
            with well_formed(self.url):
                saved = {"curves": _curves(saved), "seconds": float(saved.get("seconds", 0))}
            point = {"variant": variant.name, "seed": seed}
            self.study.enqueue_trial(point, {"run": place, **saved})

        def values(trial: optuna.Trial) -> tuple[Variant, int]:
            trial.suggest_categorical("variant", names)
            trial.suggest_int("seed", 0, LARGEST)
            return self._runs[trial.user_attrs["run"]]

        names = sorted({variant.name for variant, _ in self._runs.values()})
        count = len(standing(self.study).counting)
        work(self.study, ComparedRun(base, values, monitor, folder, count, _say), count, _say)

    def fill(self) -> None:
        """Gives the variants the results of the runs that have ended."""
        newest = self._newest()
        with well_formed(f"the database {self.url}"):
            for place, (variant, seed) in self._runs.items():
                if (trial := newest.get(place)) is None:
                    continue
                found = trial.user_attrs
                if trial.state == TrialState.COMPLETE:
                    figures = {**found["figures"], "seconds": found["seconds"]}
                    variant.found[seed] = {name: float(x) for name, x in figures.items()}
                    variant.curves[seed] = _curves(trial.user_attrs)
                elif "why" in found:
                    variant.lost[seed] = str(found["why"])


@contextmanager
def begun(
    parent: Path, settings: Mapping[str, Any], runs: Runs
) -> Iterator[tuple[Comparison, str]]:
    """Holds the newest comparison of these settings that lacks a run, or a new one; with a note.

    Args:
        parent: The folder of all comparisons of the experiment.
        settings: What must be the same in all runs of a comparison.
        runs: All that there are to be.
    """
    with ExitStack() as stack:
        with alone(parent):  # two that begin at once get a folder each
            folder, note = _choose(parent, settings, runs)
            stack.enter_context(locked(folder))
            comparison = Comparison(folder, runs)
            with database_errors(comparison.url):
                comparison.study.set_user_attr("experiment", settings)
        yield comparison, note


def _choose(parent: Path, settings: Mapping[str, Any], runs: Runs) -> tuple[Path, str]:
    new, note = next_version(parent), ""
    for version in sorted(parent.glob("version_*"), key=number_of, reverse=True):
        why = ""
        if is_locked(version):
            continue
        if (version / "study.db").exists():
            there = Comparison(version, runs)
            theirs = there.settings or settings  # killed before they were written
            if theirs == settings and there.count_done() < len(runs):
                return version, ""
            if theirs != settings and not there.is_whole():
                with well_formed(version / "study.db"):
                    what = differences(settings, theirs)
                why = f"was not finished, and had other settings ({what})"
        elif (version / "comparison.json").exists():
            why = "is an earlier release's, which alone can go on with it"
        if why and not note:
            note = f"{version} {why}: {new} begins anew"
    return new, note


def _say(line: str) -> None:
    print(shown(line), flush=True)


class ComparedRun(Objective):
    """A run of a comparison; its `values` are (variant, seed)."""

    def plan(self, trial: optuna.Trial) -> tuple[Path, Progress, list[str]]:
        place = trial.user_attrs["run"]
        variant, seed = self._values(trial)
        args = [*self._base, *variant.args, f"--seed_everything={seed}"]
        folder = Path(*self._folder, place)
        last = folder / "checkpoints" / "last.ckpt"
        if last.is_file():
            return Path(place), SavedProgress(trial, goes_on=True), [*args, f"--ckpt_path={last}"]
        if folder.exists():  # interrupted before its first checkpoint
            shutil.rmtree(folder)
        return Path(place), SavedProgress(trial, goes_on=False), args

    def describe(self, trial: optuna.Trial, result: str, found: dict | None = None) -> str:
        variant, seed = self._values(trial)
        return f"{variant.name}, seed {seed}: {result}"

    def fault(self, trial: optuna.Trial, error: Exception) -> None:
        raise error


class SavedProgress(Progress):
    """The curves of a run and its seconds, saved in its trial too.

    Args:
        trial: Holds what an interrupted run has saved.
        goes_on: Whether this one goes on from its checkpoint.
    """

    def __init__(self, trial: optuna.Trial, goes_on: bool):
        super().__init__()
        self._trial = trial
        if goes_on:
            self.curves = _curves(trial.user_attrs)
            self._began -= trial.user_attrs["seconds"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # What came after the checkpoint comes again.
        now = self._epochs(trainer)
        for points in self.curves.values():
            points[:] = [(epoch, value) for epoch, value in points if epoch <= now]

    def _add(self, trainer: Trainer, kind: str, epoch: float) -> None:
        super()._add(trainer, kind, epoch)
        self._trial.set_user_attr("seconds", self.seconds)
        self._trial.set_user_attr("curves", self.curves)


def _curves(saved: Mapping[str, Any]) -> dict[str, list[tuple[float, float]]]:
    return {
        name: [(float(epoch), float(value)) for epoch, value in points]
        for name, points in saved.get("curves", {}).items()
    }
