"""`train.py sweep`: a search for the best options over many runs of `fit`, by Optuna."""

import importlib.util

from manualnn.training.errors import TrainingError


def main(args: list[str]) -> None:
    """Runs a sweep, or goes on with it; see `manualnn.training.experiments.sweep.command`."""
    for package in ("optuna", "matplotlib"):
        if importlib.util.find_spec(package) is None:
            raise TrainingError(f"a sweep needs {package}: pip install {package}")
    from manualnn.training.experiments.sweep.command import run

    run(args)
