"""The support matrix, docs/support.md: runs the tests and counts, by family of ops and regime, those passed.

python benchmarks/support.py [--junit FILE]

A cell is the number of tests that passed, or passed/run where some are known to differ from torch. With
--junit, a report that pytest has written is read in place of running it (EVERY_ROW=1 pytest --junitxml=FILE).
"""

import argparse
import collections
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as XML

from manualnn.ops import activations

ROOT = pathlib.Path(__file__).resolve().parent.parent
# Regime: what the name of a test, file::function, matches.
REGIMES = {
    "derivatives": r"battery_\w+::test_(first|second|each|backward_twice|value)",
    "forward mode": r"battery_\w+::test_(forward_over|reverse_over)",
    "torch.func": r"battery_\w+::test_(torch_func|vmap)|randomness::.*vmap|regimes_func",
    "compile, export": r"battery_\w+::test_compile|regimes_compile|randomness::.*compiled",
    "autocast, dtypes": r"battery_\w+::test_(autocast|backward_inside|error)|regimes_dtypes",
    "kinks, NaN": r"battery_\w+::test_(kinks|special)",
    "strides, sizes": r"battery_\w+::test_(strided|empty)|regimes_layout|test_large",
    "in place, memory": r"battery_\w+::test_(change|nothing|keeps)|regimes_memory",
    "DDP, FSDP2": r"regimes_processes",
    "saves less": r"test_(saved_values|recomputation|recording)|test_ledger::",
    "copies": r"regimes_objects|test_convert",
    "torch's own tables": r"torch_tables",
}
# Family: what the parameters of a test match, in lower case; the first that does.
FAMILIES = {
    "MLP": r"mlp",
    "dropout": r"dropout|stochastic",
    "losses": r"loss|cross_?entropy|nll|bce|binary",
    "attention, embedding": r"attention|multi_?head|matmul|embedding",
    "convolution": r"conv",
    "pooling": r"pool",
    "normalisation": r"(batch|layer|group|instance|rms|sync).*norm",
    "linear": r"linear(?!.*relu)",
    "activations": "|".join(name.lower() for name in activations.__all__) + "|softmin",
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--junit", help="a report of pytest's to read in place of running it")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report = arguments.junit or str(pathlib.Path(folder, "report.xml"))
        if not arguments.junit:
            command = [sys.executable, "-m", "pytest", "-n", "2", f"--junitxml={report}"]
            every_row = {**os.environ, "EVERY_ROW": "1"}
            subprocess.run(command, cwd=ROOT, env=every_row, stdout=subprocess.DEVNULL)
        cases = XML.parse(report).getroot().iter("testcase")
        print(table([(name(case), status(case)) for case in cases]))


def name(case):
    return f"{case.get('classname').rpartition('.')[2]}::{case.get('name')}"


def status(case):
    """passed, skipped (does not apply), or failed, which an expected difference from torch is, too."""
    kinds = {child.tag: child.get("type", "") for child in case}
    if "skipped" in kinds:
        return "failed" if "xfail" in kinds["skipped"] else "skipped"
    return "failed" if kinds.keys() & {"failure", "error"} else "passed"


def table(cases):
    counts = collections.Counter()
    for test, outcome in cases:
        function, _, parameters = test.partition("[")
        family = family_of(parameters)
        for regime, pattern in REGIMES.items():
            if outcome != "skipped" and re.search(pattern, function):
                counts[family, regime, outcome] += 1
    rows = ["| | " + " | ".join(REGIMES) + " |", "|---|" + "--:|" * len(REGIMES)]
    for family in (*reversed(FAMILIES), "whole models"):
        cells = []
        for regime in REGIMES:
            passed, failed = (counts[family, regime, o] for o in ("passed", "failed"))
            cells.append(f"{passed}/{passed + failed}" if failed else f"{passed or '–'}")
        rows.append(f"| {family} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


def family_of(parameters):
    text = parameters.lower()
    return next((f for f, pattern in FAMILIES.items() if re.search(pattern, text)), "whole models")


if __name__ == "__main__":
    main()
