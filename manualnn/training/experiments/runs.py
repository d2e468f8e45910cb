"""`train.py fit` within this process, once a run: for a sweep's trials and for comparisons."""

import contextlib
import gc
import json
import logging
import math
import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
import yaml
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from manualnn.training.data import ImageData
from manualnn.training.errors import Diverged, TrainingError
from manualnn.training.fit.command_line import SETTINGS, CommandLine
from manualnn.training.model.classifier import ImageClassifier
from manualnn.training.run.checkpoints import FREE, SAME
from manualnn.training.run.configuration import USER_ERRORS
from manualnn.training.run.rehearsal import never_judges
from manualnn.training.text.messages import one_line

# What else decides a run's figures, beside what a checkpoint may not change.
COMPARED = (
    *SAME, "checkpoint.monitor", "checkpoint.mode", "checkpoint.every_n_epochs",
    "trainer.accumulate_grad_batches", "trainer.check_val_every_n_epoch",
    "trainer.gradient_clip_algorithm", "trainer.gradient_clip_val", "trainer.limit_train_batches",
    "trainer.limit_val_batches", "trainer.max_epochs", "trainer.max_steps", "trainer.precision",
    "trainer.val_check_interval",
)  # fmt: skip


# What comes of reading a text as YAML, or of writing what it has made as an option.
UNREADABLE = (yaml.YAMLError, ValueError, TypeError, AttributeError, IndexError, RecursionError)

# What the loss is, and on which images figures are: those of runs that differ in it are of other things.
LOSS_OPTIONS = ("model.loss", "model.label_smoothing", "model.class_weights")
IMAGE_OPTIONS = (
    "data.dataset", "data.root", "data.seed", "data.split", "data.test_fraction", "data.val_fraction",
)  # fmt: skip


class FitRun(CommandLine):
    """`fit` with these arguments: parsed, seeded, built and trained as the command would, so that
    the command repeats its numbers. It prints nothing and draws no progress bar.

    Args:
        args: What would stand after `train.py fit`.
        callbacks: Watch the run; they must leave the random state alone.
        folder: (name, version) of the TensorBoard run, in place of the configuration's.
        train: Without it all is built, and refused if it does not fit, but nothing is trained.
    """

    def __init__(
        self,
        args: Iterable[str],
        callbacks: Iterable[Callback] = (),
        folder: tuple[str, str] | None = None,
        train: bool = True,
    ):
        self._train = train
        dressing = ["--trainer.enable_progress_bar=false"]
        if folder is not None:
            name, version = folder
            dressing += [f"--trainer.logger.name={name}", f"--trainer.logger.version={version}"]
        given = {**SETTINGS["trainer_defaults"], "callbacks": list(callbacks)}
        super().__init__(
            ImageClassifier,
            ImageData,
            **{**SETTINGS, "trainer_defaults": given},
            # Pictures of each of many runs are for who asks for them.
            args=["fit", "--monitor.every=off", *args, *dressing],
        )

    def _run_subcommand(self, subcommand: str) -> None:
        if self._train:
            super()._run_subcommand(subcommand)

    def _say(self, line: str) -> None:
        pass

    def _print_result(self) -> None:
        pass

    def chosen(self, args: Iterable[str]):
        """The configuration that `fit` would make of these arguments; nothing is built.

        Raises:
            TrainingError: an option or a value is not known.
        """
        kept = self.config
        try:
            self.parse_arguments(self.parser, ["fit", *args])
            return self.config.fit
        finally:
            self.config = kept

    def dump(self, config, **options) -> str:
        """The configuration as YAML that `fit --config` takes."""
        return self._parser("fit").dump(config, **options)

    def plain(self, config) -> dict[str, Any]:
        """The configuration as plain dictionaries, every default included."""
        return yaml.safe_load(self.dump(config, skip_none=False))


class Progress(Callback):
    """Collects a run's curves, by epoch from 1: the train/ figures and those of each validation.

    Attributes:
        curves: name -> [(epoch, value)], for train/loss, train/acc, val/loss, val/acc.
        pruned: Whether it was ended early.
    """

    def __init__(self):
        self.curves: dict[str, list[tuple[float, float]]] = {}
        self.pruned = False
        self._began = time.perf_counter()

    @property
    def seconds(self) -> float:
        return round(time.perf_counter() - self._began, 2)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self._add(trainer, "val/", self._epochs(trainer))

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # The model logs an epoch's means when it has ended, after the callbacks were asked.
        if trainer.current_epoch:
            self._add(trainer, "train/", trainer.current_epoch)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._add(trainer, "train/", self._epochs(trainer))

    def last(self) -> dict[str, float]:
        """The newest value of each curve, and "epoch", that of the newest validation."""
        newest = {name: points[-1] for name, points in self.curves.items()}
        epoch = max(epoch for name, (epoch, _) in newest.items() if name.startswith("val/"))
        return {"epoch": epoch, **{name: value for name, (_, value) in newest.items()}}

    def _epochs(self, trainer: Trainer) -> float:
        """Epochs trained so far; max_steps and val_check_interval stop within one."""
        batches = trainer.num_training_batches
        return trainer.global_step / math.ceil(batches / trainer.accumulate_grad_batches)

    def _add(self, trainer: Trainer, kind: str, epoch: float) -> None:
        for name, value in trainer.callback_metrics.items():
            if name.startswith(kind):
                points = self.curves.setdefault(name, [])
                if not points or points[-1][0] < epoch:
                    points.append((epoch, float(value)))


def rehearse(args: list[str], where: str = "", data: bool = False) -> FitRun:
    """Builds all that `fit` with these arguments would train, and trains nothing.

    Args:
        where: What the message of a refusal begins with.
        data: Read and split the images too.

    Raises:
        TrainingError: something does not fit; one line.
    """
    try:
        run = FitRun(args, train=False)
        if data:
            run.datamodule.prepare_data()
            run.datamodule.setup("fit")
        for name in ("max_epochs", "max_steps"):
            if getattr(run.trainer, name) == 0:
                raise TrainingError(f"--trainer.{name} is 0: nothing would be trained")
        if run.trainer.limit_val_batches == 0:
            raise TrainingError("--trainer.limit_val_batches is 0: there is nothing to judge by")
        if why := never_judges(run.checkpoint, run.trainer):
            raise TrainingError(why)
    except USER_ERRORS as error:
        raise TrainingError(f"{where}{one_line(error)}") from error
    return run


def check_base(run: FitRun, args: Iterable[str], what: str) -> None:
    """Raises TrainingError unless runs of this configuration can be set beside each other.

    Args:
        run: Was rehearsed with `args`.
        what: The subject of the message.
    """
    config = run.config.fit
    if config.get("ckpt_path") is not None:
        raise TrainingError(f"{what} starts every run afresh: leave --ckpt_path out")
    if isinstance(run.chosen(args).seed_everything, bool):
        raise TrainingError(f"{what} must be repeatable: --seed_everything needs a number")
    if config.trainer.fast_dev_run:
        raise TrainingError(f"{what} needs whole runs: leave --trainer.fast_dev_run out")
    if [type(logger) for logger in run.trainer.loggers] != [TensorBoardLogger]:
        raise TrainingError(f"{what} writes TensorBoard runs: leave --trainer.logger as it is")
    if run.trainer.world_size > 1:
        raise TrainingError(
            f"{what} trains each run on one device: --trainer.devices 1; more devices: a worker "
            "each, with its own CUDA_VISIBLE_DEVICES"
        )
    if not run.datamodule.val_fraction and not run.datamodule.has_part("val"):
        raise TrainingError(f"{what} judges by validation images: --data.val_fraction is 0")
    monitor = config.checkpoint.monitor
    if not monitor.startswith("val/"):
        raise TrainingError(
            f"{what} judges by the validation images: --checkpoint.monitor val/acc or val/loss, "
            f"not {monitor}"
        )


def has_fixed_test(data: ImageData) -> bool:
    """Whether another --data.seed chooses other validation images and leaves the test's alone."""
    return data.dataset != "ImageFolder" or data.has_part("test")


def experiment_of(template: FitRun) -> dict[str, Any]:
    """What must be the same in all runs that are set beside each other, before each gets its own values.

    Args:
        template: Was rehearsed with its data.
    """
    plain = template.plain(template.config.fit)
    found = {}
    for name in COMPARED:
        value: Any = plain
        for key in name.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        found.update(_flat(value, name))
    found = {name: v for name, v in found.items() if name.replace(".init_args", "") not in FREE}
    if template.datamodule.folder is not None:
        found["the folder of pictures"] = {"content": template.datamodule.folder.fingerprint()}
    return found


def _flat(value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        return {name: value}
    return {k: v for key, inner in value.items() for k, v in _flat(inner, f"{name}.{key}").items()}


def differences(here: Mapping[str, Any], there: Mapping[str, Any]) -> str:
    """ "--model.dropout is 0.2 here and 0.1 there; search is another one"; "" of the same settings.

    What an older version did not write down is not compared.
    """
    return "; ".join(
        f"{name} is another one"
        if isinstance(here[name], dict)  # a section, not an option
        else f"--{name.replace('.init_args', '')} is {here[name]} here and {there[name]} there"
        for name in here
        if name in there and here[name] != there[name]
    )


def option_text(value: Any) -> str:
    """A value as it is written behind an option on the command line."""
    return value if isinstance(value, str) else json.dumps(value)


def options(values: Mapping[str, Any]) -> list[str]:
    """{"optimizer.lr": 0.1} -> ["--optimizer.lr=0.1"]; a class before its own options."""
    names = sorted(values, key=lambda name: name.replace(".init_args", "").count("."))
    return [f"--{name}={option_text(values[name])}" for name in names]


def figures(run: FitRun, progress: Progress) -> dict[str, float]:
    """The run's best epoch, as `best.ckpt` keeps it: the val/ figures there; the last
    train/loss; test/ figures if it was tested; "epoch" it was."""
    checkpoint = run.checkpoint
    curve = progress.curves.get(checkpoint.monitor or "", [])
    if not curve or checkpoint.best_model_score is None:
        raise TrainingError("the run ended without a validation")
    best = float(checkpoint.best_model_score)
    equal = [i for i, (_, value) in enumerate(curve) if value == best]
    if not equal:
        raise Diverged(f"{checkpoint.monitor} was never finite")
    # An epoch that was not looked at may have been as good.
    kept = epochs_of(checkpoint.best_model_path, run.trainer)
    at = min(equal, key=lambda i: abs(curve[i][0] - kept))
    found = {"epoch": curve[at][0]}
    for name, values in progress.curves.items():
        if name.startswith("val/"):
            found[name] = values[at][1]
    for name in ("train/loss", "train/acc"):
        if progress.curves.get(name):
            found[name] = progress.curves[name][-1][1]
    for name, value in run.trainer.callback_metrics.items():
        if name.startswith("test/"):
            found[name] = float(value)
    return found


def epochs_of(checkpoint: str, trainer: Trainer) -> float:
    """After how many epochs of the trainer's run the checkpoint was written."""
    place = torch.load(checkpoint, map_location="cpu", weights_only=True)["place"]
    return place["epoch"] + place["batch"] / trainer.num_training_batches


def spread(values: Sequence[float], percent: bool = False) -> str:
    """ "98.43 % ± 0.07": the mean, and the standard deviation with n - 1; no deviation of one."""
    if not values:
        return "–"
    scale, digits = (100, 2) if percent else (1, 4)
    unit = " %" if percent else ""
    mean = f"{scale * statistics.fmean(values):.{digits}f}{unit}"
    if len(values) == 1:
        return mean
    return f"{mean} ± {scale * statistics.stdev(values):.{digits}f}"


def forget() -> None:
    """Gives back the memory of a run that has ended; models and trainers hold each other."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@contextlib.contextmanager
def cheap_collection():
    """Within, `forget` looks only at what is new: not at the libraries, which takes a second."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def hush() -> None:
    """Silences what is said anew at each run."""
    logging.getLogger("lightning.fabric.utilities.seed").setLevel(logging.WARNING)
