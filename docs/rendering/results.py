"""Tables of the measured figures, from benchmarks/results."""

import ast
import importlib.util
import json
import tempfile
from pathlib import Path

from rendering import plots
from rendering.source import ROOT

RESULTS = ROOT / "benchmarks" / "results"
# Tables of their own, beside the page that explains them.
APART = ("memory", "speed", "speed_64")


def script(name):
    """The script that makes results/<name>.json: of accuracy_mnist it is accuracy.py."""
    for stem in (name, name.partition("_")[0]):
        path = ROOT / "benchmarks" / f"{stem}.py"
        if path.exists():
            return path
    raise LookupError(f"no script makes benchmarks/results/{name}.json")


def described(name):
    """What a script measures and how it is called, as its docstring says."""
    text = ast.get_docstring(ast.parse(script(name).read_text()))
    first, _, rest = text.partition("\n")
    command = next(
        (n.strip() for n in rest.splitlines() if n.strip().startswith("python benchmarks/")),
        f"python benchmarks/{script(name).name}",
    )
    return first, command


def every():
    """Every result that has no page of its own: what was measured, the command, the machine, the table."""
    names = sorted(p.stem for p in RESULTS.glob("*.json") if p.stem not in APART)
    groups = {}
    for name in names:
        groups.setdefault(script(name), []).append(name)
    blocks = []
    for path, members in groups.items():
        title, command = described(members[0])
        found = [json.loads((RESULTS / f"{name}.json").read_text()) for name in members]
        blocks.append(f"## {path.stem.replace('_', ' ').capitalize()}")
        blocks += [title, f"``` sh\n{command}\n```"]
        blocks.append(table([row for result in found for row in result["rows"]]))
        blocks.append(machine(found[0]))
    return "\n\n".join(blocks)


def table(rows):
    """Rows of JSON as a table: a column for each key."""
    rows = [flat(row) for row in rows]
    keys = list(dict.fromkeys(key for row in rows for key in row))
    numeric = {k for k in keys if all(isinstance(r.get(k), (int, float, type(None))) for r in rows)}
    lines = ["| " + " | ".join(keys) + " |"]
    lines.append("|" + "|".join("---:" if k in numeric else "---" for k in keys) + "|")
    lines += ["| " + " | ".join(cell(row.get(k)) for k in keys) + " |" for row in rows]
    return "\n".join(lines)


def flat(row, before=""):
    """Nested figures under names joined by a comma, without the machine."""
    out = {}
    for key, value in row.items():
        if key == "machine":
            continue
        if isinstance(value, dict):
            out |= flat(value, f"{before}{key}, ")
        else:
            out[before + key] = value
    return out


def cell(value):
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, list):
        return ", ".join(cell(v) for v in value)
    return str(value).replace("|", "\\|")


def machine(result):
    """On what it was measured; where each row says so itself, of all of them."""
    machines = (
        [result["machine"]] if "machine" in result else [r["machine"] for r in result["rows"]]
    )
    said = dict.fromkeys(
        f"{m['processor']}, {m['threads']} thread{'s' * (m['threads'] != 1)}, Python {m['python']}, "
        f"torch {m['torch']}"
        for m in machines
    )
    return "*" + "; ".join(said) + "*{ .machine }"


# --- Memory and speed of torchvision's models -----------------------------------------------------


def benchmark(name):
    path = ROOT / "benchmarks" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"benchmarks_{name}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


COLUMNS = (
    "torch.nn, MiB an image",
    "saved",
    "floor",
    "peak",
    "saved, checkpoint a block",
    "saved, torch.compile",
    "time",
    "time, checkpoint a block",
)


def models():
    """The table of whole models, for each precision that was measured."""
    picture, blocks = benchmark("picture"), []
    for precision in ("fp32", "bf16"):
        if picture.rows("memory", precision):
            lines = [
                f"| {precision} | " + " | ".join(COLUMNS) + " |",
                "|---|" + "---:|" * len(COLUMNS),
                *picture.lines(precision),
            ]
            blocks.append("\n".join(lines))
    measured = json.loads((RESULTS / "memory.json").read_text())
    return "\n\n".join([*blocks, machine(measured)])


def picture():
    """The bars of what eight models hold."""
    import matplotlib

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "memory.svg")
        with matplotlib.rc_context({"svg.fonttype": "none", "savefig.transparent": True}):
            benchmark("picture").plot(path)
        text = plots.in_page(path.read_text())
    for plain in ("#000000", "black"):
        text = text.replace(plain, "var(--plot-text)")
    text = text.replace("<text ", '<text fill="var(--plot-text)" ')
    return f'<figure class="wide">{text}</figure>'
