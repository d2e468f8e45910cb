"""A run's configuration: what the data decide, what is refused, where it is written, what is compared."""

import itertools
import math
import os
import sysconfig
import tempfile
import traceback
from collections.abc import Callable, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import ArgumentError, Namespace, get_loader
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from manualnn.training.data import DataError, ImageData
from manualnn.training.errors import DiskError, TrainingError, out_of_memory
from manualnn.training.model.metrics import MONITORED, better
from manualnn.training.model.transfer import (
    builds,
    fit_size,
    fit_to_weights,
    leave_out_defaults,
    weights_of,
)

LOGS = "logs"

# What the user can cause. Anything else is a fault of the program's and keeps its traceback.
USER_ERRORS = (
    ArgumentError,
    DataError,
    TrainingError,
    MisconfigurationException,
    torch.OutOfMemoryError,
)


@contextmanager
def refused_values():
    """A value of the right type that a class refuses, such as a negative learning rate."""
    try:
        yield
    except (ValueError, TypeError, ArithmeticError) as error:
        if isinstance(error, USER_ERRORS):
            raise
        if isinstance(
            error.__cause__, LookupError
        ):  # of a network's constructor; its text is a key
            kind = type(error.__cause__).__name__
            raise TrainingError(f"{kind}: {error.__cause__}") from error
        raise TrainingError(error) from error
    except IndexError as error:  # jsonargparse looks for the first line of an error without a text
        if traceback.extract_tb(error.__traceback__)[-1].name != "indent_text":
            raise
        raise TrainingError(
            "a class that an option names raises an error without a text when it is made"
        ) from error


@contextmanager
def refused_by_libraries(begun: Callable[[], bool]):
    """What PyTorch, Lightning or a callback raises before the first step is about an option.

    An error of the program's own, or of a network of the user's, keeps its traceback.
    """
    try:
        yield
    except USER_ERRORS:
        raise
    except (
        *(ValueError, TypeError, ArithmeticError, RuntimeError, ImportError, AttributeError),
        MemoryError,
    ) as error:
        if out_of_memory(error):
            raise torch.OutOfMemoryError(str(error) or "no memory is left") from error
        if begun() or not _is_of_a_library(error):
            raise
        raise TrainingError(f"{type(error).__name__}: {error}".removesuffix(": ")) from error


def _is_of_a_library(error: BaseException) -> bool:
    """Whether a library has raised it, and it did not come of running a network."""
    ours, libraries = Path(__file__).parents[2], Path(torch.__file__).parents[1]
    standard = Path(sysconfig.get_path("stdlib"))
    kinds = []
    for frame in traceback.extract_tb(error.__traceback__):
        path = Path(frame.filename)
        if path.is_relative_to(ours):
            kinds.append("network" if path.is_relative_to(ours / "nn") else "ours")
        elif path.is_relative_to(libraries):
            kinds.append("network" if "autograd" in path.parts else "library")
        elif path.is_absolute() and not path.is_relative_to(standard):
            kinds.append("network")  # the user's own file
    return kinds[-1:] == ["library"] and "network" not in kinds


# They hold options, or are not there: null is nothing that they may be.
_SECTIONS = ("model", "data", "trainer", "optimizer", "checkpoint", "monitor", "init_args")
_CLASSES = ("optimizer", "lr_scheduler")
# (least, most) of numbers that Lightning takes, and then divides by, ignores or stumbles over.
LIMITS = {
    "seed_everything": (0, 2**32 - 1),
    "checkpoint.every_n_epochs": (1, math.inf),
    "data.memory_gib": (0, math.inf),
    "trainer.accumulate_grad_batches": (1, math.inf),
    "trainer.check_val_every_n_epoch": (1, math.inf),
    "trainer.gradient_clip_val": (0, math.inf),
    "trainer.log_every_n_steps": (0, math.inf),
    "trainer.num_sanity_val_steps": (-1, math.inf),
}


# Batches without which a command would end as if it had done what it was asked for.
NEEDED = {
    "fit": ("limit_train_batches",),
    "validate": ("limit_val_batches",),
    "test": ("limit_test_batches",),
    "predict": ("limit_predict_batches",),
}


def check_numbers(config: Namespace, subcommand: str) -> None:
    """Raises TrainingError of the first number that is out of its limits, or of a section without any."""
    for part in ("model", "data", "trainer", "checkpoint", "monitor"):
        if not isinstance(config.get(part), Namespace):
            raise TrainingError(f"the section {part} of the configuration holds no options")
    for name, (least, most) in LIMITS.items():
        value = config.get(name)
        if isinstance(value, (int, float)) and not least <= value <= most:
            needed = f"{least} at least" if most == math.inf else f"{least} to {most}"
            raise TrainingError(f"--{name} is {value}; needed is {needed}")
    needed = NEEDED[subcommand] + ("limit_test_batches",) * bool(config.get("test_best"))
    for name in needed:
        if config.trainer.get(name) == 0 and not isinstance(config.trainer.get(name), bool):
            raise TrainingError(f"--trainer.{name} is 0: no batch would be left; needed is more")
    if config.trainer.val_check_interval == 0:
        raise TrainingError("--trainer.val_check_interval is 0; needed is more")


def empty_section(path: Path) -> str:
    """The name of a section that a configuration leaves empty, such as optimizer.init_args; else ""."""
    try:
        content = get_loader("yaml")(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return ""
    waiting = [("", content)] if isinstance(content, dict) else []
    while waiting:
        outer, section = waiting.pop()
        for key, value in section.items():
            name = f"{outer}.{key}".lstrip(".")
            if isinstance(value, dict) and value:
                waiting.append((name, value))
            elif value is None and key in _SECTIONS or value == {} and name in _CLASSES:
                return name
    return ""


def set_modes(config: Namespace, args: Sequence[str]) -> list[str]:
    """What watches a figure looks for its good end; the notes of what was set.

    PyTorch's and Lightning's default is min, whatever the figure: a rate would fall as accuracy rises.

    Raises:
        TrainingError: the arguments say the wrong end.
    """
    callbacks = config.trainer.get("callbacks")
    watching = callbacks if isinstance(callbacks, list) else [callbacks]
    notes = []
    for chosen in (config.get("lr_scheduler"), *watching):
        arguments = chosen.get("init_args") if isinstance(chosen, Namespace) else None
        monitor, mode = (arguments or {}).get("monitor"), (arguments or {}).get("mode")
        if monitor not in MONITORED or mode is None or mode == better(monitor):
            continue
        kind = chosen.class_path.rpartition(".")[2]
        if mode == "max" or _says_min(args, monitor):
            end = "larger" if mode == "max" else "smaller"
            raise TrainingError(f"{kind} waits for a {end} {monitor}: leave its mode {mode} out")
        arguments.mode = better(monitor)
        notes.append(f"note: {kind} waits for a larger {monitor}, so its mode is max, not min")
    return notes


def _says_min(args: Sequence[str], monitor: str) -> bool:
    """Whether the arguments, or a configuration in them, say `mode: min` of what watches the figure."""
    words = [part for arg in args for part in (arg.split("=", 1) if arg[:1] == "-" else [arg])]
    waiting: list[Any] = []
    for name, value in itertools.pairwise(words):
        if name.startswith("--trainer.callbacks") and name.rstrip("+").endswith("callbacks"):
            waiting.append({})  # of which the options follow
        place = name.replace(".init_args", "").rpartition(".")
        if place[0] in ("--lr_scheduler", "--trainer.callbacks") and place[2] in (
            "monitor",
            "mode",
        ):
            if not waiting or place[0] == "--lr_scheduler":
                waiting.append({})
            waiting[-1][place[2]] = value
        elif name in ("-c", "--config", "--lr_scheduler", "--trainer.callbacks"):
            with suppress(OSError, ValueError, yaml.YAMLError):
                file = Path(value)
                text = file.read_text(encoding="utf-8") if file.is_file() else value
                waiting.insert(0, get_loader("yaml")(text))
    while waiting:
        part = waiting.pop()
        if isinstance(part, dict):
            if part.get("mode") == "min" and part.get("monitor", monitor) == monitor:
                return True
            part = [*part.values()]
        waiting += part if isinstance(part, list) else []
    return False


def option(args: list[str], name: str) -> str | None:
    """The value of the last `name VALUE` or `name=VALUE`."""
    value = None
    for i, arg in enumerate(args):
        if arg == name and i + 1 < len(args):
            value = args[i + 1]
        elif arg.startswith(f"{name}="):
            value = arg.partition("=")[2]
    return value


def fit_to_data(config: Namespace) -> None:
    """Gives a network that takes num_classes or image_shape the data's, or those of its trained weights.

    Not by links, as the model itself gets them: those ask that every network has both.
    """
    network = config.model.get("network")
    arguments = network.get("init_args") if isinstance(network, Namespace) else None
    asked = [name for name in ("num_classes", "image_shape") if name in (arguments or ())]
    weights, built = weights_of(config), builds(network)
    if not asked and not built:
        return
    if weights:
        fit_size(config)
    with refused_values():
        data = ImageData(**config.data.as_dict())
        for name in asked:
            arguments[name] = getattr(data, name)
    if weights:
        fit_to_weights(config, data.image_shape[0])
    if built:
        config.model.replace_head |= not asked
        leave_out_defaults(network)


def check_experiment(name: str, option: str = "--experiment") -> None:
    """Raises TrainingError if the name, which the option gives, leads out of the folder of all runs."""
    if not name.isprintable():
        raise TrainingError(f"{option} {name} holds a control character")
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise TrainingError(
            f"{option} {name} leads out of {LOGS}/; give a name such as mnist or mine/mnist"
        )


def logs_of(trainer: Namespace) -> Path:
    """The folder in which the run's own will be made."""
    first = trainer.logger[0] if isinstance(trainer.logger, list) else trainer.logger
    arguments = first.init_args if isinstance(first, Namespace) else Namespace()
    save_dir = arguments.get("save_dir") or trainer.get("default_root_dir") or "."
    return Path(save_dir, arguments.get("name") or "").expanduser()


def check_writable(folder: Path) -> None:
    """Raises DiskError unless a file can be made in the folder, or where it will be made.

    By trying: permissions alone do not tell, for root and for file systems such as /proc. Nothing is
    made that would have to be removed again, perhaps from under a run that starts at this moment.
    """
    while True:
        there = next(place for place in (folder, *folder.parents) if os.path.lexists(place))
        try:
            with tempfile.TemporaryFile(dir=there) as file:
                file.write(bytes(4096))  # an empty file fits on a full disk
            return
        except OSError as error:
            if isinstance(error, FileNotFoundError) and not os.path.lexists(there):
                continue  # a run that had failed removed it, for it was empty
            raise DiskError(
                f"the log folder {folder} cannot be written: {error.strerror}; "
                "--trainer.logger.save_dir names another place for it"
            ) from error


# Where the images lie and how a step is computed: nothing to compare.
NOT_COMPARED = {
    "model": {"convert"},
    "data": {"root", "download", "num_workers", "memory_gib", "seed"},
    "optimizer": {"foreach", "fused", "capturable", "differentiable", "maximize"},
    "lr_scheduler": {"last_epoch"},
}


def hyperparameters(config: Namespace) -> dict:
    """What the HParams tab shows: the arguments that the user compares between runs."""
    shown = {"seed": config.get("seed_everything")}
    for part in ("model", "data", "optimizer", "lr_scheduler"):
        chosen = config.get(part)
        if chosen is None:
            continue
        if "class_path" in chosen:
            shown[part] = chosen.class_path.rpartition(".")[2]
            chosen = chosen.init_args
        for key, value in chosen.as_dict().items():
            if key not in NOT_COMPARED.get(part, ()):
                shown[f"{part}.{key}"] = (
                    value["class_path"] if key == "network" and value else value
                )
    if config.data.dataset != "ImageFolder":
        for key in ("channels", "exif", "image_size", "test_fraction"):
            shown.pop(f"data.{key}")
    for key in ("max_epochs", "max_steps", "precision"):
        if config.trainer.get(key) != -1:  # no limit
            shown[f"trainer.{key}"] = config.trainer.get(key)
    return shown
