"""A run's configuration: what the data decide, what is refused, where it is written, what is compared."""

import tempfile
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from jsonargparse import ArgumentError, Namespace
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from manualnn.training.data import DataError, ImageData
from manualnn.training.errors import DiskError, TrainingError
from manualnn.training.transfer import fit_size, fit_to_weights, weights_of

LOGS = "logs"

# What a person can cause. Anything else is a fault of the program's and keeps its traceback.
MISTAKES = (
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
        raise error if isinstance(error, MISTAKES) else TrainingError(error) from error


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
    if not asked:
        return
    weights = weights_of(config)
    if weights:
        fit_size(config)
    with refused_values():
        data = ImageData(**config.data.as_dict())
        for name in asked:
            arguments[name] = getattr(data, name)
    if weights:
        fit_to_weights(config, data.image_shape[0])


def check_experiment(name: str) -> None:
    """Raises TrainingError if the name leads out of the folder of all runs."""
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise TrainingError(
            f"--experiment {name} leads out of {LOGS}/; give a name such as mnist or mine/mnist"
        )


def logs_of(trainer: Namespace) -> Path:
    """The folder in which the run's own will be made."""
    arguments = trainer.logger.init_args if isinstance(trainer.logger, Namespace) else Namespace()
    save_dir = arguments.get("save_dir") or trainer.get("default_root_dir") or "."
    return Path(save_dir, arguments.get("name") or "").expanduser()


def check_writable(folder: Path) -> None:
    """Raises DiskError unless a file can be made in the folder, which need not be there yet.

    By trying: permissions alone do not tell, for root and for file systems such as /proc.
    """
    new = []
    try:
        new += [place for place in (folder, *folder.parents) if not place.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(4096))  # an empty file fits on a full disk
    except OSError as error:
        raise DiskError(
            f"the log folder {folder} cannot be written: {error.strerror}; "
            "--trainer.logger.save_dir names another place for it"
        ) from error
    finally:
        with suppress(OSError):
            for place in new:
                place.rmdir()


def remove_unused(folder: Path | None) -> None:
    """Removes the folder of a run that failed before its training began, with empty ones above."""
    if folder is None or (folder / "config.yaml").exists():
        return
    for pattern in ("events.out.tfevents.*", "hparams.yaml"):
        for file in folder.glob(pattern):
            file.unlink(missing_ok=True)
    with suppress(OSError):
        for place in (folder, folder.parent, folder.parent.parent):
            place.rmdir()


# Where the images lie and how a step is computed: nothing to compare.
NOT_COMPARED = {
    "model": {"convert"},
    "data": {"root", "download", "num_workers", "memory_gib", "seed"},
    "optimizer": {"foreach", "fused", "capturable", "differentiable", "maximize"},
    "lr_scheduler": {"last_epoch"},
}


def hyperparameters(config: Namespace) -> dict:
    """What the HParams tab shows: the arguments that a person compares between runs."""
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
