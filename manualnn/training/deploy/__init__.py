"""Using what was trained: the commands `predict --image` and `export`, which need no training data."""

from collections.abc import Callable

from manualnn.training.deploy.trained import Trained

__all__ = ["Trained", "command_on_trained"]


def command_on_trained(args: list[str]) -> Callable[[list[str]], int] | None:
    """The command that the arguments ask for, which takes the rest of them; None for the trainer's.

    `predict` alone is the trainer's: it predicts the test images of the run's dataset.
    """
    subcommand, *rest = args or [""]
    names = {arg.partition("=")[0] for arg in rest}
    if subcommand == "predict" and names & {"--image", "-h", "--help"}:
        from manualnn.training.deploy.predict import run
    elif subcommand == "export":
        from manualnn.training.deploy.exporting import run
    else:
        return None
    return run
