"""Checkpoints of earlier runs: which one is meant, and whether a run may go on from it."""

import pickle
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch.cli import instantiate_class

from manualnn.training.errors import TrainingError
from manualnn.training.run_folder import is_held, stopped_early

# A run goes on with the settings in these parts of its configuration: the weights, the optimiser's
# and the scheduler's state and the order of the images come from the checkpoint.
KEPT = ("seed_everything", "model", "data", "optimizer", "lr_scheduler", "lr_scheduler_interval")
# These say where the images lie, how fast they come and what is kept, not what is learned.
FREE = ("data.root", "data.download", "data.num_workers", "data.memory_gib", "model.convert")


def newest_checkpoint(folder: Path, name: str, going_on: bool = False) -> Path:
    """The newest `name`.ckpt of the runs in `folder`, or below it.

    A run that was killed right before its first last.ckpt has left the same as best.ckpt.

    Args:
        going_on: The newest run is meant, not the newest that got as far as a checkpoint.
    """
    found = [*folder.glob(f"**/checkpoints/{name}.ckpt")]
    if name == "last":
        best = folder.glob("**/checkpoints/best.ckpt")
        found += [path for path in best if not path.with_name("last.ckpt").exists()]
    times = {path: path.stat().st_mtime_ns for path in found}
    newest = max(times, key=times.get, default=None)
    early = stopped_early(folder, since=times.get(newest, 0)) if going_on or not newest else None
    if early is not None:
        if is_held(early):
            raise TrainingError(f"the run {early} has left no checkpoint yet; it is still going on")
        older = f"; to go on with an older run: --ckpt_path {newest}" if newest else ""
        raise TrainingError(
            f"the run {early} was stopped before its first checkpoint: there is nothing to go on "
            f"from. To start it anew: python train.py fit --config {early / 'config.yaml'}{older}"
        )
    if newest is None:
        raise TrainingError(
            f"no run in {folder} has left a checkpoint {name}.ckpt; fit without --ckpt_path starts one"
        )
    return newest


def read_checkpoint(path: Path, weights_only: bool) -> dict:
    """The content; raises TrainingError unless `path` is a file that a run has written."""
    if not path.is_file():
        raise TrainingError(f"there is no checkpoint {path}")
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
    except (RuntimeError, EOFError, KeyError, ValueError, OSError) as error:
        raise TrainingError(f"{path} cannot be read as a checkpoint") from error
    if not isinstance(content, dict) or "pytorch-lightning_version" not in content:
        raise TrainingError(f"{path} was not written by a run; it holds no such checkpoint")
    return content


def configuration_of(checkpoint: Path) -> Path:
    """Where the run that left the checkpoint keeps its configuration."""
    return checkpoint.parent.parent / "config.yaml"


def check_unchanged(checkpoint: Path, content: dict, config: dict[str, Any]) -> None:
    """Raises TrainingError if `config`, a plain dictionary, is not what the run was started with.

    A checkpoint without its run's configuration can only be compared by its optimiser's state.
    """
    path = configuration_of(checkpoint)
    if path.is_file():
        run = yaml.safe_load(path.read_text(encoding="utf-8"))
        found = [found for part in KEPT for found in _changed(run, config, part)]
    else:
        found = _changed_optimizer(content, config["optimizer"])
    if found:
        raise TrainingError(
            f"{'; '.join(found)}. A run goes on with the settings it was started with: leave them "
            "as they were, or start a new run without --ckpt_path"
        )


def _changed(run: dict, now: dict, part: str) -> Iterator[str]:
    if part in run and part in now:
        for name, there, here in _differences(run[part], now[part], part):
            option = name.replace(".init_args", "")
            if option not in FREE:
                yield f"--{option} is {_shown(here)} here and {_shown(there)} in the run"


def _differences(there: Any, here: Any, name: str) -> Iterator[tuple[str, Any, Any]]:
    """(name, there, here) of each value that differs; of a class that differs, the class alone."""
    if isinstance(there, dict) and isinstance(here, dict):
        if there.get("class_path") != here.get("class_path"):
            yield name, there, here
            return
        # A run of an older version lacks the options that came later.
        for key in there.keys() & here.keys():
            yield from _differences(there[key], here[key], f"{name}.{key}")
    elif there != here:
        yield name, there, here


def _shown(value: Any) -> str:
    if isinstance(value, dict) and "class_path" in value:
        value = value["class_path"].rpartition(".")[2]
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
