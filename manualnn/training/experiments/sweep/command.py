"""`train.py sweep`: its own options, the sections `search:` and `sweep:`, and what is checked first."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import optuna
import yaml
from jsonargparse import (
    ActionConfigFile,
    ArgumentError,
    ArgumentParser,
    DefaultHelpFormatter,
    Namespace,
    get_loader,
)
from optuna.pruners import BasePruner

from manualnn.training.errors import TrainingError
from manualnn.training.experiments.runs import (
    LOSS_OPTIONS,
    UNREADABLE,
    FitRun,
    check_base,
    differences,
    experiment_of,
    hush,
    options,
    rehearse,
)
from manualnn.training.experiments.study import (
    database_errors,
    going_on,
    is_new_file,
    open_study,
    shown_url,
    standing,
    work,
)
from manualnn.training.experiments.sweep import report
from manualnn.training.experiments.sweep.finals import Finals
from manualnn.training.experiments.sweep.space import (
    Axis,
    Branches,
    params_of,
    parse_space,
    star,
    suggest,
)
from manualnn.training.experiments.trial import Objective
from manualnn.training.model.metrics import better
from manualnn.training.run.checkpoints import well_formed
from manualnn.training.run.configuration import check_experiment
from manualnn.training.text.messages import explain
from manualnn.training.text.names import brief, shown

USAGE = """Searches the options under which fit does best, over many runs of it.

The configuration is one of fit's with a section `search:` (in the same file, or in a second
--config): options by their names on the command line, and what each may be.

  search:
    optimizer.lr: {low: 1e-3, high: 1, log: true}
    data.batch_size: [32, 64, 128]
    model.activation: [relu, tanh, gelu]
    model.hidden_units: {layers: {low: 1, high: 3}, units: [64, 128, 256]}

Every option of fit may be given too and holds for all runs; --search.NAME VALUE adds to the
section. The same command goes on with a study that was interrupted; on other machines, with
--sweep.storage the URL of a database that all reach, it is one more worker.
"""


def run(args: Sequence[str]) -> None:
    """Runs a sweep, or goes on with it.

    Raises:
        Interrupted: by Ctrl-C; the message says how to go on.
        TrainingError: a mistake of the user's; nothing has been trained.
    """
    hush()
    base, section, given = read(args)
    template = rehearse(base, data=True)
    check_base(template, base, "a sweep")
    axes = parse_space(section, lambda point: _accepts(template, base, point))
    config = template.config.fit
    monitor, n_trials = config.checkpoint.monitor, given.n_trials
    _check_ends(base, axes, monitor)
    direction = f"{config.checkpoint.mode or better(monitor)}imize"
    name = given.study or f"{config.experiment or config.data.dataset}-sweep"
    check_experiment(name, "--sweep.study")
    folder = (config.trainer.logger.init_args.save_dir, name)
    url = given.storage or f"sqlite:///{Path(*folder, 'study.db')}"
    if not given.storage:
        Path(*folder).mkdir(parents=True, exist_ok=True)
    place = shown_url(url)
    first = _first(axes, template)
    with well_formed(f"the database {place}"), database_errors(url):
        _check_folder(url, Path(*folder), place)
        study = open_study(url, name, direction, given.pruner, config.seed_everything, first)
        settings = {"search": section, **experiment_of(template)}
        _check_same(study, settings, direction, Path(*folder), place)
        done = len(standing(study).done)
    say(f"study {name} in {place}: {done} of {n_trials} trials done")

    def values(trial: optuna.Trial) -> dict[str, Any]:
        return suggest(axes, trial)

    def now() -> str:
        return f"{len(standing(study).done)} of {n_trials} trials are done"

    finals = Finals(study, first, given.finalists, given.seeds)
    with going_on("sweep", args, url, now):
        objective = Objective(base, values, monitor, folder, n_trials, say)
        work(study, objective, n_trials, say, finals.tidy)
        finals.run(base, axes, template, folder, say)
    with well_formed(f"the database {place}"), database_errors(url):
        report.write(study, finals, axes, base, template, Path(*folder))


def _first(axes: Sequence[Axis | Branches], template: FitRun) -> dict[str, Any]:
    """The parameters of the first trial: those of the configuration itself."""
    params, outside = params_of(axes, template.plain(template.config.fit))
    if not outside:
        return params
    names = ", ".join(outside)
    say(f"note: the configuration itself is no trial: its {names} is not among the values searched")
    return {}


def _check_folder(url: str, folder: Path, place: str) -> None:
    """As `_check_same`, before a file is made. A worker that begins now makes it before it has a trial."""
    if any(folder.glob("trial_*")) and is_new_file(url):
        raise _another_study(folder, place)


def _another_study(folder: Path, place: str) -> TrainingError:
    return TrainingError(
        f"{folder} holds trials of a study that is not in {place}: remove them, or name another --sweep.study"
    )


def _check_same(
    study: optuna.Study, here: dict[str, Any], direction: str, folder: Path, place: str
) -> None:
    """Trials of two experiments cannot be set beside each other: each study has one."""
    there = study.user_attrs.get("experiment")
    if there is None:
        if any(folder.glob("trial_*")):
            raise _another_study(folder, place)
        study.set_user_attr("experiment", here)
        return
    what = differences(here, there)
    if what or study.direction.name.lower() != direction:
        raise TrainingError(
            f"the study {study.study_name} was begun with other settings: {what}. Go on with those, "
            "or name another --sweep.study"
        )


def say(line: str) -> None:
    # At once, also into a file: a sweep is watched for hours.
    print(brief(shown(line)), flush=True)


def read(args: Sequence[str]) -> tuple[list[str], dict[str, Any], Namespace]:
    """(what is fit's, the section `search:`, the options of `sweep`).

    Raises:
        TrainingError: a file cannot be read, or an option of `sweep` has no such value.
    """
    parser = _parser()
    if "--help" in args or "-h" in args:
        parser.print_help()
        raise SystemExit(0)
    base, search, sweep = [], {}, []
    rest = list(args)
    while rest:
        name, equals, value = rest.pop(0).partition("=")
        ours = name.startswith(("--sweep.", "--search.")) or name in ("--config", "-c")
        if not ours:
            base.append(f"{name}{equals}{value}")
            continue
        if not equals:
            if not rest:
                raise TrainingError(f"{name} needs a value")
            value = rest.pop(0)
        if name in ("--config", "-c"):
            content = _read_file(value)
            search.update(content.pop("search", None) or {})
            if "sweep" in content:
                sweep.append(f"--config={yaml.safe_dump({'sweep': content.pop('sweep')})}")
            base.append(f"--config={yaml.safe_dump(content, sort_keys=False)}")
        elif name.startswith("--search."):
            search[name.removeprefix("--search.")] = _read_yaml(value, name)
        else:
            sweep.append(f"{name}={value}")
    try:
        settings = parser.instantiate_classes(parser.parse_args(sweep)).sweep
    except ArgumentError as error:
        known = [f"--{name}" for name in parser.get_defaults().keys()]
        raise TrainingError(explain(error, known)) from error
    except (TypeError, ValueError) as error:
        raise TrainingError(f"sweep: {error}") from error
    for name, least in (("n_trials", 1), ("finalists", 0), ("seeds", 1)):
        if settings[name] < least:
            raise TrainingError(f"--sweep.{name} {settings[name]}: needed is {least} at least")
    return base, search, settings


class _Formatter(argparse.RawDescriptionHelpFormatter, DefaultHelpFormatter):
    """Leaves the lines of USAGE as they are."""


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="train.py sweep", usage="train.py sweep --config FILE [options of fit] [options below]",
        description=USAGE, exit_on_error=False, formatter_class=_Formatter,
    )  # fmt: skip
    parser.add_argument("-c", "--config", action=ActionConfigFile, help="a configuration of fit")
    parser.add_argument("--sweep.n_trials", type=int, default=30, help="runs, over all workers")
    parser.add_argument(
        "--sweep.finalists",
        type=int,
        default=0,
        help="the best so many trials, and the configuration itself, are trained again with other "
        "seeds and other validation images; the mean decides (default: 0, none)",
    )
    parser.add_argument("--sweep.seeds", type=int, default=3, help="runs of each finalist")
    parser.add_argument(
        "--sweep.storage",
        type=str | None,
        default=None,
        help="URL of a database: sqlite:///FILE, mysql://..., postgresql://...; by default an "
        "SQLite file beside the runs",
    )
    parser.add_argument(
        "--sweep.study",
        type=str | None,
        default=None,
        help="the study's name and folder in logs/; by default EXPERIMENT-sweep",
    )
    parser.add_argument(
        "--sweep.pruner",
        type=BasePruner | None,
        default=None,
        help="ends bad runs early: a class of optuna.pruners; by default MedianPruner, from the "
        "fourth look on and after five whole runs; NopPruner ends none",
    )
    return parser


def _read_file(path: str) -> dict[str, Any]:
    try:
        text = Path(path).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no text"
        raise TrainingError(f"the configuration {path} cannot be read: {reason}") from error
    content = _read_yaml(text, path)
    if not isinstance(content, dict):
        raise TrainingError(f"the configuration {path} is no mapping of options to values")
    for name in ("search", "sweep"):
        if not isinstance(content.get(name, {}), dict):
            raise TrainingError(f"{path}: the section {name} is no mapping of options to values")
    return content


def _read_yaml(text: str, where: str) -> Any:
    try:
        # fit's own loader, for which 1e-3 is a number; YAML 1.1 asks for a point.
        return get_loader("yaml")(text)
    except UNREADABLE as error:
        raise TrainingError(f"{where} is no YAML: {' '.join(str(error).split())}") from error


def _accepts(template: FitRun, base: list[str], point: dict[str, Any]) -> bool:
    try:
        template.chosen([*base, *options(point)])
    except TrainingError:
        return False
    return True


def _check_ends(base: list[str], axes: Sequence[Axis | Branches], monitor: str) -> None:
    """Builds a run at each end of each axis; what the types alone allow may still be refused."""
    for axis in axes:
        if monitor == "val/loss" and axis.name in LOSS_OPTIONS:
            raise TrainingError(
                f"search: {axis.name} changes what val/loss measures; judge by "
                "--checkpoint.monitor val/acc"
            )
    for point in star(axes):
        data = any(name.startswith("data.") for name in point)
        rehearse([*base, *options(point)], where="search: ", data=data)
