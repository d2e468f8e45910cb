"""The table and the picture of memory and speed of whole models, from benchmarks/results.

python benchmarks/picture.py [--plot docs/images/memory.png]
"""

import argparse
import json
import math
import pathlib

RESULTS = pathlib.Path(__file__).parent / "results"


def rows(name, precision):
    """The rows of results/<name>.json of that precision on a CPU, by model."""
    found = json.loads((RESULTS / f"{name}.json").read_text())["rows"]
    return {r["model"]: r for r in found if (r["precision"], r["device"]) == (precision, "cpu")}


def ratio(row, kind, figure):
    of, base = row["contestants"].get(kind, {}).get(figure), row["contestants"]["torch.nn"][figure]
    return None if of is None else of / base


def geometric(values):
    return math.exp(sum(map(math.log, values)) / len(values))


def cell(value):
    return "–" if value is None else f"{value:.2f}"


def lines(precision):
    held, times = rows("memory", precision), rows("speed", precision)
    columns = []
    for name, row in held.items():
        theirs = row["contestants"]["torch.nn"]
        step = times[name]["contestants"] if name in times else {}
        columns.append(
            [
                ratio(row, "manualnn", "held"),
                theirs["floor"] / theirs["held"],
                ratio(row, "manualnn", "peak"),
                ratio(row, "checkpoint", "held"),
                ratio(row, "torch.compile", "held"),
                step.get("manualnn", {}).get("ratio"),
                step.get("checkpoint", {}).get("ratio"),
            ]
        )
        mib = theirs["held"] / row["batch"] / 2**20
        yield f"| {name} | {mib:.1f} | " + " | ".join(map(cell, columns[-1])) + " |"
    means = [geometric(c) if None not in c else None for c in zip(*columns, strict=True)]
    yield "| geometric mean | | " + " | ".join(map(cell, means)) + " |"


def plot(path, precision="fp32"):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    held = rows("memory", precision)
    figure, axes = pyplot.subplots(figsize=(8, 4), layout="constrained")
    for i, (kind, label) in enumerate(
        (("torch.nn", "torch.nn"), ("manualnn", "manualnn.convert"), ("floor", "floor"))
    ):
        values = []
        for row in held.values():
            theirs = row["contestants"]["torch.nn"]
            kept = theirs["floor"] if kind == "floor" else row["contestants"][kind]["held"]
            values.append(kept / row["batch"] / 2**20)
        at = [3.6 * n + i for n in range(len(values))]
        axes.barh(at, values, height=0.95, label=label, color=("#b0b0b0", "#1f6fb2", "#9fd0a0")[i])
    axes.set_yticks([3.6 * n + 1 for n in range(len(held))], list(held))
    axes.invert_yaxis()
    axes.set_xlabel(f"MiB saved for backward, an image of 224×224, {precision}")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=110)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--plot", metavar="FILE")
    arguments = parser.parse_args()
    for precision in ("fp32", "bf16"):
        if rows("memory", precision):
            print(precision, *lines(precision), sep="\n")
    if arguments.plot:
        plot(arguments.plot)


if __name__ == "__main__":
    main()
