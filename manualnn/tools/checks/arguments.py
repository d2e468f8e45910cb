"""What a call is given: which of its tensors are variables, wherever they stand, and a call with others.

No function here refers to itself in a closure: such a cycle would keep tensors alive that a check watches.
"""

import dataclasses
import types

import torch

from manualnn.tools.checks.complexes import in_dtype, is_number, of_pairs, pairs


class Arguments:
    """Positional and keyword arguments, with the floating tensors in them taken out as variables.

    tensors: the variables, in order, also those in lists, tuples and dicts; a complex one stands as its
    real and imaginary parts, in a last dimension of two. names: of each, ``x``, ``xs[1]`` or
    ``batch['key']``. fixed: names of arguments that are passed on as they are (statistics, labels).
    """

    def __init__(self, inputs, keywords, names, fixed=(), dtype=torch.float64):
        self.dtype, self.fixed = dtype, tuple(fixed)
        self.names, self.tensors, self.complex = [], [], set()
        unknown = set(fixed) - {*names, *keywords}
        if unknown:
            raise NoSuchInput(
                f"not_variables: no input is called {sorted(unknown)[0]!r}; there are: "
                f"{', '.join([*names[: len(inputs)], *keywords])}"
            )
        named = zip(names, inputs, strict=False)
        self.inputs = [self._taken(name, value) for name, value in named]
        self.keywords = {name: self._taken(name, value) for name, value in keywords.items()}

    def _taken(self, name, value, fixed=False):
        fixed = fixed or name in self.fixed
        if isinstance(value, torch.Tensor):
            if fixed or not is_number(value):
                return value
            value, slot = value.detach(), Slot(len(self.tensors))
            if value.is_complex():
                self.complex.add(slot.index)
                value = pairs(value)
            self.tensors.append(value.to(self.dtype))
            self.names.append(name)
            return slot
        return mapped(value, lambda key, part: self._taken(f"{name}[{key!r}]", part, fixed))

    def constants(self):
        """What is passed on as it is, and is no tensor: those are cast, and are no state of the function's."""
        return _constants([*self.inputs, *self.keywords.values()])

    def broadcasts(self):
        """Whether a tensor that is passed on as it is fits a variable element by element, as a target does."""
        fixed = [t.shape for t in flat([self.inputs, self.keywords]) if t.numel() > 1]
        return any(_fits(shape, t.shape) for shape in fixed for t in self.tensors)

    def call(self, function, given):
        """function of the arguments, with the tensors ``given`` in the place of the variables."""

        inputs = [self._put(value, given) for value in self.inputs]
        return function(*inputs, **{n: self._put(v, given) for n, v in self.keywords.items()})

    def _put(self, value, given):
        if isinstance(value, Slot):
            t = given[value.index]
            return t if value.index not in self.complex else of_pairs(t)
        if isinstance(value, torch.Tensor) and is_number(value):
            # In the dtype of the rest, and anew each time: a call may write to statistics.
            dtype = given[0].dtype if len(given) else self.dtype
            return in_dtype(value.detach(), dtype).clone()
        return mapped(value, lambda _, part: self._put(part, given))


def _constants(value):
    if isinstance(value, (list, tuple, dict)):
        parts = value.values() if isinstance(value, dict) else value
        return [constant for part in parts for constant in _constants(part)]
    return [] if isinstance(value, (torch.Tensor, Slot)) else [value]


def _fits(shape, other):
    pairs = zip(reversed(shape), reversed(other), strict=False)
    return len(shape) <= len(other) and all(n in (1, m) for n, m in pairs)


class NoSuchInput(ValueError):
    """A name that no input has."""


class Slot:
    """The place of a variable among the arguments."""

    def __init__(self, index):
        self.index = index


def mapped(value, function):
    """A list, tuple or dict with function(key, part) of each part; anything else as it is."""
    if isinstance(value, dict):
        return {key: function(key, part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        parts = [function(i, part) for i, part in enumerate(value)]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    return value


def flat(value):
    """The tensors in a tensor, tuple, list, dict, dataclass or namespace, in order."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, types.SimpleNamespace) or (
        dataclasses.is_dataclass(value) and not isinstance(value, (type, dict))
    ):
        value = dict(vars(value))
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (tuple, list)):
        return [t for part in value for t in flat(part)]
    return []
