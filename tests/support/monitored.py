"""Small runs with a monitor, and what they leave in TensorBoard."""

from pathlib import Path

import torch
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from manualnn.training import ImageClassifier, ImageData
from manualnn.training.monitors import Monitor


class Classifier(ImageClassifier):
    """With an optimiser of the test's choice, and a scheduler that may be one."""

    def __init__(self, optimizer, schedule=None, **options):
        self.save_hyperparameters(ignore=["optimizer", "schedule"], logger=False)
        super().__init__(num_classes=10, image_shape=(1, 8, 8), **options)
        self.optimizer, self.schedule = optimizer, schedule

    def configure_optimizers(self):
        optimizer = self.optimizer(self.parameters())
        return optimizer if self.schedule is None else ([optimizer], [self.schedule(optimizer)])


def sgd(lr=0.1, momentum=0.9, **options):
    return lambda parameters: torch.optim.SGD(parameters, lr=lr, momentum=momentum, **options)


def adam(lr=1e-3):
    return lambda parameters: torch.optim.AdamW(parameters, lr=lr)


def run(
    folder, every=5, epochs=3, seed=0, model=None, optimizer=None, data=None, monitor=None,
    ckpt_path=None, schedule=None, callbacks=(), logger=None, **options,
):  # fmt: skip
    """Trains on Digits. Returns (model, monitor, trainer); `options` are the trainer's."""
    seed_everything(seed, verbose=False)
    given = model or {}
    if "network" not in given:
        given = {"hidden_units": [32], **given}
    model = Classifier(optimizer or sgd(), schedule, **given)
    monitor = monitor or Monitor(every)
    if logger is None:
        logger = TensorBoardLogger(folder, name="", version=0, default_hp_metric=False)
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    quiet |= {"enable_checkpointing": False, "num_sanity_val_steps": 0, "log_every_n_steps": 50}
    trainer = Trainer(
        **quiet
        | {"logger": logger, "max_epochs": epochs, "callbacks": [*callbacks, monitor], **options}
    )
    digits = ImageData(**{"dataset": "Digits", "batch_size": 64, **(data or {})})
    trainer.fit(model, datamodule=digits, ckpt_path=ckpt_path)
    return model, monitor, trainer


def events(folder) -> EventAccumulator:
    sizes = {"scalars": 0, "tensors": 0, "images": 0, "histograms": 0}
    return EventAccumulator(str(Path(folder, "version_0")), size_guidance=sizes).Reload()


def found(folder) -> dict[str, str]:
    """Heading -> text of the findings in TensorBoard."""
    accumulator = events(folder)
    texts = {}
    for name in accumulator.Tags()["tensors"]:
        if name.startswith("findings/"):
            (event,) = accumulator.Tensors(name)
            heading = name.removeprefix("findings/").removesuffix("/text_summary").replace("_", " ")
            texts[heading] = event.tensor_proto.string_val[0].decode()
    return texts
