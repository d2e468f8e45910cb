"""What a comparison leaves: a table, the learning curves in one picture."""

import math
import statistics
from collections.abc import Sequence
from pathlib import Path

from manualnn.tools.files import replacing
from manualnn.tools.palette import SERIES
from manualnn.training.experiments.compare.variants import Variant
from manualnn.training.experiments.runs import spread
from manualnn.training.run.results import print_rows, write_csv
from manualnn.training.text.messages import quote
from manualnn.training.text.names import shown

COLUMNS = ("val/acc", "val/loss", "train/loss", "test/acc", "test/loss")


def write(variants: Sequence[Variant], monitor: str, folder: Path) -> None:
    """Prints the table and writes runs.csv and curves.png."""
    columns = columns_of(variants, monitor)
    print_variants(variants, columns)
    names = [*columns, "epoch", "seconds"]
    rows = [["variant", "seed", *names, "why"]]
    for variant in variants:
        for seed in {**variant.found, **variant.lost}:
            found = variant.found.get(seed, {})
            rows.append([variant.name, seed, *map(found.get, names), variant.lost.get(seed)])
    write_csv(folder / "runs.csv", rows)
    draw_curves(variants, monitor, folder / "curves.png")
    print_rows(
        [
            ("picture", folder / "curves.png"),
            ("each run", folder / "runs.csv"),
            ("curves", f"tensorboard --logdir {quote(folder)}"),
        ]
    )


def columns_of(variants: Sequence[Variant], monitor: str) -> list[str]:
    """What the runs have, and what they are judged by first."""
    wanted = dict.fromkeys((monitor, *COLUMNS, monitor.replace("val/", "test/")))
    present = {name for variant in variants for found in variant.found.values() for name in found}
    ours = [name for name in COLUMNS if name in present]
    return ours if monitor in ours else [name for name in wanted if name in present]


def print_variants(variants: Sequence[Variant], columns: Sequence[str]) -> None:
    """A row a variant: mean and standard deviation over its seeds, of the best epoch."""
    rows = [["", *columns, "best epoch", "seconds", "runs"]]
    for variant in variants:
        row = [variant.name]
        for column in columns:
            values = [found[column] for found in variant.found.values() if column in found]
            row.append(spread(values, percent=not column.endswith("loss")))
        for column in ("epoch", "seconds"):
            values = [found[column] for found in variant.found.values()]
            row.append(f"{statistics.fmean(values):.1f}" if values else "–")
        lost = f", {len(variant.lost)} lost" if variant.lost else ""
        rows.append([*row, f"{len(variant.found)}{lost}"])
    print_rows(rows, right=range(1, len(rows[0])))


def draw_curves(variants: Sequence[Variant], monitor: str, path: Path) -> None:
    """Learning curves: a line is a variant's mean over its seeds, its band one deviation."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter

    drawn = [variant for variant in variants if variant.curves]
    second = "val/acc" if monitor == "val/loss" else monitor
    names = (
        ["train/loss", "val/loss", second] if second != "val/loss" else ["train/loss", "val/loss"]
    )
    figure = Figure(figsize=(4.2 * len(names), 3.9), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, name in zip(figure.subplots(1, len(names)), names, strict=True):
        for i, variant in enumerate(drawn):
            epochs, mean, deviation = mean_curve(variant, name)
            if not epochs:
                continue
            colour = SERIES[i % len(SERIES)]
            style = ("-", "--", ":")[i // len(SERIES) % 3]
            axes.plot(epochs, mean, style, color=colour, linewidth=1.6, label=shown(variant.name))
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
    with replacing(path) as file:
        figure.savefig(file, dpi=130)


def mean_curve(variant: Variant, name: str) -> tuple[list[float], list[float], list[float]]:
    """(epochs, means, deviations) over the seeds, at the epochs that all of them have."""
    by_seed = [dict(curves.get(name, ())) for curves in variant.curves.values()]
    epochs = sorted(set.intersection(*map(set, by_seed))) if by_seed else []
    rows = [[points[epoch] for points in by_seed] for epoch in epochs]
    rows = [row if all(map(math.isfinite, row)) else [math.nan] for row in rows]
    deviations = [statistics.stdev(row) if len(row) > 1 else 0.0 for row in rows]
    return epochs, [statistics.fmean(row) for row in rows], deviations
