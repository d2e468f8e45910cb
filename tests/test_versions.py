"""The suite says first what it runs on."""

import platform
import subprocess
import sys
from pathlib import Path

import torch


def test_the_versions_are_the_first_line_of_a_run():
    root = Path(__file__).parents[1]
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-n", "2", "tests/test_versions.py"],
        cwd=root,
        capture_output=True,
        text=True,
        check=True,
    )
    first = run.stdout.splitlines()[0]
    assert first.startswith(f"Python {platform.python_version()}; torch {torch.__version__}; ")
    assert run.stdout.count(first) == 1
