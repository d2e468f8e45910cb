"""The suite says first what it runs on; the version and what is promised of others' stand in one place."""

import platform
import re
import subprocess
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]


def test_the_versions_are_the_first_line_of_a_run():
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-n", "1", __file__],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    first = run.stdout.splitlines()[0]
    assert first.startswith(f"Python {platform.python_version()}; torch {torch.__version__}; ")
    assert run.stdout.count(first) == 1


def test_the_version_stands_once():
    import manualnn

    project = (ROOT / "pyproject.toml").read_text()
    assert not re.search(r"(?m)^version\s*=\s*\"", project)
    assert 'attr = "manualnn.__version__"' in project
    assert manualnn.__version__ not in (ROOT / "CHANGELOG.md").read_text().partition("\n### ")[0]


def test_the_workflow_tests_what_the_project_promises():
    import yaml

    project = (ROOT / "pyproject.toml").read_text()
    oldest = re.search(r'"torch>=([\d.]+)"', project)[1]
    low, high = re.search(r'requires-python = ">=3\.(\d+),<3\.(\d+)"', project).groups()
    jobs = yaml.safe_load((ROOT / ".github/workflows/checks.yml").read_text())["jobs"]
    matrix = jobs["test"]["strategy"]["matrix"]
    assert matrix["python"] == [f"3.{minor}" for minor in range(int(low), int(high))]
    assert matrix["torch"] == [f"torch=={oldest}.*", f"torch>={oldest}"]
