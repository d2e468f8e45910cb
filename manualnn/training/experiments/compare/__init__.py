"""`train.py compare`: `fit` with several values of an option, with several seeds each."""

import importlib.util

from manualnn.training.errors import TrainingError


def main(args: list[str]) -> None:
    """Runs a comparison, or goes on with it; see `manualnn.training.experiments.compare.command`."""
    if importlib.util.find_spec("matplotlib") is None:
        raise TrainingError("a comparison needs matplotlib: pip install matplotlib")
    from manualnn.training.experiments.compare.command import run

    run(args)
