"""Many runs of `fit`: `train.py sweep` and `train.py compare`."""

import importlib.util
from importlib import import_module

from manualnn.training.errors import TrainingError


def main(subcommand: str, args: list[str]) -> None:
    """Runs a sweep or a comparison, or goes on with it; see `command.py` of each."""
    for package in ("optuna", "matplotlib"):
        if importlib.util.find_spec(package) is None:
            raise TrainingError(f"{subcommand} needs {package}: pip install {package}")
    import_module(f"{__name__}.{subcommand}.command").run(args)
