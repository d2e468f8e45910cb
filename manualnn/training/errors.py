"""The exceptions of the model and the trainer; the data's is `manualnn.training.data.DataError`."""

import torch


class TrainingError(ValueError):
    """The run cannot start or go on; the message is one line for the user who started it."""


class DiskError(TrainingError):
    """A disk or a folder takes no more; what was whole stays whole, and there may be room again."""


class Diverged(TrainingError):
    """The loss is no longer finite."""


def out_of_memory(error: BaseException) -> bool:
    # On a CPU PyTorch raises a plain RuntimeError.
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )


class Interrupted(Exception):
    """Ctrl-C, or a signal that asked the run to end; the message says what is kept and how to go on."""

    def __init__(self, message: str = "", status: int = 130):
        super().__init__(message)
        self.status = status
