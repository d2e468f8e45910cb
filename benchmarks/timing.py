"""Timing in pairs: two contestants in turn, in one process, so that a drift of the machine hits both."""

import json
import pathlib
import platform
import statistics
import time

import torch


def machine():
    """What the figures were measured on: processor, cores, Python and torch versions."""
    return {
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "system": f"{platform.system()} {platform.machine()}",
    }


def _processor():
    try:
        for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or "unknown"


def ratio(ours, theirs, seconds=0.6, rounds=15):
    """Median of the ratios ours / theirs over interleaved rounds, and both medians in microseconds.

    ours, theirs: called without arguments. seconds: what a pair of rounds may take, about.
    """
    for call in (ours, theirs):
        call()
    once = max(_seconds(theirs, 1), 1e-7)
    repeat = max(1, int(seconds / rounds / 2 / max(once, _seconds(theirs, 3))))
    pairs = []
    for i in range(rounds):
        order = (ours, theirs) if i % 2 else (theirs, ours)
        timed = {call: _seconds(call, repeat) for call in order}
        pairs.append((timed[ours], timed[theirs]))
    ratios = [a / b for a, b in pairs]
    return (
        statistics.median(ratios),
        statistics.median(a for a, _ in pairs) * 1e6,
        statistics.median(b for _, b in pairs) * 1e6,
    )


def _seconds(call, repeat):
    start = time.perf_counter()
    for _ in range(repeat):
        call()
    return (time.perf_counter() - start) / repeat


def save(name, rows):
    """Writes the rows, the machine and the versions to benchmarks/results/<name>.json."""
    folder = pathlib.Path(__file__).parent / "results"
    folder.mkdir(exist_ok=True)
    text = json.dumps({"machine": machine(), "rows": rows}, indent=1, ensure_ascii=False)
    (folder / f"{name}.json").write_text(text + "\n")


def merge(name, rows, keys):
    """Puts rows into benchmarks/results/<name>.json in place of those that have the same keys.

    Each says its own machine: they are not all made on one day.
    """
    path = pathlib.Path(__file__).parent / "results" / f"{name}.json"
    known = json.loads(path.read_text())["rows"] if path.exists() else []
    merged = {tuple(row[key] for key in keys): row for row in (*known, *rows)}
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"rows": list(merged.values())}, indent=1) + "\n")
