"""What a run would find wrong only after an epoch, found before its first step."""

import copy

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from manualnn.training.callbacks import validates
from manualnn.training.errors import TrainingError
from manualnn.training.figures import MONITORED, is_told


class Rehearsal(Callback):
    """Looks at the names that callbacks wait for, and at a last batch of a single image.

    Raises:
        TrainingError: an epoch would end in an error.
    """

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for callback in trainer.callbacks:
            self._look_for(getattr(callback, "monitor", None), callback, trainer, pl_module)
        if self._leaves_one(trainer):
            self._try_one(trainer, pl_module)

    def _look_for(
        self, name: str | None, callback: Callback, trainer: Trainer, pl_module: LightningModule
    ) -> None:
        if not isinstance(name, str):
            return
        kind = type(callback).__name__
        ours = ("lightning.", "manualnn.")
        known = [x for x in MONITORED if is_told(x, pl_module.num_classes)]
        if name not in known and all(
            type(c).__module__.startswith(ours) for c in trainer.callbacks
        ):
            raise TrainingError(
                f"{kind} waits for {name!r}, and nothing of that name is logged; known: {', '.join(known)}"
            )
        if name.startswith("val/") and not validates(trainer):
            raise TrainingError(f"{kind} waits for {name!r}, and there are no validation images")

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
