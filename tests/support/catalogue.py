"""What an entry of the two catalogues is: a function, what it is called with, and what is said of it.

wrong_functions.WRONG and right_functions.RIGHT are lists of Entry. Each file under functions_wrong/ and
functions_right/ holds those of one subject.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass(frozen=True)
class Entry:
    """One function to check.

    subject: an autograd.Function class, a function, or (``module``) what makes a module.
    inputs: makes the positional and keyword arguments: ``args, kwargs = entry.inputs()``.
    kind: the kind of fault, or of what looks like one, in a few words.
    words: patterns, one of which stands in the first finding, whatever the case (wrong ones only).
    options: what check is given besides.
    """

    name: str
    subject: Callable
    inputs: Callable[[], tuple[tuple, dict]]
    kind: str
    words: tuple[str, ...] = ()
    module: bool = False
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def target(self):
        return self.subject() if self.module else self.subject


def enter(entries: list[Entry]):
    """A decorator that enters what it decorates: ``@wrong(name, kind, inputs, *words)``."""

    def named(name, kind, inputs, *words, module=False, **options):
        def keep(subject):
            entries.append(Entry(name, subject, inputs, kind, words, module, options))
            return subject

        return keep

    return named


def normals(*shapes: tuple[int, ...], dtype=torch.float32, seed=0):
    """Makes positional arguments of these shapes, normally distributed and always the same."""

    def inputs():
        generator = torch.Generator().manual_seed(seed)
        return tuple(torch.randn(s, generator=generator, dtype=dtype) for s in shapes), {}

    return inputs


def given(*args, **kwargs):
    """Makes these arguments, copied each time."""

    def copied(value):
        if isinstance(value, torch.Tensor):
            return value.clone()
        if isinstance(value, (list, tuple)):
            return type(value)(map(copied, value))
        if isinstance(value, dict):
            return {key: copied(v) for key, v in value.items()}
        return value

    return lambda: (copied(args), copied(kwargs))


def normal(*shape: int, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))
