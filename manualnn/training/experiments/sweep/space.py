"""The search space of a sweep: options by their names on the command line, and what each may be.

    optimizer.lr: {low: 1e-3, high: 1, log: true}           a number in a range
    data.batch_size: [32, 64, 128]                          one of a list
    model.hidden_units: {layers: {low: 1, high: 3}, units: [64, 128, 256]}
    optimizer:                                              a class, each with options of its own
      SGD: {lr: {low: 1e-2, high: 1, log: true}, momentum: [0, 0.9]}
      Adam: {lr: {low: 1e-4, high: 1e-2, log: true}}

An axis draws its value from an Optuna trial, says how far its values reach, so that all of it can
be tried on the parser before the first run, and says which parameters of a trial give a value.
"""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from manualnn.training.errors import TrainingError
from manualnn.training.experiments.runs import option_text

FORMS = (
    "known are a list of choices, {low, high, log, step}, {layers, units, per_layer}, and a class "
    "with the options of each, such as {SGD: {lr: ...}, Adam: {lr: ...}}"
)
# They say what is measured, on which images, where it is written; runs that differ in one of these
# cannot be set beside each other.
FIXED = (
    "checkpoint", "ckpt_path", "config", "data.dataset", "data.num_classes", "data.root", "data.seed",
    "data.split", "data.val_fraction", "experiment", "model.image_shape", "model.num_classes",
    "seed_everything", "test_best", "trainer.callbacks", "trainer.devices", "trainer.logger",
    "trainer.num_nodes", "trainer.strategy",
)  # fmt: skip


@dataclass(frozen=True)
class Range:
    """A number from low to high, both included; `log` draws its logarithm, `step` makes a grid."""

    label: str  # Optuna's name of it
    low: float
    high: float
    log: bool = False
    step: float | None = None
    whole: bool = False

    def suggest(self, trial) -> float:
        if self.whole:
            return trial.suggest_int(
                self.label, self.low, self.high, log=self.log, step=self.step or 1
            )
        return trial.suggest_float(self.label, self.low, self.high, log=self.log, step=self.step)

    def ends(self) -> list[float]:
        return [self.low, self.high]

    def params(self, value: float) -> dict[str, Any]:
        steps = (value - self.low) / (self.step or 1)
        grid = self.whole or self.step is not None
        if not self.low <= value <= self.high or (grid and abs(steps - round(steps)) > 1e-9):
            raise ValueError(value)
        return {self.label: value}


@dataclass(frozen=True)
class Choice:
    """One of a list; what is no plain value is told to Optuna as its text."""

    label: str
    values: tuple

    def suggest(self, trial) -> Any:
        return trial.suggest_categorical(self.label, self.values)

    def ends(self) -> list[Any]:
        return list(self.values)

    def params(self, value: Any) -> dict[str, Any]:
        if isinstance(value, dict) and "class_path" in value:
            return {self.label: _choice_of(self.values, value)}
        if value not in self.values:
            raise ValueError(value)
        return {self.label: value}


@dataclass(frozen=True)
class Widths:
    """A list of `layers` numbers, all the same or, with `per_layer`, each drawn on its own."""

    layers: Range | Choice
    units: Range | Choice
    per_layer: bool = False

    def suggest(self, trial) -> list[int]:
        layers = self.layers.suggest(trial)
        if not self.per_layer:
            return [self.units.suggest(trial)] * layers if layers else []
        return [self._of_layer(l).suggest(trial) for l in range(1, layers + 1)]

    def ends(self) -> list[list[int]]:
        return [[units] * layers for layers in self.layers.ends() for units in self.units.ends()]

    def params(self, value: list[int]) -> dict[str, Any]:
        found = self.layers.params(len(value))
        for l, units in enumerate(value, 1):
            found |= (self._of_layer(l) if self.per_layer else self.units).params(units)
        if not self.per_layer and len(set(value)) > 1:
            raise ValueError(value)
        return found

    def _of_layer(self, l: int) -> Range | Choice:
        return type(self.units)(**{**vars(self.units), "label": f"{self.units.label}_{l}"})


@dataclass(frozen=True)
class Axis:
    """An option and its values: {option: value} drawn, and each that must be tried beforehand."""

    name: str
    values: Range | Choice | Widths

    def suggest(self, trial) -> dict[str, Any]:
        return {self.name: self.values.suggest(trial)}

    def ends(self) -> list[dict[str, Any]]:
        return [{self.name: value} for value in self.values.ends()]

    def params(self, config: Mapping[str, Any]) -> dict[str, Any]:
        return self.values.params(_value_in(config, self.name))


@dataclass(frozen=True)
class Branches:
    """A class, and for each class the axes of its own options."""

    name: str
    kinds: dict[str, tuple[Axis, ...]]

    def suggest(self, trial) -> dict[str, Any]:
        kind = trial.suggest_categorical(self.name, tuple(self.kinds))
        return _joined({self.name: kind}, *(axis.suggest(trial) for axis in self.kinds[kind]))

    def ends(self) -> list[dict[str, Any]]:
        return [
            {self.name: kind, **point} for kind, axes in self.kinds.items() for point in star(axes)
        ]

    def params(self, config: Mapping[str, Any]) -> dict[str, Any]:
        kind = _choice_of(self.kinds, _value_in(config, self.name))
        return _joined({self.name: kind}, *(axis.params(config) for axis in self.kinds[kind]))


def star(axes) -> Iterator[dict[str, Any]]:
    """Every end of every axis at least once, the other axes at their first: {option: value}."""
    first = [axis.ends()[0] for axis in axes]
    yield _joined(*first)
    for i, axis in enumerate(axes):
        for end in axis.ends()[1:]:
            yield _joined(*first[:i], end, *first[i + 1 :])


def suggest(axes, trial) -> dict[str, Any]:
    """{option: value} of a trial."""
    return _joined(*(axis.suggest(trial) for axis in axes))


def params_of(axes, config: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """(the parameters of a trial that draws a configuration's values, the options it cannot draw).

    Args:
        config: Plain dictionaries, every default included.
    """
    found, outside = {}, []
    for axis in axes:
        try:
            found |= axis.params(config)
        except (LookupError, TypeError, ValueError):
            outside.append(axis.name)
    return found, outside


def parse_space(
    section: Any, accepts: Callable[[dict[str, Any]], bool]
) -> tuple[Axis | Branches, ...]:
    """The axes of a `search:` section.

    Args:
        section: What the YAML holds.
        accepts: Whether the command line takes {option: value}, by the options' types.

    Raises:
        TrainingError: the section is empty, or an entry has no form that is known.
    """
    if not isinstance(section, dict) or not section:
        raise TrainingError(
            "there is nothing to search: the configuration needs a section `search:`, such as "
            "search: {optimizer.lr: {low: 1e-3, high: 1, log: true}}"
        )
    for name in section:
        plain = str(name).replace(".init_args", "")
        if any(plain == fixed or plain.startswith(f"{fixed}.") for fixed in FIXED):
            raise TrainingError(
                f"search: {name} decides what is measured or where; it must be the same in every run"
            )
    return tuple(_axis(str(name), spec, accepts) for name, spec in section.items())


def _axis(name: str, spec: Any, accepts) -> Axis | Branches:
    if isinstance(spec, dict):
        if spec.keys() <= {"layers", "units", "per_layer"}:
            return Axis(name, _widths(name, spec))
        nested = all(isinstance(inner, dict | None) for inner in spec.values())
        if spec and nested and not spec.keys() & {"low", "high", "log", "step"}:
            return _branches(name, spec, accepts)
    return Axis(name, _values(name, spec, lambda value: accepts({name: value})))


def _branches(name: str, spec: dict, accepts) -> Branches:
    kinds = {}
    for kind, inner in spec.items():
        kinds[str(kind)] = tuple(
            Axis(
                f"{name}.{key}",
                # The class must be named before an option of it is understood.
                _values(
                    f"{name}.{kind}.{key}",
                    values,
                    lambda value, kind=kind, key=key: accepts(
                        {name: str(kind), f"{name}.{key}": value}
                    ),
                ),
            )
            for key, values in (inner or {}).items()
        )
    return Branches(name, kinds)


def _widths(name: str, spec: dict) -> Widths:
    for key in ("layers", "units"):
        if key not in spec:
            raise TrainingError(f"search: {name} has no {key}; needed are layers and units")
    if not isinstance(spec.get("per_layer", False), bool):
        raise TrainingError(f"search: {name}.per_layer is {spec['per_layer']}: true or false")
    parts = {}
    for key, least in (("layers", 0), ("units", 1)):
        values = spec[key] if isinstance(spec[key], (dict, list)) else [spec[key]]
        parts[key] = _values(f"{name}.{key}", values, lambda value: isinstance(value, int))
        for value in parts[key].ends():
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise TrainingError(
                    f"search: {name}.{key} {value}: needed are whole numbers from {least}"
                )
    return Widths(**parts, per_layer=spec.get("per_layer", False))


def _values(label: str, spec: Any, accepts: Callable[[Any], bool]) -> Range | Choice:
    if isinstance(spec, list):
        return _choice(label, spec)
    if not isinstance(spec, dict) or spec.keys() - {"low", "high", "log", "step"}:
        raise TrainingError(f"search: {label} is {spec}; {FORMS}")
    return _range(label, spec, accepts)


def _choice(label: str, values: list) -> Choice:
    if not values:
        raise TrainingError(f"search: {label} is an empty list")
    plain = tuple(_plain(value) for value in values)
    if len(set(map(repr, plain))) < len(plain):
        raise TrainingError(f"search: {label} names a choice twice: {values}")
    return Choice(label, plain)


def _plain(value: Any) -> Any:
    return value if isinstance(value, (str, int, float, bool, type(None))) else option_text(value)


def _range(label: str, spec: dict, accepts: Callable[[Any], bool]) -> Range:
    for key in ("low", "high"):
        if key not in spec:
            raise TrainingError(f"search: {label} has no {key}; a range needs low and high")
    log = spec.get("log", False)
    if not isinstance(log, bool):
        raise TrainingError(f"search: {label}.log is {log}: true or false")
    low, high = _number(label, "low", spec["low"]), _number(label, "high", spec["high"])
    step = spec.get("step")
    step = None if step is None else _number(label, "step", step)
    if not low < high:
        raise TrainingError(f"search: {label}: low {low} is not below high {high}")
    if log and low <= 0:
        raise TrainingError(f"search: {label}: low is {low}; on a log scale it must be above 0")
    if step is not None and log:
        raise TrainingError(f"search: {label}: a range has a log scale or a step, not both")
    if step is not None and not 0 < step <= high - low:
        raise TrainingError(f"search: {label}: step {step} is not above 0 and within the range")
    given = [value for value in (low, high, step) if value is not None]
    # 0 to 1 are both whole numbers, and a dropout between them is none: the option's type decides.
    whole = all(isinstance(value, int) for value in given) and not accepts(low + 0.5)
    if step is not None and abs((high - low) / step - round((high - low) / step)) > 1e-9:
        raise TrainingError(f"search: {label}: steps of {step} from {low} do not meet {high}")
    if not whole:
        low, high = float(low), float(high)
    return Range(label, low, high, log, step, whole)


def _number(label: str, key: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise TrainingError(f"search: {label}.{key} is {value}: needed is a number")
    return value


def _value_in(config: Mapping[str, Any], name: str) -> Any:
    """The value of an option; a class's own options may be named without `init_args`."""
    value: Any = config
    for key in name.replace(".init_args", "").split("."):
        value = value[key] if key in value else value["init_args"][key]
    return value


def _choice_of(choices: Iterable[Any], chosen: Mapping[str, Any]) -> str:
    """The choice, such as SGD, torch.optim.SGD or one with options, that a configuration's class is.

    ValueError: there is none.
    """
    for choice in filter(lambda choice: isinstance(choice, str), choices):
        spec = json.loads(choice) if choice.startswith("{") else {"class_path": choice}
        options = spec.get("init_args") or {}
        if _is_same_class(spec["class_path"], chosen["class_path"]) and all(
            chosen["init_args"].get(name) == value for name, value in options.items()
        ):
            return choice
    raise ValueError(chosen["class_path"])


def _is_same_class(name: str, path: str) -> bool:
    """Whether a short name, or a path, is that of the class; one class may have several paths."""
    if "." not in name or name == path:
        return name in (path, path.rpartition(".")[2])
    try:
        one, other = (
            getattr(import_module(x.rpartition(".")[0]), x.rpartition(".")[2]) for x in (name, path)
        )
    except (ImportError, AttributeError):
        return False
    return one is other


def _joined(*points: dict[str, Any]) -> dict[str, Any]:
    return {name: value for point in points for name, value in point.items()}
