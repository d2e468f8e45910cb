"""Whether a command would use a trained network as it was trained: the checkpoint says how that was.

Of two activations, losses or scales of the images the weights have the same shapes, so that nothing else would
say that the figures are of another network than the one that was trained.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from manualnn.training.errors import TrainingError
from manualnn.training.model.classifier import DEFAULT_ACTIVATION

# They decide how it is trained, or are seen from the weights' shapes.
_OF_TRAINING = (
    "dropout", "weight_init", "convert", "replace_head", "freeze", "head_lr", "warmup_steps",
)  # fmt: skip
_OF_THE_DATA = ("num_classes", "image_shape", "weights", "dropout")  # of a network's own
_IMAGES = ("image_size", "channels")
_ABSENT = object()


def settings_in(content: Mapping[str, Any], part: str) -> dict[str, Any]:
    """A part of the settings of the run that left the checkpoint; of a plain Trainer's what the model says."""
    settings = content.get("settings", {}).get(part)
    if settings is None and part == "model":
        settings = dict(content.get("hyper_parameters", {}))
        settings.pop("_instantiator", None)
    return settings or {}


def check_same(
    content: Mapping[str, Any],
    model: Mapping[str, Any],
    data: Mapping[str, Any],
    args: Sequence[str],
) -> str:
    """Of a command on trained weights: a note where the checkpoint's own setting is used, else "".

    Args:
        content: The checkpoint's.
        model, data: Of this command's configuration, as plain values.
        args: The command, in which an option is refused that would change nothing.

    Raises:
        TrainingError: the figures would be those of another network, or of other images.
    """
    there = settings_in(content, "model")
    given = {arg.partition("=")[0].lstrip("-").replace(".init_args", "") for arg in args}
    found = [
        (f"model.{name}", here, then)
        for name, here, then in _model_differences(there, model)
        if name not in _OF_TRAINING or name != "convert" and f"model.{name}" in given
    ]
    ran = settings_in(content, "data")
    found += [
        (f"data.{name}", data[name], ran[name])
        for name in _IMAGES
        if data["dataset"] == ran.get("dataset") == "ImageFolder"
        and name in ran
        and _size(data[name]) != _size(ran[name])
    ]
    note = ""
    if "normalize" in ran and data.get("normalize") != ran["normalize"]:
        if data.get("normalize") == "auto":  # the scale is in the checkpoint
            note = f"note: the images are scaled as in the run, --data.normalize {_shown(ran['normalize'])}"
        else:
            found.append(("data.normalize", data.get("normalize"), ran["normalize"]))
    cure = "leave the option out, or the --config that says so"
    if not given & {"config", "c", *(name for name, *_ in found)}:
        cure = "no config.yaml was found by the checkpoint: give --config, that of its run"
    _refuse(found, cure)
    return note


def check_network(content: Mapping[str, Any], model: Mapping[str, Any], config: object) -> None:
    """Of a configuration that names the network of a checkpoint, as plain values.

    Raises:
        TrainingError: it names another one.
    """
    there = settings_in(content, "model")
    found = _model_differences(there, {name: x for name, x in model.items() if name in there})
    found = [(f"model.{name}", *values) for name, *values in found if name not in _OF_TRAINING]
    _refuse(found, f"{config} is another run's configuration, or was edited")


def _refuse(found: Sequence[tuple[str, Any, Any]], cure: str) -> None:
    if found:
        listed = "; ".join(
            f"--{name} is {_shown(here)} here and {_shown(then)} in the checkpoint"
            for name, here, then in found
        )
        raise TrainingError(f"{listed}: the figures would be of something else; {cure}")


def _model_differences(there: Mapping, here: Mapping) -> Iterator[tuple[str, Any, Any]]:
    """(name, here, there), in the model's part of two configurations."""
    for name in here.keys() & there.keys():
        values = here[name], there[name]
        if name == "network":
            yield from _network_differences(*map(_class, values))
        elif name == "activation" and here.get("hidden_units") is not None:
            if _spelled(values[0]) != _spelled(values[1]):
                yield name, *values
        elif name not in ("num_classes", "image_shape") and _plain(values[0]) != _plain(values[1]):
            yield name, *values


def _network_differences(here: dict, there: dict) -> Iterator[tuple[str, Any, Any]]:
    if here.get("class_path") != there.get("class_path"):
        yield "network", here.get("class_path"), there.get("class_path")
        return
    ours, theirs = here.get("init_args") or {}, there.get("init_args") or {}
    for name in (ours.keys() | theirs.keys()) - {*_OF_THE_DATA}:
        values = ours.get(name, _ABSENT), theirs.get(name, _ABSENT)
        if _plain(values[0]) != _plain(values[1]):
            yield f"network.{name}", *values


def _class(value: Any) -> dict:
    return value if isinstance(value, dict) else {"class_path": value}


def _spelled(activation: str | None) -> str:
    return (activation or DEFAULT_ACTIVATION).lower().replace("_", "")


def _size(value: Any) -> Any:
    return [value, value] if isinstance(value, int) else value


def _plain(value: Any) -> Any:
    """Of a tuple and a list that hold the same, the same."""
    return [_plain(x) for x in value] if isinstance(value, (list, tuple)) else value


def _shown(value: Any) -> str:
    if value is _ABSENT:
        return "the default"
    return "null" if value is None else str(value)
