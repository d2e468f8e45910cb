"""What is kept of a run beside its curves: checkpoints, times, hyperparameters, the network."""

import os
import signal
import time
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import (
    Checkpoint,
    EarlyStopping,
    ModelCheckpoint,
    StochasticWeightAveraging,
    TQDMProgressBar,
    WeightAveraging,
)
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from torch.utils.tensorboard.summary import hparams as hparams_summary

from manualnn.tools.files import remove_parts
from manualnn.training.errors import Interrupted, TrainingError
from manualnn.training.model.classifier import record
from manualnn.training.model.metrics import MONITORED, better, is_reported
from manualnn.training.run import snapshot
from manualnn.training.run.folder import curve_sizes, cut_curves
from manualnn.training.run.loggers import folders, in_folder
from manualnn.training.run.position import Position
from manualnn.training.run.signals import EndSignals
from manualnn.training.text.messages import quote

_OWN = ("best", "last", "averaged")  # files of BestCheckpoint


def holds_average(pl_module: LightningModule, callback: StochasticWeightAveraging) -> bool:
    """Whether the network's weights are the average that the callback has made."""
    average = callback._average_model
    return average is not None and all(
        torch.equal(ours.detach(), mean.detach().to(ours.device))
        for ours, mean in zip(pl_module.parameters(), average.parameters(), strict=True)
    )


class BestCheckpoint(ModelCheckpoint):
    """Keeps `best.ckpt`, the best epoch by `monitor`, and `last.ckpt`, from which a run goes on.

    `last.ckpt` is the last finished epoch, or, with `every_n_steps` or after a signal that asks the run to
    end, a place within one. Whatever the place, a run that goes on from there takes the steps of the one that
    was not interrupted: the place, the generators' states, gathered gradients and running figures are in the
    checkpoint. What StochasticWeightAveraging makes at the end is `averaged.ckpt`; of a run that ends before
    there is none, and `has_average` is False.

    Args:
        monitor: The logged quantity that says which epoch is best: val/acc, val/loss, val/balanced_acc,
            val/macro_f1, of more than ten classes val/top5_acc, train/acc or train/loss.
            Without validation data the last epoch counts as the best.
        mode: Whether the largest or the smallest value is best; by default min for a loss,
            max for anything else.
        every_n_epochs: Epochs between two looks.
        every_n_steps: Steps from one last.ckpt to the next within an epoch; by default none is written there.

    Raises:
        TrainingError: no quantity of that name is logged; another callback would write one of these files.
    """

    def __init__(
        self,
        monitor: str = "val/acc",
        mode: Literal["max", "min"] | None = None,
        every_n_epochs: int = 1,
        every_n_steps: int | None = None,
    ):
        if monitor not in MONITORED:
            raise TrainingError(
                f"nothing called {monitor!r} is logged to monitor; known: {', '.join(MONITORED)}"
            )
        if every_n_steps is not None and every_n_steps < 1:
            raise TrainingError(f"every_n_steps is {every_n_steps}; it must be 1 at least")
        super().__init__(
            monitor=monitor,
            mode=mode or better(monitor),
            filename="best",
            every_n_epochs=every_n_epochs,
            # A continued run goes on in its own folder and replaces its own files.
            enable_version_counter=False,
        )
        self._last_every = every_n_steps
        self._last_place: Position | None = (
            None  # of last.ckpt, as far as this process has written it
        )
        self.has_average: bool | None = None  # None: nothing averages
        self._signals = EndSignals()
        self._loaded: dict[str, Any] | None = None
        self._before_validation: list[dict[str, Any]] | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage == "fit" and not validates(trainer):
            self.monitor = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._check_place(trainer)
        own = {os.path.realpath(os.path.join(self.dirpath, f"{name}.ckpt")): name for name in _OWN}
        for callback in trainer.callbacks:
            if callback is self or not isinstance(callback, Checkpoint):
                continue
            names = [getattr(callback, "filename", None)]
            if getattr(callback, "save_last", None):
                names.append(callback.CHECKPOINT_NAME_LAST)
            for name in filter(None, names):
                path = os.path.join(getattr(callback, "dirpath", None) or "", f"{name}.ckpt")
                if taken := own.get(os.path.realpath(path)):
                    # One that waits for an error would write now.
                    trainer.callbacks.remove(callback)
                    raise TrainingError(
                        f"{type(callback).__name__} would write {path}, which is the run's own {taken} "
                        "checkpoint: give it another filename or dirpath, and leave its save_last out"
                    )

    def _check_place(self, trainer: Trainer) -> None:
        """A run goes on in the folder of its last.ckpt, and writes over no other's."""
        there = [path for name in _OWN if (path := Path(self.dirpath, f"{name}.ckpt")).exists()]
        own = Path(self.dirpath, "last.ckpt") if len(there) != 1 else there[0]
        goes_on = trainer.ckpt_path and Path(trainer.ckpt_path).resolve() == own.resolve()
        if there and not (goes_on or self.has_left_one or trainer.fast_dev_run):
            raise TrainingError(
                f"{own} is another run's, and this one would write over it: leave --trainer.logger as it is, "
                "or name another --trainer.default_root_dir; to go on with that run, "
                f"--ckpt_path {quote(own)}"
            )

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._signals.install()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._signals.remove()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        self._signals.remove()

    # What is in a checkpoint, whoever writes it.

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        # Whoever goes on from here finds the curves up to here.
        for logger in trainer.loggers:
            logger.save()
        if trainer.state.fn != TrainerFn.FITTING:
            return
        place = Position.of(trainer)
        place.write(checkpoint["loops"]["fit_loop"])
        # What happens in a validation is forgotten: it begins anew.
        within = trainer.validating and place.next == "validation"
        states = self._before_validation if within else None
        checkpoint["place"] = place.state()
        checkpoint["processes"] = states or snapshot.taken(trainer, pl_module)
        checkpoint["figures"] = {name: float(x) for name, x in trainer.callback_metrics.items()}
        if trainer.is_global_zero and (places := folders(trainer)):
            sizes = [curve_sizes(place) for place in places]
            checkpoint["curves"] = {name: x for one in sizes for name, x in one.items()}

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if trainer.state.fn == TrainerFn.FITTING and "place" in checkpoint:
            self._loaded = {name: checkpoint[name] for name in ("place", "processes", "figures")}
        # The folder may have been moved, or be called by another path: its best epoch stays its best.
        # Lightning would forget it, or take its file for one that is to be deleted.
        state = checkpoint.get("callbacks", {}).get(self.state_key)
        if state and Path(trainer.ckpt_path).resolve().parent == Path(self.dirpath).resolve():
            for name in ("best_model_path", "kth_best_model_path", "last_model_path"):
                state[name] = self._here(state[name])
            kept = state["best_k_models"].items()
            state["best_k_models"] = {self._here(path): score for path, score in kept}
            state["dirpath"] = self.dirpath
            worst = state["kth_best_model_path"]
            if worst and worst not in state["best_k_models"]:
                raise ValueError(f"{worst} is not among the best")

    def _here(self, path: str) -> str:
        return os.path.join(self.dirpath, os.path.basename(path)) if path else path

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._signals.install()
        loaded, self._loaded = self._loaded, None
        if loaded is None:
            return
        trainer.callback_metrics.update(
            {name: torch.tensor(value) for name, value in loaded["figures"].items()}
        )
        place = Position(**loaded["place"])
        place.go_on(trainer)
        if Path(trainer.ckpt_path).resolve() == Path(self.dirpath, "last.ckpt").resolve():
            self._last_place = place
        if not snapshot.put_back(loaded["processes"], trainer, pl_module):
            count = len(loaded["processes"])
            rank_zero_warn(
                f"the checkpoint was left by {count} process{'es' * (count > 1)}, and this run has "
                f"{trainer.world_size}: what is random from here on is not what it would have been"
            )

    # When last.ckpt is written.

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        super().on_train_batch_end(trainer, pl_module, *args)
        stopped = trainer.should_stop or trainer.global_step == trainer.max_steps
        every = self._last_every
        due = every and not trainer.global_step % every and self._stepped(trainer)
        asked = trainer.strategy.reduce_boolean_decision(
            self._signals.received is not None, all=False
        )
        if stopped or due or asked:
            self._write_last(trainer)
        if asked:
            self._stop(trainer)

    def _stepped(self, trainer: Trainer) -> bool:
        return not trainer.fit_loop.epoch_loop._should_accumulate()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            self._before_validation = snapshot.taken(trainer, pl_module)

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, *args: Any
    ) -> None:
        if self._signals.received is None or trainer.state.fn != TrainerFn.FITTING:
            return
        if trainer.sanity_checking or not trainer.is_global_zero:
            return  # the first process is told by who ends it, and ends the others
        # An average of the weights has their place while it is validated.
        for callback in trainer.callbacks:
            if isinstance(callback, WeightAveraging):
                callback.on_validation_epoch_end(trainer, pl_module)
        self._write_last(trainer, alone=True)
        self._stop(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_validation_end(trainer, pl_module)
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            if trainer.should_stop or not Position.of(trainer).last:
                self._write_last(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_epoch_end(trainer, pl_module)
        if Position.of(trainer).next == "plateau":
            self._write_last(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self.best_model_path:
            self.best_model_path = self.last_model_path
        found = [c for c in trainer.callbacks if isinstance(c, StochasticWeightAveraging)]
        if found and not trainer.fast_dev_run:
            # Lightning puts the average into the network after the last of max_epochs, and then alone.
            self.has_average = any(holds_average(pl_module, callback) for callback in found)
            if self.has_average:  # which is in no other file
                path = os.path.join(self.dirpath, "averaged.ckpt")
                trainer.save_checkpoint(path, weights_only=False)

    def _write_last(self, trainer: Trainer, alone: bool = False) -> None:
        """Args:
        alone: This process writes while the others are elsewhere.
        """
        place = Position.of(trainer)
        if trainer.fast_dev_run or place == self._last_place:
            return
        self.last_model_path = os.path.join(self.dirpath, "last.ckpt")
        if alone:
            content = trainer._checkpoint_connector.dump_checkpoint(weights_only=False)
            trainer.strategy.checkpoint_io.save_checkpoint(content, self.last_model_path)
        else:
            trainer.save_checkpoint(self.last_model_path, weights_only=False)
        self._last_place = place

    @property
    def has_left_one(self) -> bool:
        """Whether there was a last.ckpt at any time."""
        return self._last_place is not None

    def _should_save_on_train_epoch_end(self, trainer: Trainer) -> bool:
        # Without validation there is no other moment.
        return self.monitor is None or super()._should_save_on_train_epoch_end(trainer)

    def _stop(self, trainer: Trainer) -> None:
        received = self._signals.received or signal.SIGTERM  # another process has received it
        raise Interrupted(received.name, 128 + received)


def validates(trainer: Trainer) -> bool:
    """Whether there are validation images, and they are asked for."""
    if trainer.limit_val_batches == 0:
        return False
    return bool(getattr(trainer.datamodule, "val_fraction", 1)) or bool(
        trainer.datamodule.val_dataloader()
    )


class Bar(TQDMProgressBar):
    """The progress bar; when the run fails it ends its line, so that the message gets its own."""

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        bars = (
            self._val_progress_bar,
            self._test_progress_bar,
            self._predict_progress_bar,
            self._train_progress_bar,
        )
        for bar in bars:
            if bar is not None:
                bar.close()


class EpochClock(Callback):
    """Logs `epoch`, its number from 0; `time/epoch`, seconds from its start to its end with its
    validation; and `time/images_per_second`, training images of all processes a second of training
    alone."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start()  # a run that goes on within an epoch does not start that epoch

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start()

    def _start(self) -> None:
        self._started = time.perf_counter()
        self._trained: float | None = None

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking and getattr(self, "_trained", 0.0) is None:
            self._trained = self._elapsed()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        whole = self._elapsed()
        images = pl_module.trained_images * trainer.world_size
        seconds = self._trained if self._trained is not None else whole
        line = {
            "epoch": trainer.current_epoch,
            "time/epoch": whole,
            "time/images_per_second": images / seconds,
        }
        record(trainer, line, trainer.global_step)

    def _elapsed(self) -> float:
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            # Work is only queued until now; without this the clock would count the queueing.
            torch.cuda.synchronize()
        return time.perf_counter() - self._started


class GoingOn(Callback):
    """Clears away what a killed run has left half done, when a run goes on in its folder.

    Args:
        tests: The run tests at its end, whether it was tested before or not.
    """

    def __init__(self, tests: bool):
        self._tests = tests
        self._sizes: dict[str, int] | None = None
        self._began = False

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._sizes = checkpoint.get("curves")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._began = True
        for place in self._own_folders(trainer):
            remove_parts(place)
            cut_curves(place, trainer.global_step, self._sizes, self._tests)
        if trainer.ckpt_path and any(has_stopped(callback) for callback in trainer.callbacks):
            trainer.should_stop = True  # Lightning would look after one more epoch

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._began and self._tests:
            # There was nothing to do: all stays but the test, which is made anew.
            for place in self._own_folders(trainer):
                cut_curves(place, trainer.global_step, None, tests=True)

    def _own_folders(self, trainer: Trainer) -> list[Path]:
        """The run's, and those of its other loggers, if its checkpoint is in its own."""
        path, places = trainer.ckpt_path, folders(trainer)
        if not (path and places and trainer.is_global_zero):
            return []
        for logger in in_folder(trainer):
            logger.save()
        return places if Path(path).resolve().is_relative_to(places[0].resolve()) else []


def has_stopped(callback: Callback) -> bool:
    """Whether it is an EarlyStopping that has ended its run."""
    if not isinstance(callback, EarlyStopping):
        return False
    return bool(callback.stopped_epoch) or 0 < callback.patience <= callback.wait_count


class RunRecord(Callback):
    """Writes the hyperparameters and the table of layers to TensorBoard, once a run.

    The HParams tab shows a run's last value of each metric named here, so the names are written
    when the run starts and whatever is logged later, up to the test, is its final metric. However
    the run ends, its end is written too; without it TensorBoard shows the run as still going on.

    Args:
        hyperparameters: name -> value; lists are written as text.
    """

    def __init__(self, hyperparameters: dict[str, Any]):
        self.hyperparameters = {
            name: value if isinstance(value, (bool, int, float, str)) else str(value)
            for name, value in hyperparameters.items()
            if value is not None
        }
        self._end = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        logger = trainer.logger
        if not isinstance(logger, TensorBoardLogger) or not trainer.is_global_zero:
            return
        writer = logger.experiment
        # A continued run has the file of its first part beside its own.
        continued = len(list(Path(logger.log_dir).glob("events.out.tfevents.*"))) > 1
        tested = [name.replace("val", "test") for name in MONITORED if name.startswith("val")]
        reported = [x for x in (*MONITORED, *tested) if is_reported(x, pl_module.num_classes)]
        names = dict.fromkeys(reported, 0.0)
        experiment, start, self._end = hparams_summary(self.hyperparameters, names)
        if continued:
            return
        writer.file_writer.add_summary(experiment)
        writer.file_writer.add_summary(start)
        writer.add_text("network", layer_table(pl_module.network))

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            self._write_end(trainer)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        self._write_end(trainer)

    def _write_end(self, trainer: Trainer) -> None:
        if self._end is not None:
            trainer.logger.experiment.file_writer.add_summary(self._end)
            trainer.logger.experiment.flush()
            self._end = None


def layer_table(network: torch.nn.Module) -> str:
    """The layers of a network as a Markdown table: name, layer, number of weights."""
    rows = ["| layer | what | weights |", "|---|---|---:|"]
    for name, module in network.named_modules():
        if not any(module.children()):
            count = sum(p.numel() for p in module.parameters())
            rows.append(f"| {name} | `{module}` | {count:,} |")
    total = sum(p.numel() for p in network.parameters())
    rows.append(f"| all | | {total:,} |")
    return "\n".join(rows)
