"""Checkpoints of earlier runs: which one is meant, and whether a run may go on from it."""

import pickle
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.cli import instantiate_class
from lightning.pytorch.trainer.connectors.checkpoint_connector import _CheckpointConnector
from lightning.pytorch.trainer.states import TrainerFn

from manualnn.training.errors import Interrupted, TrainingError
from manualnn.training.run.configuration import USER_ERRORS
from manualnn.training.run.folder import is_locked, order, stopped_early
from manualnn.training.run.saving import verify
from manualnn.training.run.states import hand_over
from manualnn.training.text.messages import quote

# A run goes on with the settings in these parts of its configuration: the weights, the optimiser's
# and the scheduler's state and the order of the images come from the checkpoint.
SAME = (
    "seed_everything", "model", "data", "optimizer", "lr_scheduler", "lr_scheduler_interval",
    "early_stopping", "trainer.limit_train_batches", "trainer.overfit_batches",
)  # fmt: skip
# With these a run may go on otherwise: what is learned from here on changes, or what is kept of it.
SAID = (
    "trainer.accumulate_grad_batches", "trainer.gradient_clip_val", "trainer.gradient_clip_algorithm",
    "trainer.precision", "trainer.devices", "trainer.num_nodes", "trainer.strategy",
    "trainer.sync_batchnorm", "trainer.deterministic", "trainer.plugins", "trainer.callbacks",
    "trainer.limit_val_batches", "trainer.check_val_every_n_epoch", "trainer.val_check_interval",
    "trainer.max_time", "checkpoint.every_n_epochs",
)  # fmt: skip
# These say where the images lie, how fast they come and what is kept, not what is learned.
FREE = ("data.root", "data.download", "data.num_workers", "data.memory_gib", "model.convert")
MISSING = "missing"  # of a value that is not there


def newest_checkpoint(folder: Path, name: str, going_on: bool = False) -> Path:
    """The `name`.ckpt of the newest run in `folder`, or below it; see `run_folder.order`.

    A run that was killed right before its first last.ckpt has left the same as best.ckpt.

    Args:
        going_on: The newest run is meant, not the newest that got as far as a checkpoint.
    """
    found = [*folder.glob(f"**/checkpoints/{name}.ckpt")]
    if name == "last":
        best = folder.glob("**/checkpoints/best.ckpt")
        found += [path for path in best if not path.with_name("last.ckpt").exists()]
    newest = max(found, key=lambda path: order(path.parent.parent), default=None)
    run = newest and newest.parent.parent
    early = stopped_early(folder, since=run) if going_on or not newest else None
    if early is not None:
        if is_locked(early):
            raise TrainingError(f"the run {early} has left no checkpoint yet; it is still going on")
        older = f"; to go on with an older run: --ckpt_path {quote(newest)}" if newest else ""
        raise TrainingError(
            f"the run {early} was stopped before its first checkpoint: there is nothing to go on "
            f"from. To start it anew: python train.py fit --config {quote(early / 'config.yaml')}"
            f"{older}"
        )
    if newest is None:
        raise TrainingError(
            f"no run in {folder} has left a checkpoint {name}.ckpt; fit without --ckpt_path starts one"
        )
    return newest


def passed_over(folder: Path, checkpoint: Path) -> str:
    """A note that a newer run in `folder` than the checkpoint's has left none; "" if there is no such run."""
    run = stopped_early(folder, since=checkpoint.parent.parent)
    return f"note: the newer run {run} has left no checkpoint" if run else ""


def read_checkpoint(path: Path, weights_only: bool) -> dict:
    """The content; raises TrainingError unless `path` is, whole, a file that a run has written."""
    if not path.is_file():
        raise TrainingError(f"there is no checkpoint {path}")
    verify(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=weights_only)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL (\S+)", str(error))
        if named is None:
            raise TrainingError(f"{path} cannot be read as a checkpoint") from error
        raise TrainingError(
            f"{path} is not loaded: it holds {named[1]}, and loading that could run any code; "
            "checkpoints hold tensors and plain values"
        ) from error
    except Exception as error:  # what a malformed pickle leads to depends on its bytes
        raise TrainingError(f"{path} cannot be read as a checkpoint") from error
    if not isinstance(content, dict) or "pytorch-lightning_version" not in content:
        raise TrainingError(f"{path} was not written by a run; it holds no such checkpoint")
    state = content.get("state_dict")
    tensors = isinstance(state, dict) and all(isinstance(x, torch.Tensor) for x in state.values())
    step = content.get("global_step")
    settings = content.get("settings", {})
    if not (tensors and type(step) is int and step >= 0 and isinstance(settings, dict)):
        raise TrainingError(f"{path} was not written by a run: it lacks weights or settings")
    return content


@contextmanager
def well_formed(path: str | Path) -> Iterator[None]:
    """Whatever comes of reading what no run has written, as a TrainingError."""
    try:
        yield
    except (*USER_ERRORS, Interrupted, OSError):
        raise
    except Exception as error:
        raise TrainingError(
            f"{path} holds what does not fit: {type(error).__name__}: {error}"
        ) from error


class OwnCheckpoints(_CheckpointConnector):
    """Loads the checkpoint that the command names, or none, and says in one line what does not fit.

    Lightning's own goes on from `hpc_ckpt_1.ckpt` in the working directory where SLURM has started
    the process, and from an OnExceptionCheckpoint's file: whichever run has left them.

    Args:
        say: Takes a line for the person.
    """

    def __init__(self, trainer: Trainer, say: Callable[[str], None]):
        super().__init__(trainer)
        self._say = say

    def _parse_ckpt_path(self, state_fn, ckpt_path, *args, **options):
        if ckpt_path is None:
            return None
        return super()._parse_ckpt_path(state_fn, ckpt_path, *args, **options)

    def resume_start(self, checkpoint_path=None, weights_only=None) -> None:
        with well_formed(checkpoint_path):
            super().resume_start(checkpoint_path, weights_only)

    def restore_model(self) -> None:
        with well_formed(self._ckpt_path):
            # Other classes are told by their names here, by the sizes of weights there.
            self._check_state(self.trainer.datamodule)
            super().restore_datamodule()
            super().restore_model()

    def restore_datamodule(self) -> None:
        """Has been, before the model."""

    def restore_callbacks(self) -> None:
        with well_formed(self._ckpt_path):
            states = (self._loaded_checkpoint or {}).get("callbacks")
            if states and self.trainer.state.fn == TrainerFn.FITTING:
                hand_over(self.trainer.callbacks, states, self._say, own="BestCheckpoint")
            for callback in self.trainer.callbacks:
                # Those of others may hold what they like.
                if type(callback).__module__.split(".")[0] in ("manualnn", "lightning"):
                    self._check_state(callback, "callbacks")
            super().restore_callbacks()

    def restore_training_state(self) -> None:
        with well_formed(self._ckpt_path):
            if self._loaded_checkpoint and self.trainer.training:
                self._check_complete()
            super().restore_training_state()

    def restore_optimizers(self) -> None:
        """PyTorch gives each state the dtype of its parameter; some optimisers keep others, on purpose."""
        super().restore_optimizers()
        content, ours = self._loaded_checkpoint, self.trainer.lightning_module.state_dict()
        kept = content["state_dict"].items()
        if any(name in ours and ours[name].dtype != value.dtype for name, value in kept):
            return  # the run goes on in another precision
        for optimizer, saved in zip(
            self.trainer.strategy.optimizers, content["optimizer_states"], strict=True
        ):
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            for number, values in saved["state"].items():
                state = optimizer.state[parameters[number]]
                for name, value in values.items():
                    if isinstance(value, torch.Tensor) and value.dtype != state[name].dtype:
                        state[name] = value.to(state[name].device)

    def _check_complete(self) -> None:
        """Lightning passes by what is missing, and would go on with another run's optimiser."""
        content, strategy = self._loaded_checkpoint, self.trainer.strategy
        loops = content["loops"]["fit_loop"]
        _check_kinds(self.trainer.fit_loop.state_dict(), loops, "loops")
        _check_counts(loops)
        for state in content["callbacks"].values():
            if isinstance(state, dict) and state.get("scheduler_state") is not None:
                raise TrainingError(
                    f"{self._ckpt_path}: StochasticWeightAveraging had begun to average, and Lightning does "
                    "not go on from there; it does from a checkpoint before --trainer.callbacks.swa_epoch_start"
                )
        for name in ("optimizer_states", "lr_schedulers"):
            ours = (
                strategy.optimizers if name == "optimizer_states" else strategy.lr_scheduler_configs
            )
            if len(content[name]) != len(ours):
                raise ValueError(f"{name}: {len(content[name])}, where {len(ours)} are needed")

    def _check_state(self, holder: Any, part: str | None = None) -> None:
        """Against what it would write itself, if it finds a state of its own."""
        content = self._loaded_checkpoint or {}
        states = content.get(part, {}) if part else content
        key = getattr(holder, "state_key", type(holder).__qualname__)
        if holder is not None and isinstance(states, dict) and key in states:
            _check_kinds(holder.state_dict(), states[key], key)


def _check_kinds(ours: Any, theirs: Any, name: str) -> None:
    """Raises ValueError where a value is of another kind than ours; what is None, or not there, may be any."""
    known = (dict, str, (list, tuple), (int, float, torch.Tensor))
    kind = next((kind for kind in known if isinstance(ours, kind)), object)
    if theirs is not None and not isinstance(theirs, kind):
        raise ValueError(f"{name} is a {type(theirs).__name__}, not a {type(ours).__name__}")
    if isinstance(ours, dict) and theirs is not None:
        for key in ours.keys() & theirs.keys():
            _check_kinds(ours[key], theirs[key], f"{name}.{key}")


def _check_counts(value: Any) -> None:
    """Of steps and epochs; a negative one would train for longer than was asked for."""
    if isinstance(value, dict):
        for inner in value.values():
            _check_counts(inner)
    elif isinstance(value, (int, float)) and not (value == int(value) and 0 <= value < 2**63):
        raise ValueError(f"{value} is no number of steps")


def configuration_of(checkpoint: Path) -> Path:
    """Where the run that left the checkpoint keeps its configuration."""
    return checkpoint.parent.parent / "config.yaml"


def settings_of(config: dict[str, Any]) -> dict[str, Any]:
    """What a checkpoint holds of its run's configuration, a plain dictionary."""
    command = ("config", "ckpt_path", "weights_only", "test_best")
    settings = {part: value for part, value in config.items() if part not in command}
    logger = settings.get("trainer", {}).get("logger")
    if isinstance(logger, (dict, list)):
        several = isinstance(logger, list)
        logger = [_unnumbered(one) for one in logger] if several else _unnumbered(logger)
        settings["trainer"] = {**settings["trainer"], "logger": logger}
    return settings


def _unnumbered(logger: Any) -> Any:
    """Without which run it is, no setting of it: only one that is gone on with states it."""
    if isinstance(logger, dict) and "version" in (arguments := logger.get("init_args") or {}):
        return {**logger, "init_args": {**arguments, "version": None}}
    return logger


def check_unchanged(content: dict, config: dict[str, Any]) -> None:
    """Raises TrainingError if `config`, a plain dictionary, is not what the run was started with.

    A checkpoint that was not left by `fit` holds no settings: its optimiser's state is compared.
    """
    there = content.get("settings")
    if there is None:
        found = _changed_optimizer(content, config["optimizer"])
    else:
        found = [found for part in SAME for found in _changed(there, config, part)]
    if found:
        raise TrainingError(
            f"{'; '.join(found)}. A run goes on with the settings it was started with: leave them "
            "as they were, or start a new run without --ckpt_path"
        )


def otherwise(content: dict, config: dict[str, Any]) -> str:
    """Which settings of SAID are others in `config` than in the run; "" if none is, or nothing is known."""
    there = content.get("settings") or {}
    found = [found for name in SAID for found in _changed(there, config, name)]
    return "; ".join(found)


def check_unedited(path: Path, config: dict[str, Any], content: dict) -> str:
    """What else of `config`, read from `path`, is not what the run wrote; "" if all is.

    Raises:
        TrainingError: what was changed decides what the checkpoint's weights are, or are tested on.
    """
    there, config = content.get("settings"), settings_of(config)
    if there is None:
        return ""
    found = [found for part in SAME for found in _changed(there, config, part, exact=True)]
    if found:
        raise TrainingError(
            f"{path} is not what the run of the checkpoint wrote: {'; '.join(found)}. Put it back, or "
            f"say that you mean it: --config {quote(path)}"
        )
    others = [part for part in config if part not in SAME]  # of the trainer what may change, too
    return "; ".join(x for part in others for x in _changed(there, config, part, exact=True))


def _changed(run: dict, now: dict, part: str, exact: bool = False) -> Iterator[str]:
    """ "--data.batch_size is 64 here and 512 in the run", of each setting in this part.

    A run of an older version lacks the options that came later, unless what it wrote is compared.
    """
    there, here = (_at(part, settings) for settings in (run, now))
    if exact or MISSING not in (there, here):
        found = _differences(there, here, part, exact)
        for name, there, here in found:
            option = name.replace(".init_args", "")
            if option not in FREE:
                if _shown(here) == _shown(there):
                    yield f"--{option} has other options here than in the run"
                else:
                    yield f"--{option} is {_shown(here)} here and {_shown(there)} in the run"


def _at(name: str, settings: dict) -> Any:
    value: Any = settings
    for key in name.split("."):
        value = value.get(key, MISSING) if isinstance(value, dict) else MISSING
    return value


def _differences(there: Any, here: Any, name: str, exact: bool) -> Iterator[tuple[str, Any, Any]]:
    """(name, there, here) of each value that differs; of a class that differs, the class alone."""
    if isinstance(there, dict) and isinstance(here, dict):
        if there.get("class_path") != here.get("class_path"):
            yield name, there, here
            return
        for key in there.keys() | here.keys() if exact else there.keys() & here.keys():
            inner = there.get(key, MISSING), here.get(key, MISSING)
            yield from _differences(*inner, f"{name}.{key}", exact)
    elif there != here:
        yield name, there, here


def _shown(value: Any) -> str:
    if isinstance(value, list) and value and all(isinstance(x, dict) for x in value):
        return f"[{', '.join(map(_shown, value))}]"
    if isinstance(value, dict) and "class_path" in value:
        value = str(value["class_path"]).rpartition(".")[2]
    return "null" if value is None else str(value)


def _changed_optimizer(content: dict, config: dict[str, Any]) -> list[str]:
    groups = [
        group for state in content.get("optimizer_states", ()) for group in state["param_groups"]
    ]
    if not groups:
        return ["the checkpoint holds no optimiser's state"]
    there = groups[0]
    here = instantiate_class([torch.nn.Parameter(torch.zeros(1, 1))], config).param_groups[0]
    del here["params"]
    if here.keys() - there.keys():
        return [f"--optimizer is {_shown(config)} here and another one in the checkpoint"]
    if content.get("lr_schedulers"):
        return []  # the scheduler has moved what would be compared
    return [
        f"--optimizer.{name} is {value} here and {there[name]} in the checkpoint"
        for name, value in here.items()
        if value != there[name] and value is not None
    ]
