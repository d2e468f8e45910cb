"""What is compared: `--vary` and `--variant` as options of `fit`, each under a name."""

import itertools
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from jsonargparse import get_loader

from manualnn.training.errors import TrainingError
from manualnn.training.experiments.runs import UNREADABLE, option_text, options


@dataclass
class Variant:
    """What is compared: options of `fit` under a name; and its finished runs, a seed each."""

    name: str
    args: list[str]
    found: dict[int, dict[str, float]] = field(default_factory=dict)  # seed -> figures
    curves: dict[int, dict[str, list[tuple[float, float]]]] = field(default_factory=dict)
    lost: dict[int, str] = field(default_factory=dict)  # seed -> why it has no figures

    @property
    def folder(self) -> str:
        return re.sub(r"[^\w.=+-]+", "_", self.name).strip("_.") or "variant"


def variants_of(vary: Sequence[Sequence[str]], named: Sequence[str]) -> Iterator[Variant]:
    """Every combination of a value of each `--vary`, and of a `--variant` where there are any."""
    axes: list[list[Variant]] = [[_named(text) for text in named]] if named else []
    # A class before its options, whichever was named first.
    vary = sorted(vary, key=lambda pair: pair[0].replace(".init_args", "").count("."))
    axes += [_varied(name, text) for name, text in vary]
    if not axes:
        raise TrainingError(
            "nothing to compare: --vary model.activation '[relu, tanh]', or --variant 'NAME: OPTIONS'"
        )
    taken = set()
    for parts in itertools.product(*axes):
        variant = Variant(
            ", ".join(part.name for part in parts), [arg for part in parts for arg in part.args]
        )
        if variant.folder in taken:
            raise TrainingError(f"two variants are called {variant.name}")
        taken.add(variant.folder)
        yield variant
    if len(taken) == 1:
        raise TrainingError(
            f"there is one variant alone, {variant.name}: nothing to compare it with"
        )


def _named(text: str) -> Variant:
    name, colon, rest = text.partition(":")
    try:
        args = shlex.split(rest)
    except ValueError as error:  # a quote that is left open
        raise TrainingError(f"--variant {text!r}: {error}") from error
    if not (colon and name.strip() and args and args[0].startswith("-")):
        raise TrainingError(
            f"--variant {text!r}: needed is 'NAME: OPTIONS', such as "
            "'Adam: --optimizer Adam --optimizer.lr 0.001'"
        )
    return Variant(name.strip(), args)


def _varied(name: str, text: str) -> list[Variant]:
    name = name.removeprefix("--")
    try:
        values = get_loader("yaml")(text)
        if isinstance(values, list) and values:
            return [Variant(_label(name, value), options({name: value})) for value in values]
    except UNREADABLE as error:
        raise TrainingError(f"--vary {name} {text}: that is no YAML") from error
    raise TrainingError(f"--vary {name} {text}: needed is a list, such as '[relu, tanh]'")


def _label(name: str, value: Any) -> str:
    """relu, or batch_size 32: words speak for themselves, numbers do not."""
    if isinstance(value, dict) and "class_path" in value:
        given = value.get("init_args", {}).items()
        inner = ", ".join(f"{key}={v}" for key, v in given)
        short = str(value["class_path"]).rpartition(".")[2]
        return f"{short}({inner})" if inner else short
    if isinstance(value, str) and not value.replace(".", "").isdigit():
        return value.rpartition(".")[2]
    return f"{name.rpartition('.')[2]} {option_text(value)}"
