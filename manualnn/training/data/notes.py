"""What a run says of its pictures when it starts: which they are, and what is left out."""

from collections.abc import Callable

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torch.utils.data import DataLoader


class PictureNotes(Callback):
    """Says each line once.

    When the checkpoint is loaded, because that decides what a test takes, and before the first batch.

    Args:
        say: Prints a line, in the first process.
    """

    def __init__(self, say: Callable[[str], None]):
        self._say = say
        self._said: set[str] = set()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._tell(trainer, "fit")

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == TrainerFn.VALIDATING:
            self._tell(trainer, "validate")

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._tell(trainer, "test")

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._tell(trainer, "predict")

    def _tell(self, trainer: Trainer, stage: str) -> None:
        self._tell_limit(trainer, stage)
        folder = getattr(trainer.datamodule, "folder", None)
        if folder is None:
            return
        # After `fit` a test speaks of the same pictures.
        lines = [] if self._said else [folder.summary(fitting=stage == "fit")]
        if part := {"validate": "val", "test": "test"}.get(stage):
            # predict says it with what it has written
            lines += [f"{stage}: {folder.measured(part)[1]}"]
        for line in lines:
            if line not in self._said:
                self._said.add(line)
                self._say(line)

    def _tell_limit(self, trainer: Trainer, stage: str) -> None:
        """Of a test or a validation that takes a part of its images."""
        short = {"validate": "val", "test": "test"}.get(stage)
        loader = getattr(trainer, f"{short}_dataloaders", None)
        if short is None or not isinstance(loader, DataLoader):
            return
        taken, there = sum(getattr(trainer, f"num_{short}_batches")), len(loader)
        if taken < there:
            self._say(
                f"note: {stage} takes {taken} of {there} batches (--trainer.limit_{short}_batches, "
                "--trainer.fast_dev_run): the figures are of these alone"
            )
