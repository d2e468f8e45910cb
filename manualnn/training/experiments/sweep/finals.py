"""The last round of a sweep: the best trials again, with other seeds and other validation images.

Of many trials the best is the luckiest, too: its seed and its validation images suited it. The mean
over runs that had no part in choosing it has no such luck in it.
"""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from manualnn.training.experiments.runs import FitRun, has_fixed_test
from manualnn.training.experiments.study import open_study, standing, work
from manualnn.training.experiments.sweep.space import Axis, Branches, suggest
from manualnn.training.experiments.trial import Objective

LARGEST = 2**31 - 1


@dataclass(frozen=True)
class Finalist:
    """A trial, and the figures of its further runs that are complete, by their number from 1.

    Runs of one number have the same seed and the same validation images, whoever's they are.
    """

    trial: FrozenTrial
    runs: Mapping[int, Mapping[str, float]]

    def values(self, name: str) -> list[float]:
        return [run[name] for run in self.runs.values()]

    def ahead(self, other: "Finalist", name: str) -> tuple[float, float]:
        """(mean of the other's figures minus this one's, its standard error), of runs that both have."""
        common = sorted(self.runs.keys() & other.runs.keys())
        differences = [other.runs[number][name] - self.runs[number][name] for number in common]
        if len(differences) < 2:
            return statistics.fmean(differences or [0.0]), 0.0
        error = statistics.stdev(differences) / math.sqrt(len(differences))
        return statistics.fmean(differences), error


class Finals:
    """The finalists of a study. Their runs are trials of a study of its own in the same database, so
    that they are shared among workers and gone on with as the sweep's are.

    Args:
        study: The sweep's.
        first: Parameters of a trial that is a finalist however it did.
        count: The best trials of which there are so many are finalists.
        seeds: Runs of each.
    """

    def __init__(self, study: optuna.Study, first: Mapping[str, Any], count: int, seeds: int):
        self._study, self._first, self._count, self._seeds = study, first, count, seeds
        self._sign = -1 if study.direction == StudyDirection.MAXIMIZE else 1
        self._finals: optuna.Study | None = None

    def trials(self) -> list[FrozenTrial]:
        """The finalists so far, or without a final the best trial alone; the best first.

        A trial that is none will be none: others can only push it further down.
        """
        complete = standing(self._study).of(TrialState.COMPLETE)
        ranked = sorted(complete, key=lambda trial: self._sign * trial.value)
        distinct = [
            trial
            for i, trial in enumerate(ranked)
            if all(trial.params != other.params for other in ranked[:i])
        ]
        if not self._count:
            return distinct[:1]
        rest = distinct[self._count :]
        return distinct[: self._count] + [trial for trial in rest if self.is_first(trial)]

    def tidy(self, study: optuna.Study, ended: FrozenTrial) -> None:
        """Removes the checkpoints of all trials that have ended and are no finalists."""
        # Listed before it is judged: one that another worker ends meanwhile may be the best.
        finished = [t for t in study.get_trials(deepcopy=False) if t.state.is_finished()]
        keep = {trial.number for trial in self.trials()}
        for trial in finished:
            if trial.number not in keep:
                remove_checkpoints(study, trial)

    def is_first(self, trial: FrozenTrial) -> bool:
        return trial.params == self._first

    def run(
        self,
        base: Sequence[str],
        axes: Sequence[Axis | Branches],
        template: FitRun,
        folder: tuple[str, str],
        say: Callable[[str], None],
    ) -> None:
        """Trains what is missing.

        Args:
            base: The arguments of `fit` that all runs share.
            axes: The search space.
            template: Was built with `base`.
            folder: The study's, in the form (save_dir, name).
            say: Takes a line for the user.
        """
        finalists = self.trials()
        if not self._count or len(finalists) < 2:
            return
        # Where the split chooses the test images too, it stays: they must not become validation's.
        seeds = {"seed_everything": template.config.fit.seed_everything}
        if has_fixed_test(template.datamodule):
            seeds["data.seed"] = template.config.fit.data.seed

        def values(run: optuna.Trial) -> dict[str, Any]:
            number = run.suggest_int("trial", 0, LARGEST)
            repeat = run.suggest_int("repeat", 1, LARGEST)
            chosen = next(t for t in standing(self._study).trials if t.number == number)
            others = {name: seed + repeat for name, seed in seeds.items()}
            return {**suggest(axes, chosen), **others}

        direction = self._study.direction.name.lower()
        name = f"{self._study.study_name}-finals"
        never, storage = optuna.pruners.NopPruner(), self._study._storage
        self._finals = open_study(storage, name, direction, never, seeds["seed_everything"])
        for repeat in range(1, self._seeds + 1):
            for trial in finalists:
                point = {"trial": trial.number, "repeat": repeat}
                self._finals.enqueue_trial(point, skip_if_exists=True)
        count = len(standing(self._finals).counting)
        monitor = template.config.fit.checkpoint.monitor
        say(f"finals: {len(finalists)} trials, {self._seeds} runs each")
        objective = Objective(base, values, monitor, folder, count, say, "final")
        work(self._finals, objective, count, say, remove_checkpoints)

    def result(self, monitor: str) -> list[Finalist]:
        """The finalists; the best first, and one that has lost a run after those that lost none."""
        runs = standing(self._finals).of(TrialState.COMPLETE) if self._finals else []
        found = []
        for trial in self.trials():
            mine = {
                run.params["repeat"]: run.user_attrs["figures"]
                for run in runs
                if run.params["trial"] == trial.number and run.params["repeat"] <= self._seeds
            }
            found.append(Finalist(trial, mine))

        def rank(finalist: Finalist) -> tuple[int, float]:
            values = finalist.values(monitor) or [finalist.trial.value]
            return -len(finalist.runs), self._sign * statistics.fmean(values)

        return sorted(found, key=rank)

    def chosen(self, finalists: Sequence[Finalist], monitor: str) -> tuple[Finalist, str]:
        """(the best, a note): of `result`, the first; or, where that is not ahead by more than one
        standard error, the configuration itself (Breiman et al. 1984, ch. 3.4.3: the 1 SE rule)."""
        best = finalists[0]
        own = next((finalist for finalist in finalists if self.is_first(finalist.trial)), best)
        if own is best or not best.runs or len(own.runs) < len(best.runs):
            return best, ""
        ahead, error = best.ahead(own, monitor)
        if self._sign * ahead > error:
            return best, ""
        return own, (
            f"trial {best.trial.number} is ahead of the configuration itself by "
            f"{self._sign * ahead:.4f} in {monitor}, of which the standard error is {error:.4f}: that may "
            "be chance, and the configuration stays"
        )


def remove_checkpoints(study: optuna.Study, trial: FrozenTrial) -> None:
    """What is needed of most trials is their figures; `config.yaml` in the folder repeats the run."""
    if "folder" in trial.user_attrs:
        for file in Path(trial.user_attrs["folder"], "checkpoints").glob("*.ckpt"):
            file.unlink(missing_ok=True)  # another worker may be at it, too
