"""The figures on the front page and beside the aims are those that were measured; its links lead somewhere."""

import json
import re
import statistics
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
FILES = [p.name for p in sorted(ROOT.glob("*.md"))]


@pytest.fixture
def script(monkeypatch):
    """Imports a benchmark's script."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return lambda name: __import__(name)


def results(name):
    return json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())["rows"]


def cells(page, first):
    """The rows of a table, as lists of cells, below the head that begins with ``first``."""
    lines = (ROOT / page).read_text().replace("\N{NO-BREAK SPACE}", " ").splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(f"| {first}"))
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            return rows
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


def test_it_is_short():
    assert len(README.splitlines()) <= 160


@pytest.mark.parametrize("name", FILES)
def test_links_and_pictures_are_there(name):
    for target in re.findall(r"\]\(([^)#]+)", (ROOT / name).read_text()):
        assert target.startswith("https://") or (ROOT / target).exists(), target


def test_right_counts_the_first_column_of_the_support_matrix():
    rows = cells("docs/support.md", "| derivatives")
    counted = [row[1] for row in rows if row[1] != "–"]
    assert all(count.isdigit() for count in counted), "not all pass"
    total = f"{sum(map(int, counted)):,}"
    assert f"{total} of {total} such tests pass" in README


def test_readable_counts_the_lines_of_the_activations(script):
    from manualnn import Activation

    lines = [n for cls, n in script("lines").hand_written().values() if issubclass(cls, Activation)]
    said = f"{statistics.median(lines):g} lines an activation, the median of {len(lines)}"
    assert said in README


def test_cheap_is_the_last_line_of_the_table_of_models(script):
    mean = list(script("picture").lines("fp32"))[-1]
    _, name, _, held, *_, time, _, _ = (cell.strip() for cell in mean.split("|"))
    assert name == "geometric mean"
    assert f"{held} of torch.nn's bytes, {time} of its time" in README


def test_the_other_figures_of_the_front_page():
    (digits,) = results("accuracy_digits")
    assert (
        f"{digits['mean']:.2%}".replace("%", "\N{NO-BREAK SPACE}%") + " of the test images"
        in README
    )
    assert f"up to {max(r['8x8'] for r in results('ops')):.2f} times" in README


def test_the_report_on_the_front_page_is_what_check_says():
    scope, shown = {}, re.search(r"(?ms)^```text\n(Product.*?)\n  \.\.\.\n```$", README)[1]
    code = next(c for c in re.findall(r"(?ms)^```python\n(.*?)^```$", README) if "Product" in c)
    exec("import torch, manualnn\n" + code.replace("print(", "report = str(").rstrip(), scope)
    said = scope["report"].splitlines()[: len(shown.splitlines())]
    assert said[0] == shown.splitlines()[0]
    plain = [re.sub(r"-?\d+[\d.e+-]*", "#", line) for line in said]
    assert plain == [re.sub(r"-?\d+[\d.e+-]*", "#", line) for line in shown.splitlines()]


def test_the_figures_beside_the_aims():
    """Those of a network, an epoch and the accuracies are benchmarks/results, rounded, row by row."""
    page = "docs/benchmarks.md"
    network = [row[1] for row in cells(page, "784-512-256-10")]
    assert network == [f"{row['ratio']:.2f}" for row in results("network")]
    measured = {row["loop"]: row for row in results("epoch")}
    ours, half, bare, usual = measured.values()
    for cell, row in zip(cells(page, "an epoch of MNIST"), (ours, half, bare, usual), strict=True):
        assert cell[1:3] == [f"{row['seconds']:.2f}", f"{row['ratio']:.2f}".replace("1.00", "1")]
    names = ("digits", "mnist", "mnist_cnn", "mnist_sigmoid_quadratic")
    names += ("mnist_sigmoid_quadratic_unscaled",)
    for cell, name in zip(cells("docs/training.md", "configuration"), names, strict=True):
        (row,) = results(f"accuracy_{name}")
        each = ", ".join(f"{100 * a:.2f}" for a in row["test/acc"])
        said = [
            f"{100 * row['mean']:.2f} %",
            f"{100 * row['standard deviation']:.2f}",
            each,
        ]
        assert cell[1:4] == said, name
