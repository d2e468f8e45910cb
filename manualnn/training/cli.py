"""The command line: LightningCLI over ImageClassifier and ImageData, for people."""

import csv
import logging
import pickle
import sys
import warnings
from pathlib import Path

import torch
from jsonargparse import ArgumentError, Namespace
from lightning.pytorch.callbacks import ProgressBar, TQDMProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from manualnn.training.callbacks import BestCheckpoint, EpochClock, RunRecord
from manualnn.training.classifier import ImageClassifier
from manualnn.training.data import DataError, ImageData
from manualnn.training.errors import TrainingError

SUBCOMMANDS = ("fit", "validate", "test", "predict")
DEFAULT_EXPERIMENT = Path(__file__).parents[2] / "configs" / "digits.yaml"
LOGS = "logs"

TRAINER_DEFAULTS = {
    "accelerator": "auto",
    "max_epochs": 10,
    "logger": {
        "class_path": "lightning.pytorch.loggers.TensorBoardLogger",
        # HParams are RunRecord's to write; the logger would add a metric of its own, hp_metric.
        "init_args": {"save_dir": LOGS, "name": "", "default_hp_metric": False},
    },
    # The record of the run has the table of layers; the bar is drawn every 20th batch, because
    # drawing it costs more than a small network's step.
    "enable_model_summary": False,
}


# What a person can cause. Anything else is a fault of the program's and keeps its traceback.
MISTAKES = (
    ArgumentError,
    DataError,
    TrainingError,
    MisconfigurationException,
    torch.OutOfMemoryError,
)


class Interrupted(Exception):
    """Ctrl-C; the message says what is kept and how to go on."""


class SaveConfig(SaveConfigCallback):
    """Keeps the configuration that a run was trained with; a later test leaves it as it is."""

    def setup(self, trainer, pl_module, stage: str) -> None:
        if stage == "fit":
            super().setup(trainer, pl_module, stage)


class CommandLine(LightningCLI):
    """`fit`, `validate`, `test`, `predict`, with every argument of the model, the data, the
    trainer, the optimiser and the scheduler as an option.

    Beyond LightningCLI:
    - `--experiment NAME`: the folder under `logs/`, by default the dataset's name;
    - `--test_best true`: after `fit`, test the best checkpoint and print the result;
    - `--checkpoint.monitor NAME`: which quantity says which epoch is best;
    - `--lr_scheduler_interval step`: the scheduler moves on each step instead of each epoch;
    - `--ckpt_path last` or `best`: of the newest run of this experiment; `fit` goes on in the
      folder of that run. A checkpoint without `--config` is used with the configuration it was
      made with.
    """

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--experiment", type=str | None, default=None, help="folder in logs/")
        parser.add_argument(
            "--test_best", type=bool, default=False, help="after fit, test the best checkpoint"
        )
        parser.add_argument(
            "--lr_scheduler_interval",
            type=str,
            choices=["epoch", "step"],
            default="epoch",
            help="when the scheduler moves on",
        )
        parser.add_lightning_class_args(BestCheckpoint, "checkpoint")
        parser.link_arguments("data.num_classes", "model.num_classes", apply_on="instantiate")
        parser.link_arguments("data.image_shape", "model.image_shape", apply_on="instantiate")
        parser.add_optimizer_args((torch.optim.Optimizer,))
        parser.set_defaults(
            {"optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1}}}
        )

    def init_parser(self, **kwargs) -> LightningArgumentParser:
        return super().init_parser(**{"exit_on_error": False, **kwargs})

    # Checkpoints of earlier runs.

    def _parse_ckpt_path(self) -> None:
        # Lightning would put the checkpoint's hyperparameters in place of the ones given on the
        # command line, without a word. Here a checkpoint that does not fit them is an error.
        pass

    def before_instantiate_classes(self) -> None:
        config = self.config[self.subcommand]
        logger = config.trainer.get("logger")
        name = config.experiment or config.data.dataset
        ours = isinstance(logger, Namespace) and "TensorBoardLogger" in logger.class_path
        if ours and not logger.init_args.get("name"):
            logger.init_args.name = name
        wanted = config.get("ckpt_path")
        if wanted is None:
            if self.subcommand != "fit":
                raise TrainingError(
                    f"{self.subcommand} needs a trained model: --ckpt_path best, last or a file"
                )
            return
        path = Path(wanted)
        if wanted in ("best", "last"):
            folder = Path(logger.init_args.save_dir, logger.init_args.name) if ours else Path(LOGS)
            path = newest_checkpoint(folder, wanted)
        check_checkpoint(path, weights_only=config.get("weights_only") is not False)
        config.ckpt_path = str(path)
        if not ours:
            return
        run = path.resolve().parent.parent
        inside = run.parent == Path(logger.init_args.save_dir, logger.init_args.name).resolve()
        if self.subcommand == "validate":
            # Its numbers would land in the middle of the training's curves.
            config.trainer.logger = False
        elif inside and (self.subcommand != "fit" or path.stem == "last"):
            # The curves, the best epoch so far and the test's result belong to that run.
            logger.init_args.version = run.name

    # The run.

    def instantiate_classes(self) -> None:
        try:
            super().instantiate_classes()
        except (ValueError, TypeError) as error:
            # A value of the right type that a class refuses, such as a negative learning rate.
            raise error if isinstance(error, MISTAKES) else TrainingError(error) from error

    def instantiate_trainer(self, **kwargs):
        config = self.config[self.subcommand]
        given = self._get(self.config_init, "trainer")["callbacks"] or []
        callbacks = [*given] if isinstance(given, list) else [given]
        callbacks += [EpochClock(), RunRecord(hyperparameters(config))]
        wanted = config.trainer.enable_progress_bar is not False
        if wanted and not any(isinstance(callback, ProgressBar) for callback in callbacks):
            callbacks.append(TQDMProgressBar(refresh_rate=20))
        return super().instantiate_trainer(callbacks=callbacks, **kwargs)

    def configure_optimizers(self, lightning_module, optimizer, lr_scheduler=None):
        chosen = LightningCLI.configure_optimizers(lightning_module, optimizer, lr_scheduler)
        if isinstance(chosen, tuple):
            scheduler = {
                "scheduler": lr_scheduler,
                "interval": self.config[self.subcommand].lr_scheduler_interval,
            }
            return {"optimizer": optimizer, "lr_scheduler": scheduler}
        return chosen

    def fit(self, **kwargs) -> None:
        self._guarded(self.trainer.fit, **kwargs)
        if self.config.fit.test_best and not self.trainer.fast_dev_run:
            best = self.trainer.checkpoint_callback.best_model_path
            kwargs = {"model": self.model, "datamodule": self.datamodule, "ckpt_path": best}
            self._guarded(self.trainer.test, verbose=False, **kwargs)
        self._print_result()

    def validate(self, **kwargs) -> None:
        self._guarded(self.trainer.validate, **kwargs)

    def test(self, **kwargs) -> None:
        self._guarded(self.trainer.test, **kwargs)

    def predict(self, **kwargs) -> None:
        """Writes predictions.csv: number of the image, class, its probability."""
        if self.trainer.world_size > 1:
            raise TrainingError("predict runs in one process: --trainer.devices 1")
        self._guarded(self.trainer.predict, **kwargs)
        folder = Path(self.trainer.log_dir or ".")
        if not self.trainer.is_global_zero:
            return
        scores = torch.cat(self.trainer.predict_loop.predictions)
        names = self.datamodule.class_names
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "predictions.csv"
        with path.open("w", newline="", encoding="utf-8") as file:
            rows = csv.writer(file)
            rows.writerow(["image", "class", "probability"])
            best = scores.max(1)
            for i, (value, index) in enumerate(
                zip(best.values.tolist(), best.indices.tolist(), strict=True)
            ):
                rows.writerow([i, names[index], f"{value:.4f}"])
        print(f"{len(scores)} predictions: {path}")

    def _guarded(self, action, **kwargs) -> None:
        try:
            action(**kwargs)
        except SystemExit:
            if not self.trainer.interrupted:
                raise
            raise Interrupted(self._what_is_kept()) from None

    def _what_is_kept(self) -> str:
        last = getattr(self.trainer.checkpoint_callback, "last_model_path", "")
        if not last:
            return "interrupted before the first epoch ended; no checkpoint was written"
        return f"interrupted; kept: {last}; go on with: train.py fit --ckpt_path {last}"

    def _print_result(self) -> None:
        log_dir = self.trainer.log_dir  # every process must ask, or the first waits for the rest
        if not self.trainer.is_global_zero:
            return
        metrics = self.trainer.callback_metrics
        network = self.model.network
        rows = [
            ("dataset", self.datamodule.dataset),
            ("weights", f"{sum(p.numel() for p in network.parameters()):,}"),
            ("epochs, steps", f"{self.trainer.current_epoch}, {self.trainer.global_step}"),
        ]
        checkpoint = self.trainer.checkpoint_callback
        score = getattr(checkpoint, "best_model_score", None)
        if score is not None:
            rows.append((f"best {checkpoint.monitor}", f"{float(score):.4f}"))
        for name in ("train/loss", "train/acc", "val/loss", "val/acc", "test/loss", "test/acc"):
            if name in metrics and not (name.startswith("val") and "test/acc" in metrics):
                rows.append((name, f"{float(metrics[name]):.4f}"))
        if getattr(checkpoint, "best_model_path", ""):
            rows.append(("checkpoint", checkpoint.best_model_path))
        if self.trainer.logger is not None and log_dir:
            rows.append(("curves", f"tensorboard --logdir {Path(log_dir).parents[1]}"))
        width = max(len(name) for name, _ in rows)
        print()
        for name, value in rows:
            print(f"  {name:<{width}}  {value}")


def newest_checkpoint(folder: Path, name: str) -> Path:
    """The newest `name`.ckpt of the runs in `folder`, or below it."""
    found = list(folder.glob(f"**/checkpoints/{name}.ckpt"))
    if not found:
        raise TrainingError(f"no run in {folder} has left a checkpoint {name}.ckpt")
    return max(found, key=lambda path: path.stat().st_mtime_ns)


def check_checkpoint(path: Path, weights_only: bool) -> None:
    """Raises TrainingError unless `path` is a file that a run has written."""
    if not path.is_file():
        raise TrainingError(f"there is no checkpoint {path}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=weights_only)
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, ValueError) as error:
        raise TrainingError(f"{path} cannot be read as a checkpoint") from error
    if not isinstance(content, dict) or "pytorch-lightning_version" not in content:
        raise TrainingError(f"{path} was not written by a run; it holds no such checkpoint")


def hyperparameters(config: Namespace) -> dict:
    """What the HParams tab shows: the model's, the data's and the optimiser's arguments."""
    shown = {"seed": config.get("seed_everything")}
    for part in ("model", "data"):
        shown |= {f"{part}.{key}": value for key, value in config[part].as_dict().items()}
    for part in ("optimizer", "lr_scheduler"):
        chosen = config.get(part)
        if chosen is not None:
            shown[part] = chosen.class_path.rpartition(".")[2]
            arguments = chosen.init_args.as_dict()
            shown |= {f"{part}.{key}": value for key, value in arguments.items()}
    for key in ("max_epochs", "max_steps", "precision"):
        shown[f"trainer.{key}"] = config.trainer.get(key)
    return shown


def with_defaults(args: list[str]) -> list[str]:
    """The arguments, the default experiment in place of none, a checkpoint's configuration where
    none is named.

    Raises:
        TrainingError: the first argument is neither a subcommand nor a request for help.
    """
    if not args:
        return ["fit", "--config", str(DEFAULT_EXPERIMENT), "--test_best", "true"]
    first = args[0]
    if first in ("-h", "--help"):
        return args
    if first.startswith("-"):
        raise TrainingError(
            f"{first} comes after the subcommand: train.py {{{','.join(SUBCOMMANDS)}}} {first} ..."
        )
    if first not in SUBCOMMANDS:
        raise TrainingError(f"no subcommand is called {first!r}; known: {', '.join(SUBCOMMANDS)}")
    checkpoint = option(args, "--ckpt_path")
    if checkpoint is None or option(args, "--config") is not None or option(args, "-c") is not None:
        return args
    path = Path(checkpoint)
    if checkpoint in ("best", "last"):
        path = newest_checkpoint(Path(LOGS, option(args, "--experiment") or ""), checkpoint)
    config = path.parent.parent / "config.yaml"
    return [first, "--config", str(config), *args[1:]] if config.is_file() else args


def option(args: list[str], name: str) -> str | None:
    """The value of the last `name VALUE` or `name=VALUE`."""
    value = None
    for i, arg in enumerate(args):
        if arg == name and i + 1 < len(args):
            value = args[i + 1]
        elif arg.startswith(f"{name}="):
            value = arg.partition("=")[2]
    return value


def quiet() -> None:
    """Silences what Lightning says that does not help the person at this command line."""
    # Advertisements and the list of accelerators that are not there; warnings still come through.
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
    for message in (
        # main() passes on the arguments that it has looked at; nothing else is meant by it.
        ".*args parameter is intended to run from within Python.*",
        # The model's own optimiser serves a plain Trainer; the command line always has one.
        ".*configure_optimizers` will be overridden.*",
        # Whole batches come from memory; a worker would only copy them.
        ".*does not have many workers.*",
        # The run's windows are logged by the model itself, and at the end of each epoch.
        ".*smaller than the logging interval.*",
        # What is logged at an epoch's end already is the figure over all processes.
        ".*recommended to use `self.log.*sync_dist=True.*",
        # A continued run writes to its own folder on purpose.
        ".*exists and is not empty.*",
        # Said by PyTorch about a deprecation inside Lightning; nothing a person here can change.
        ".*isinstance\\(treespec, LeafSpec\\).*",
    ):
        warnings.filterwarnings("ignore", message=message)


def main(args: list[str] | None = None) -> int:
    """Runs the command line; the exit status is 0, 2 for a mistake of the person's, 130 for
    Ctrl-C. A fault of the program's own ends in its traceback."""
    quiet()
    try:
        CommandLine(
            ImageClassifier,
            ImageData,
            trainer_defaults=TRAINER_DEFAULTS,
            seed_everything_default=0,
            save_config_callback=SaveConfig,
            save_config_kwargs={"overwrite": True},
            args=with_defaults(sys.argv[1:] if args is None else args),
        )
    except (Interrupted, KeyboardInterrupt) as stop:
        print(str(stop) or "interrupted", file=sys.stderr)
        return 130
    except MISTAKES as error:
        print(f"train.py: {one_line(error)}", file=sys.stderr)
        return 2
    return 0


def one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
