"""What a run would find wrong only after an epoch, found before its first step."""

import copy
import math
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import StochasticWeightAveraging

from manualnn.training.errors import TrainingError
from manualnn.training.model.metrics import MONITORED, is_reported
from manualnn.training.run.callbacks import BestCheckpoint, validates
from manualnn.training.run.saving import check_savable

OURS = ("lightning.", "manualnn.")


class Rehearsal(Callback):
    """Looks at the names that callbacks wait for, at a last batch of a single image, at what is to be saved.

    Args:
        say: Takes a line for the person.

    Raises:
        TrainingError: an epoch would end in an error.
    """

    def __init__(self, say: Callable[[str], None]):
        self._say = say

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.fit_loop.setup_data()  # refuses intervals that do not fit
        for callback in trainer.callbacks:
            self._look_for(getattr(callback, "monitor", None), callback, trainer, pl_module)
            if isinstance(callback, StochasticWeightAveraging):
                self._check_rates(callback, trainer)
        for plan in trainer.lr_scheduler_configs:
            if plan.reduce_on_plateau:
                self._look_for(plan.monitor, plan.scheduler, trainer, pl_module)
                if plan.monitor.startswith("val/") and not _is_validated_each_epoch(trainer):
                    raise TrainingError(
                        f"ReduceLROnPlateau looks at {plan.monitor} after each epoch, and not each has a "
                        "validation; look at --trainer.check_val_every_n_epoch and val_check_interval"
                    )
        self._check_shift(trainer.datamodule)
        for callback in trainer.callbacks:
            if isinstance(callback, BestCheckpoint) and (why := never_judges(callback, trainer)):
                self._say(f"note: {why}: there will be no best.ckpt but of before")
        if self._leaves_one(trainer):
            self._try_one(trainer, pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Later than the others' own start, which may set what they keep.
        plans = trainer.lr_scheduler_configs
        for holder in (*trainer.callbacks, *(plan.scheduler for plan in plans)):
            check_savable(holder.state_dict, holder)
        for callback in trainer.callbacks:
            if not type(callback).__module__.startswith(OURS):
                content: dict[str, Any] = {}
                with suppress(Exception):  # it may ask for what only a checkpoint has
                    callback.on_save_checkpoint(trainer, pl_module, content)
                check_savable(lambda content=content: content, callback)

    def _look_for(
        self, name: str | None, callback: object, trainer: Trainer, pl_module: LightningModule
    ) -> None:
        """Also sets the moment at which it looks to one when there is something to see."""
        if not isinstance(name, str):
            return
        kind = type(callback).__name__
        known = [x for x in MONITORED if is_reported(x, pl_module.num_classes)]
        if name not in known and all(
            type(c).__module__.startswith(OURS) for c in trainer.callbacks
        ):
            raise TrainingError(
                f"{kind} waits for {name!r}, and nothing of that name is logged; known: {', '.join(known)}"
            )
        if name.startswith("val/") and not validates(trainer):
            raise TrainingError(f"{kind} waits for {name!r}, and there are no validation images")
        if name.startswith("train/") or not _is_validated_each_epoch(trainer):
            for moment in ("_check_on_train_epoch_end", "_save_on_train_epoch_end"):
                if hasattr(callback, moment):
                    setattr(callback, moment, name.startswith("train/"))

    def _check_rates(self, callback: StochasticWeightAveraging, trainer: Trainer) -> None:
        groups, rates = trainer.optimizers[0].param_groups, callback._swa_lrs
        if isinstance(rates, list) and len(rates) != len(groups):
            raise TrainingError(
                f"swa_lrs has {len(rates)} rates, and the optimiser {len(groups)} group"
                f"{'s' * (len(groups) > 1)} of parameters"
            )

    def _check_shift(self, data: LightningDataModule | None) -> None:
        shift = getattr(data, "shift", 0)
        if shift and shift >= min(data.image_shape[1:]):
            size = " x ".join(map(str, data.image_shape[1:]))
            raise TrainingError(f"--data.shift {shift} moves images of {size} out of sight")

    def _leaves_one(self, trainer: Trainer) -> bool:
        """Whether the epoch's last batch is a single image, in any process."""
        data = trainer.datamodule
        if trainer.limit_train_batches != 1.0 or data is None:
            return False
        whole = data.batch_size * trainer.world_size
        return 0 < len(data.train_dataloader().dataset) % whole <= trainer.world_size

    def _try_one(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A training step's forward with one image, in a copy: norms refuse it, and would move statistics."""
        network = copy.deepcopy(pl_module.network)  # some of its parts may be frozen
        shape = trainer.datamodule.image_shape
        image = torch.zeros(1, *shape, device=pl_module.device, dtype=pl_module.dtype)
        with torch.random.fork_rng(), torch.no_grad():
            try:
                with trainer.precision_plugin.forward_context():
                    network(image)
            except ValueError as error:
                if "more than 1 value" not in str(error):
                    return  # the first step says it better
                size = trainer.datamodule.batch_size
                raise TrainingError(
                    f"the last batch of each epoch is a single image, and the network takes none alone while "
                    f"it trains: {error}. Another --data.batch_size than {size} leaves none alone"
                ) from error
            except Exception:  # a network may raise anything; its first step says it better
                return


def never_judges(kept: BestCheckpoint, trainer: Trainer) -> str:
    """Why no epoch of the run will be looked at, to see whether it is the best; "" if one will."""
    every, validated, last = kept._every_n_epochs, 1, trainer.max_epochs
    if kept.monitor and kept.monitor.startswith("val/"):
        validated = trainer.check_val_every_n_epoch or 1
    first = math.lcm(every, validated)
    next_ = first * (trainer.current_epoch // first + 1)
    if trainer.fast_dev_run or last in (-1, None) or next_ <= last or trainer.current_epoch >= last:
        return ""
    both = f"--checkpoint.every_n_epochs {every}"
    if validated > 1:
        both += f" and --trainer.check_val_every_n_epoch {validated}"
    return f"with {both} no epoch up to --trainer.max_epochs {last} is judged"


def _is_validated_each_epoch(trainer: Trainer) -> bool:
    """Whether there is a validation in each epoch; of one that counts on over epochs, in the first."""
    if trainer._val_check_time_interval is not None:
        return False
    if trainer.check_val_every_n_epoch is None:
        return trainer.val_check_interval <= trainer.num_training_batches
    return trainer.check_val_every_n_epoch == 1
