"""A study: the trials of a sweep or the runs of a comparison in a database, which workers may share.

A trial counts once it is finished: complete, pruned, lost or failed. One whose worker was stopped
or has died does not; it is queued again with the same values, under a new number.
"""

import contextlib
import errno
import math
import os
import re
import shlex
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus

import optuna
import sqlalchemy
from optuna.exceptions import ExperimentalWarning, StorageInternalError
from optuna.samplers import BaseSampler, TPESampler
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback, fail_stale_trials
from optuna.trial import FrozenTrial, TrialState

from manualnn.training.errors import DiskError, Interrupted, TrainingError
from manualnn.training.experiments.runs import cheap_collection, forget
from manualnn.training.run.saving import cause_of
from manualnn.training.seeds import mixed
from manualnn.training.text.names import shown

# Seconds: how often a worker says that its trial is alive, after how long a silence another one
# takes the trial for dead, how often one that waits looks.
HEARTBEAT, GRACE, LOOK = 10, 60, 2
RETRIES = 3  # a trial that kills its worker that often has failed
HOPELESS = 5  # failures in a row, and nothing else, after which a worker stops


# Of SQLAlchemy, Optuna, and a driver that is not there.
DATABASE_ERRORS = (sqlalchemy.exc.SQLAlchemyError, StorageInternalError, ImportError)
NO_ROOM = "database or disk is full"  # SQLite's words


class TrialFailed(Exception):
    """The trial is recorded as failed, and the sweep goes on."""


class SeededTPE(BaseSampler):
    """Optuna's TPE sampler, seeded anew for each trial from (seed, how many trials count before it).

    So a sweep that was interrupted draws what it would have drawn, and of two workers neither
    draws the other's values, as two samplers of one seed would.

    Args:
        seed: The sweep's.
        first: The parameters of the first trial, {} if it is drawn like the others.
    """

    def __init__(self, seed: int, first: Mapping[str, Any]):
        self._seed, self._first = seed, first
        self._given: Mapping[str, Any] = {}
        self._sampler: BaseSampler = TPESampler(seed=seed)

    def before_trial(self, study, trial) -> None:
        # Optuna's own first heartbeat comes after the drawing; a worker killed while it draws would
        # leave a trial that no one could take for dead.
        study._storage.record_heartbeat(trial._trial_id)
        before = standing(study).before(trial.number)
        self._given = {} if before else self._first
        self._sampler = TPESampler(seed=mixed(self._seed, before) >> 32)
        self._sampler.before_trial(study, trial)

    def infer_relative_search_space(self, study, trial):
        return {} if self._given else self._sampler.infer_relative_search_space(study, trial)

    def sample_relative(self, study, trial, search_space):
        return self._sampler.sample_relative(study, trial, search_space)

    def sample_independent(self, study, trial, param_name, param_distribution):
        if param_name in self._given:
            return self._given[param_name]
        return self._sampler.sample_independent(study, trial, param_name, param_distribution)

    def after_trial(self, study, trial, state, values) -> None:
        self._sampler.after_trial(study, trial, state, values)


@dataclass(frozen=True)
class Standing:
    """What has become of the trials."""

    trials: list[FrozenTrial]

    @property
    def counting(self) -> list[FrozenTrial]:
        retried = {
            n for t in self.trials for n in RetryHeartbeatStaleTrialCallback.retry_history(t)
        }
        return [
            trial
            for trial in self.trials
            if trial.number not in retried
            and "surplus" not in trial.user_attrs
            and not _cut_off(trial)
        ]

    @property
    def done(self) -> list[FrozenTrial]:
        return [trial for trial in self.counting if trial.state.is_finished()]

    @property
    def running(self) -> list[FrozenTrial]:
        return [trial for trial in self.counting if trial.state == TrialState.RUNNING]

    def before(self, number: int) -> int:
        """How many trials of a lower number are done, run, or are queued again."""
        return sum(trial.number < number for trial in self.counting)

    def of(self, state: TrialState) -> list[FrozenTrial]:
        return [trial for trial in self.done if trial.state == state]


def _cut_off(trial: FrozenTrial) -> bool:
    """Whether it ended without a reason and is not queued again: there was no room to write either."""
    tried = len(RetryHeartbeatStaleTrialCallback.retry_history(trial))
    failed = trial.state == TrialState.FAIL and "why" not in trial.user_attrs
    return failed and tried < RETRIES


def standing(study: optuna.Study) -> Standing:
    """TrainingError: a trial is complete and has no value, which no sweep has written."""
    trials = study.get_trials(deepcopy=False)
    for trial in trials:
        complete = trial.state == TrialState.COMPLETE
        if complete and not (trial.values and all(map(math.isfinite, trial.values))):
            raise TrainingError(
                f"the study {shown(study.study_name)} is damaged: its trial {trial.number} is complete "
                "without a value"
            )
    return Standing(trials)


def open_study(
    place: str | RDBStorage,
    name: str,
    direction: str,
    pruner: optuna.pruners.BasePruner | None,
    seed: int,
    first: Mapping[str, Any] | None = None,
) -> optuna.Study:
    """The study of that name in the database, made if it is not there; see `database_errors`.

    Args:
        place: The database or its URL.
        pruner: By default MedianPruner, from the fourth look on and after five whole runs.
        first: The parameters of the first trial.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    # Heartbeats, and pictures by matplotlib: Optuna calls them experimental.
    warnings.filterwarnings("ignore", category=ExperimentalWarning)
    return optuna.create_study(
        storage=_storage(place) if isinstance(place, str) else place,
        study_name=name,
        direction=direction,
        sampler=SeededTPE(seed, first or {}),
        pruner=pruner or optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=3),
        load_if_exists=True,
    )


def _read_url(url: str) -> sqlalchemy.URL:
    """ArgumentError or ValueError: it is no URL, or where its password ends is not certain."""
    place = sqlalchemy.make_url(url)
    if place.password is not None and url.count("@") > 1:
        raise sqlalchemy.exc.ArgumentError("an @ within a password is written %40")
    return place


def shown_url(url: str) -> str:
    """The URL without its password and the values in its query; of one that cannot be read, nothing."""
    try:
        place = _read_url(url)
        shown = place.set(query=dict.fromkeys(place.query, "***"))
        return shown.render_as_string(hide_password=True).replace("%2A%2A%2A", "***")
    except (sqlalchemy.exc.ArgumentError, ValueError):
        return "that --sweep.storage names"


def hide_secrets(text: str, url: str) -> str:
    """`text` without what `shown_url` hides of the URL: drivers repeat in their messages what they got."""
    try:
        place = _read_url(url)
        values = [x for many in place.normalized_query.values() for x in many]
        secrets = [place.password, place.render_as_string(hide_password=False), *values]
    except (sqlalchemy.exc.ArgumentError, ValueError):
        # What cannot be read may hold a password anywhere.
        secrets = re.split(r"[/:@?&=;\s]+", url)
    for secret in sorted({url, *filter(None, secrets)}, key=len, reverse=True):
        if len(secret) > 2:
            for form in {secret, repr(secret)[1:-1], quote_plus(secret), quote(secret)}:
                text = text.replace(form, "***")
    return text


def _storage(url: str) -> RDBStorage:
    try:
        place = sqlalchemy.make_url(url)
    except ValueError as error:  # a port that is no number
        raise sqlalchemy.exc.ArgumentError(str(error)) from error
    engine = {}
    if place.get_backend_name() == "sqlite":
        # One worker writes at a time; the others wait, at most so many seconds.
        engine = {"connect_args": {"timeout": 60}}
        folder = Path(place.database or "").parent
        if not folder.is_dir():
            raise FileNotFoundError(errno.ENOENT, "there is no such folder", str(folder))
    for attempt in range(1, 6):
        try:
            return RDBStorage(
                url.replace("{", "{{").replace("}", "}}"),  # Optuna would fill them in
                engine_kwargs=engine,
                heartbeat_interval=HEARTBEAT,
                grace_period=GRACE,
                heartbeat_stale_trial_callback=RetryHeartbeatStaleTrialCallback(RETRIES),
            )
        except sqlalchemy.exc.DBAPIError:
            # Two workers that start at once both make the tables; the later one finds them.
            if attempt == 5:
                raise
            time.sleep(0.2 * attempt)
    raise AssertionError


def is_new_file(url: str) -> bool:
    """Whether it names an SQLite file that is not there yet."""
    place = sqlalchemy.make_url(url)
    return place.get_backend_name() == "sqlite" and not os.path.lexists(place.database or ".")


@contextlib.contextmanager
def database_errors(url: str):
    """What goes wrong with the database, when it is opened or later, as a TrainingError."""
    try:
        yield
    except DATABASE_ERRORS as error:
        raise _database_error(url, error) from error
    except OSError as error:
        file = f" ({shown(error.filename)})" if error.filename else ""
        raise DiskError(
            f"the database {shown_url(url)}: {error.strerror or error}{file}"
        ) from error


def _database_error(url: str, error: Exception) -> TrainingError:
    cause = (error.__cause__ if isinstance(error, StorageInternalError) else None) or error
    reason = str(getattr(cause, "orig", None) or cause).strip() or type(cause).__name__
    kind = DiskError if NO_ROOM in reason or "disk I/O error" in reason else TrainingError
    return kind(f"the database {shown_url(url)}: {hide_secrets(reason.splitlines()[0], url)}")


@contextlib.contextmanager
def going_on(subcommand: str, args: Sequence[str], url: str, standing: Callable[[], str]):
    """Says, of what interrupts the trials, how to go on.

    Args:
        args: The command's.
        url: The database's.
        standing: "3 of 4 trials are done".
    """

    def how() -> str:
        words = [arg.replace(url, shown_url(url)) for arg in args]
        return f"{standing()}; go on with: {shlex.join(['python', 'train.py', subcommand, *words])}"

    try:
        with database_errors(url):
            yield
    except (Interrupted, KeyboardInterrupt) as stop:
        raise Interrupted(f"interrupted; {how()}", getattr(stop, "status", 130)) from None
    except DiskError as error:
        raise DiskError(f"{error}; {how()}") from error


def work(
    study: optuna.Study,
    objective: Callable[[optuna.Trial], float],
    n_trials: int,
    say: Callable[[str], None],
    *after: Callable[[optuna.Study, FrozenTrial], None],
) -> None:
    """Runs trials until, over all workers, `n_trials` are done; calls each of `after` when one has ended.

    Raises:
        Interrupted: by Ctrl-C; the trial is queued again.
        DiskError: a disk took no more; the trial is queued again.
        TrainingError: every trial fails.
    """
    waits = False
    failures = 0
    with cheap_collection():
        while len((now := standing(study)).done) < n_trials:
            if len(now.done) + len(now.running) < n_trials:
                failures = failures + 1 if _one_trial(study, objective, after) else -n_trials
                if failures == HOPELESS:
                    why = standing(study).of(TrialState.FAIL)[-1].user_attrs.get("why")
                    raise TrainingError(f"the first {HOPELESS} trials failed, the last with: {why}")
                waits = False
            else:
                if not waits:
                    numbers = ", ".join(str(trial.number) for trial in now.running)
                    say(f"waiting for other workers' trials: {numbers}")
                waits = True
                time.sleep(LOOK)
                fail_stale_trials(study)


def _one_trial(
    study: optuna.Study,
    objective: Callable[[optuna.Trial], float],
    after: Sequence[Callable[[optuna.Study, FrozenTrial], None]],
) -> bool:
    """Whether it failed."""
    started: list[int] = []

    def watched(trial: optuna.Trial) -> float:
        started.append(trial.number)
        return objective(trial)

    try:
        study.optimize(watched, n_trials=1, catch=(TrialFailed,), callbacks=after)
    except (Interrupted, KeyboardInterrupt, DiskError) as stop:
        if started:
            _requeue(study, started[0])
        raise Interrupted if isinstance(stop, KeyboardInterrupt) else stop from None
    except (
        AssertionError
    ) as error:  # Optuna's, where the database has not taken how the trial ended
        cause = cause_of(error, DATABASE_ERRORS) or error
        raise cause from cause.__cause__
    finally:
        forget()
    return bool(started) and _trial(study, started[0]).state == TrialState.FAIL


def _trial(study: optuna.Study, number: int) -> FrozenTrial:
    return next(t for t in study.get_trials(deepcopy=False) if t.number == number)


def _requeue(study: optuna.Study, number: int) -> None:
    if not _trial(study, number).state.is_finished():
        study.tell(number, state=TrialState.FAIL)
    if _trial(study, number).state == TrialState.FAIL:
        RetryHeartbeatStaleTrialCallback()(study, _trial(study, number))


def drop_unfinished(study: optuna.Study) -> None:
    """Ends the trials that are queued or run; of a study whose only worker is this one, a dead one's."""
    for trial in study.get_trials(deepcopy=False):
        if not trial.state.is_finished():
            study._storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)


def is_surplus(study: optuna.Study, number: int, n_trials: int) -> bool:
    """Whether a worker began the last trial at the same moment as this one."""
    return standing(study).before(number) >= n_trials
