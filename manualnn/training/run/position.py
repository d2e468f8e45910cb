"""The place of a run, as a checkpoint keeps it, and how Lightning's loops are brought back to it.

Lightning's counters say how far its hooks had come when a file was written, and what is repeated or left out
when a run goes on depends on which hook that was. Here they are written as they are between two batches, and
read back so: whatever hook wrote the file, each batch, each validation and each end of an epoch comes once.
"""

from dataclasses import asdict, dataclass
from typing import Any, Literal

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.loops import fit_loop, training_epoch_loop
from lightning.pytorch.loops.evaluation_loop import RestartStage as Evaluation

# Lightning's own names for how a loop goes on; no public way leads there.
Epochs = fit_loop.RestartStage
Batches = training_epoch_loop.RestartStage

Next = Literal["batch", "validation", "end of epoch", "plateau", "epoch"]


@dataclass(frozen=True)
class Position:
    """Args:
    epoch: Epochs that are done.
    batch: Batches of the epoch that are done; 0 where the epoch has not begun.
    batches: Batches of the whole run that are done.
    last: The batch was the epoch's last.
    next: What comes next: a "batch"; the "validation" after a batch, where there is to be one; the "end of
        epoch", with its means; the "plateau" schedulers' look at the figures, which Lightning grants them after
        all else of an epoch; the next "epoch".
    """

    epoch: int
    batch: int
    batches: int
    last: bool
    next: Next

    @classmethod
    def of(cls, trainer: Trainer) -> "Position":
        """Where the run is, in whatever hook."""
        loop, epochs = trainer.fit_loop.epoch_loop, trainer.fit_loop.epoch_progress.current
        count = loop.batch_progress.current
        # `processed` counts a batch from its step on, an epoch from when its end begins.
        place = {"batch": count.processed, "batches": loop.batch_progress.total.processed}
        last = loop.batch_progress.is_last_batch or count.processed == trainer.num_training_batches
        if trainer.validating:
            next_ = (
                ("end of epoch" if last else "batch") if _is_validated(trainer) else "validation"
            )
            return cls(epochs.processed, **place, last=last, next=next_)
        if epochs.processed == epochs.started and count.processed and not last:
            # max_steps or an early stop has ended it: Lightning counts it as a whole one.
            return cls(epochs.processed - 1, **place, last=False, next="batch")
        if epochs.processed > epochs.completed:
            return cls(epochs.processed, 0, place["batches"], last=False, next="plateau")
        if epochs.processed == epochs.started:
            return cls(epochs.processed, 0, place["batches"], last=False, next="epoch")
        ended = count.completed < count.processed  # in the hooks at the end of a batch
        return cls(epochs.processed, **place, last=last, next="validation" if ended else "batch")

    def state(self) -> dict[str, Any]:
        return asdict(self)

    def write(self, loop: dict[str, Any]) -> None:
        """Sets the counters in the state of Lightning's fit loop."""
        batches = loop["epoch_loop.batch_progress"]
        batches["current"] = dict.fromkeys(batches["current"], self.batch)
        batches["total"] = dict.fromkeys(batches["total"], self.batches)
        batches["is_last_batch"] = self.last
        begun = {"ready": 1, "started": 1} if self.next not in ("plateau", "epoch") else {}
        for count in loop["epoch_progress"].values():
            for name in count:
                count[name] = self.epoch + begun.get(name, 0)
        # What Lightning counts within an epoch besides says when its hooks came, and is asked by no one.
        for name in ("automatic_optimization.optim_progress", "scheduler_progress"):
            _clear(loop[f"epoch_loop.{name}"])
        validation = loop["epoch_loop.val_loop.batch_progress"]
        for count in (validation["current"], validation["total"]):
            count.update(dict.fromkeys(count, 0))
        validation["is_last_batch"] = False

    def go_on(self, trainer: Trainer) -> None:
        """Brings the loops here, in `on_train_start`, when they have loaded what `write` has written."""
        epochs, batches = trainer.fit_loop, trainer.fit_loop.epoch_loop
        steps = trainer.global_step
        for callback in trainer.callbacks:
            # It sets it when an epoch starts, and this one has.
            if isinstance(callback, GradientAccumulationScheduler):
                gathered = callback.get_accumulate_grad_batches(trainer.current_epoch)
                trainer.accumulate_grad_batches = gathered
        begun = self.next not in ("plateau", "epoch")
        # Not by the setter, which says the same of the loops inside. With it Lightning would also pass over
        # the plateau schedulers at the end of this epoch.
        epochs._restarting = False
        epochs._restart_stage = Epochs.RESTARTED_MID_EPOCH if begun else Epochs.NONE
        batches._restarting = begun
        batches._restart_stage = Batches.NONE
        validation = batches.val_loop
        validation._restarting = begun
        validation._restart_stage = Evaluation.NONE
        # Lightning's count of steps for the loggers: what it adds on the way back is taken away before.
        added = 0
        if begun and not batches._should_accumulate():
            added = 1
            if batches._should_check_val_fx(epochs._data_fetcher):
                added += self.next == "validation"
        if self.next == "validation":
            validation._restart_stage = Evaluation.RESTARTED_MID_EVALUATION
        if self.next == "end of epoch":
            batches._restart_stage = Batches.RESTARTED_ON_LAST
        batches._batches_that_stepped = steps - added
        if self.next == "plateau":
            batches.update_lr_schedulers("epoch", update_plateau_schedulers=True)


def _is_validated(trainer: Trainer) -> bool:
    """Whether the validation that is going on has seen all of its batches."""
    progress = trainer.fit_loop.epoch_loop.val_loop.batch_progress
    return progress.is_last_batch and progress.current.completed == progress.current.ready > 0


def _clear(progress: dict[str, Any]) -> None:
    """Sets every count "current" in nested states to 0."""
    for name, value in progress.items():
        if name == "current":
            value.update(dict.fromkeys(value, 0))
        elif isinstance(value, dict):
            _clear(value)
