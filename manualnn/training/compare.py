"""`train.py compare`: `fit` with several values of an option, with several seeds each."""

import argparse
import csv
import importlib.util
import itertools
import math
import re
import shlex
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import get_loader

from manualnn.training.cli import Interrupted
from manualnn.training.configuration import MISTAKES
from manualnn.training.errors import TrainingError
from manualnn.training.mistakes import one_line
from manualnn.training.runs import (
    Progress,
    Run,
    cheap_collection,
    check_base,
    figures,
    forget,
    hush,
    numbered,
    option_text,
    options,
    out_of_memory,
    rehearse,
)

USAGE = """Runs fit with several values of an option, each with several seeds; prints a table of mean and
standard deviation, and draws the learning curves into one picture.

  train.py compare --config configs/digits.yaml --vary model.activation '[relu, tanh, sigmoid]'
  train.py compare --config configs/digits.yaml --seeds 5 \\
      --variant 'SGD: --optimizer SGD --optimizer.lr 0.1 --optimizer.momentum 0.9' \\
      --variant 'Adam: --optimizer Adam --optimizer.lr 0.001'

Every option of fit may be given too and holds for all runs.
"""
# Told apart by those who see few colours, too (Okabe and Ito 2008).
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
COLUMNS = ("val/acc", "val/loss", "train/loss", "test/acc", "test/loss")


@dataclass
class Variant:
    """What is compared: options of `fit` under a name; and its finished runs, a seed each."""

    name: str
    args: list[str]
    found: dict[int, dict[str, float]] = field(default_factory=dict)  # seed -> figures
    curves: dict[int, dict[str, list[tuple[float, float]]]] = field(default_factory=dict)
    lost: dict[int, str] = field(default_factory=dict)  # seed -> why it has no figures


def main(args: Sequence[str]) -> None:
    """Runs the comparison.

    Raises:
        Interrupted: by Ctrl-C; the table and the picture show the runs that had finished.
        TrainingError: a mistake of the person's, before the first run; or no run finished.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise TrainingError("a comparison needs matplotlib: pip install matplotlib")
    hush()
    chosen, base = _parser().parse_known_args(list(args))
    variants = list(_variants(chosen.vary or [], chosen.variant or []))
    template = rehearse(base, data=True)
    check_base(template, base, "a comparison")
    seed = template.config.fit.seed_everything
    seeds = list(range(seed, seed + chosen.seeds))
    for variant in variants:
        rehearse([*base, *variant.args], where=f"{variant.name}: ", data=True)
    _note_inherited(template, base, variants)
    config = template.config.fit
    logs = config.trainer.logger.init_args.save_dir
    name = f"{config.experiment or config.data.dataset}-compare"
    name = f"{name}/{numbered(Path(logs, name), 'version')}"
    monitor = config.checkpoint.monitor
    interrupted = False
    try:
        # Seed by seed: after a Ctrl-C every variant has about as many runs.
        with cheap_collection():
            for seed, variant in itertools.product(seeds, variants):
                _run(variant, base, seed, name, monitor)
    except (Interrupted, KeyboardInterrupt):
        interrupted = True
    if any(variant.found for variant in variants):
        _report(variants, monitor, Path(logs, name), interrupted)
    if interrupted:
        done = sum(len(variant.found) for variant in variants)
        raise Interrupted(f"interrupted; {done} of {len(seeds) * len(variants)} runs had finished")
    if not any(variant.found for variant in variants):
        raise TrainingError("no run finished")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="train.py compare",
        usage="train.py compare --config FILE [options of fit] --vary OPTION VALUES [--seeds N]",
        description=USAGE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.error = _refuse
    parser.add_argument(
        "--vary", nargs=2, action="append", metavar=("OPTION", "VALUES"),
        help="an option by its name on the command line and a YAML list of values; several: every "
        "combination",
    )  # fmt: skip
    parser.add_argument(
        "--variant", action="append", metavar="'NAME: OPTIONS'", help="options of fit under a name"
    )
    parser.add_argument("--seeds", type=_count, default=3, help="runs of each variant (default: 3)")
    return parser


def _refuse(message: str) -> None:
    raise TrainingError(message.removeprefix("argument "))


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: needed is a whole number from 1")
    return int(text)


def _variants(vary: Sequence[Sequence[str]], named: Sequence[str]) -> Iterator[Variant]:
    """Every combination of a value of each `--vary`, and of a `--variant` where there are any."""
    axes: list[list[Variant]] = [[_named(text) for text in named]] if named else []
    # A class before its options, whichever was named first.
    vary = sorted(vary, key=lambda pair: pair[0].replace(".init_args", "").count("."))
    axes += [list(_varied(name, text)) for name, text in vary]
    if not axes:
        raise TrainingError(
            "nothing to compare: --vary model.activation '[relu, tanh]', or --variant 'NAME: OPTIONS'"
        )
    taken = set()
    for parts in itertools.product(*axes):
        variant = Variant(
            ", ".join(part.name for part in parts), [arg for part in parts for arg in part.args]
        )
        if variant.name in taken:
            raise TrainingError(f"two variants are called {variant.name}")
        taken.add(variant.name)
        yield variant
    if len(taken) == 1:
        raise TrainingError(
            f"there is one variant alone, {variant.name}: nothing to compare it with"
        )


def _named(text: str) -> Variant:
    name, colon, rest = text.partition(":")
    args = shlex.split(rest)
    if not (colon and name.strip() and args and args[0].startswith("-")):
        raise TrainingError(
            f"--variant {text!r}: needed is 'NAME: OPTIONS', such as "
            "'Adam: --optimizer Adam --optimizer.lr 0.001'"
        )
    return Variant(name.strip(), args)


def _varied(name: str, text: str) -> Iterator[Variant]:
    name = name.removeprefix("--")
    if name == "seed_everything":
        raise TrainingError("--vary seed_everything: --seeds N runs each variant with N seeds")
    try:
        values = get_loader("yaml")(text)
    except yaml.YAMLError as error:
        raise TrainingError(f"--vary {name} {text}: that is no YAML") from error
    if not isinstance(values, list) or not values:
        raise TrainingError(f"--vary {name} {text}: needed is a list, such as '[relu, tanh]'")
    for value in values:
        yield Variant(_label(name, value), options({name: value}))


def _label(name: str, value: Any) -> str:
    """relu, or batch_size 32: words speak for themselves, numbers do not."""
    if isinstance(value, dict) and "class_path" in value:
        given = value.get("init_args", {}).items()
        inner = ", ".join(f"{key}={v}" for key, v in given)
        short = str(value["class_path"]).rpartition(".")[2]
        return f"{short}({inner})" if inner else short
    if isinstance(value, str) and not value.replace(".", "").isdigit():
        return value.rpartition(".")[2]
    return f"{name.rpartition('.')[2]} {option_text(value)}"


def _note_inherited(template: Run, base: list[str], variants: list[Variant]) -> None:
    """Another optimiser keeps the configuration's learning rate, which rarely suits it."""
    ours = template.config.fit.optimizer
    for variant in variants:
        theirs = template.chosen([*base, *variant.args]).optimizer
        told = any(
            re.match(r"--optimizer\S*lr\b", arg) or "init_args" in arg for arg in variant.args
        )
        lr = theirs.init_args.get("lr")
        if theirs.class_path != ours.class_path and lr == ours.init_args.get("lr") and not told:
            print(
                f"note: {variant.name} runs with the configuration's --optimizer.lr {lr}; "
                "--variant gives each optimiser its own"
            )


def _run(variant: Variant, base: list[str], seed: int, name: str, monitor: str) -> None:
    progress = Progress()
    args = [*base, *variant.args, f"--seed_everything={seed}"]
    started = time.perf_counter()
    folder = (f"{name}/{_file_name(variant.name)}", f"seed_{seed}")
    try:
        found = figures(Run(args, [progress], folder=folder), progress)
    except (RuntimeError, *MISTAKES) as error:
        if isinstance(error, RuntimeError) and not (
            out_of_memory(error) or isinstance(error, MISTAKES)
        ):
            raise
        variant.lost[seed] = one_line(error)
        print(f"{variant.name}, seed {seed}: {one_line(error)}", flush=True)
        return
    finally:
        forget()
    found["seconds"] = time.perf_counter() - started
    variant.found[seed], variant.curves[seed] = found, progress.curves
    print(f"{variant.name}, seed {seed}: {monitor} {found[monitor]:.4f}", flush=True)


def _file_name(name: str) -> str:
    return re.sub(r"[^\w.=+-]+", "_", name).strip("_.") or "variant"


def _report(variants: list[Variant], monitor: str, folder: Path, interrupted: bool) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    print_table(variants)
    with (folder / "runs.csv").open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        columns = [column for column in COLUMNS if _present(variants, column)]
        rows.writerow(["variant", "seed", *columns, "epoch", "seconds", "why"])
        for variant in variants:
            for seed, found in variant.found.items():
                named = [found.get(column) for column in (*columns, "epoch", "seconds")]
                rows.writerow([variant.name, seed, *named, None])
            for seed, why in variant.lost.items():
                rows.writerow([variant.name, seed, *[None] * (len(columns) + 2), why])
    draw(variants, monitor, folder / "curves.png")
    print()
    print(f"  picture    {folder / 'curves.png'}")
    print(f"  each run   {folder / 'runs.csv'}")
    print(f"  curves     tensorboard --logdir {shlex.quote(str(folder))}")


def _present(variants: list[Variant], column: str) -> bool:
    return any(column in found for variant in variants for found in variant.found.values())


def print_table(variants: list[Variant]) -> None:
    """A row a variant: mean and standard deviation over its seeds, of the best epoch."""
    columns = [column for column in COLUMNS if _present(variants, column)]
    rows = [["", *columns, "best epoch", "seconds", "runs"]]
    for variant in variants:
        row = [variant.name]
        for column in columns:
            values = [found[column] for found in variant.found.values() if column in found]
            row.append(spread(values, percent=column.endswith("acc")))
        for column in ("epoch", "seconds"):
            values = [found[column] for found in variant.found.values()]
            row.append(f"{statistics.fmean(values):.1f}" if values else "–")
        lost = f", {len(variant.lost)} lost" if variant.lost else ""
        rows.append([*row, f"{len(variant.found)}{lost}"])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    print()
    for first, *rest in rows:
        cells = "  ".join(c.rjust(w) for c, w in zip(rest, widths[1:], strict=True))
        print(f"  {first:<{widths[0]}}  {cells}")


def spread(values: Sequence[float], percent: bool = False) -> str:
    """ "98.43 % ± 0.07": the mean, and the standard deviation with n - 1; no deviation of one."""
    if not values:
        return "–"
    scale, digits = (100, 2) if percent else (1, 4)
    unit = " %" if percent else ""
    mean = f"{scale * statistics.fmean(values):.{digits}f}{unit}"
    if len(values) == 1:
        return mean
    return f"{mean} ± {scale * statistics.stdev(values):.{digits}f}"


def draw(variants: list[Variant], monitor: str, path: Path) -> None:
    """Learning curves: a line is a variant's mean over its seeds, its band one deviation."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter

    shown = [variant for variant in variants if variant.curves]
    second = "val/acc" if monitor == "val/loss" else monitor
    names = (
        ["train/loss", "val/loss", second] if second != "val/loss" else ["train/loss", "val/loss"]
    )
    figure = Figure(figsize=(4.2 * len(names), 3.9), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, name in zip(figure.subplots(1, len(names)), names, strict=True):
        for i, variant in enumerate(shown):
            epochs, mean, deviation = mean_curve(variant, name)
            if not epochs:
                continue
            colour = COLOURS[i % len(COLOURS)]
            style = ("-", "--", ":")[i // len(COLOURS) % 3]
            axes.plot(epochs, mean, style, color=colour, linewidth=1.6, label=variant.name)
            low = [m - d for m, d in zip(mean, deviation, strict=True)]
            high = [m + d for m, d in zip(mean, deviation, strict=True)]
            if name.endswith("loss"):  # a logarithm has no place for less than nothing
                low = [max(value, m / 4) for value, m in zip(low, mean, strict=True)]
            axes.fill_between(epochs, low, high, color=colour, alpha=0.15, linewidth=0)
        axes.set_title(name, loc="left")
        axes.set_xlabel("epoch")
        if name.endswith("loss"):
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter(NullFormatter())
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", which="both", alpha=0.2)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside upper center", ncols=min(len(labels), 6), frameon=False
    )
    figure.savefig(path, dpi=130)


def mean_curve(variant: Variant, name: str) -> tuple[list[float], list[float], list[float]]:
    """(epochs, means, deviations) over the seeds, at the epochs that all of them have."""
    by_seed = [dict(curves.get(name, ())) for curves in variant.curves.values()]
    epochs = sorted(set.intersection(*map(set, by_seed))) if by_seed else []
    rows = [[points[epoch] for points in by_seed] for epoch in epochs]
    rows = [row if all(map(math.isfinite, row)) else [math.nan] for row in rows]
    deviations = [statistics.stdev(row) if len(row) > 1 else 0.0 for row in rows]
    return epochs, [statistics.fmean(row) for row in rows], deviations
