"""What a formula reads beside its arguments: watched, so that a kernel never computes with what was.

A formula is followed through its code: each name of a module, of a closure, of a function that it calls, and
that function's code. What a name means is compared before every call. Of torch and of tensors a formula may
name what computes element by element (POINTWISE) and nothing else: no random number, no state of PyTorch's,
nothing about the tensor but its numbers, such as its shape. A formula that reads something whose content may
change under the same name, or does what cannot be seen in its code, is not traced.
"""

import builtins
import dis
import functools
import operator
import types
from collections.abc import Callable
from typing import Any

import torch

from manualnn.kernels.steps import STEPS

_PLAIN = {bool, int, float, str, type(None), type(...)}
_BUILTINS = {abs, min, max, pow, round, sum}
_TYPES = {float, int, bool, range, tuple, zip, enumerate, reversed}
_HOMES = (torch, torch.nn.functional, torch.special, operator)
_STATELESS = {"dtype", "device", "memory_format"}

# The classes of torch.ops.aten.relu and of torch.ops.aten.relu.default.
_PACKET, _OVERLOAD = type(torch.ops.aten.relu), type(torch.ops.aten.relu.default)

# Names of functions, methods and operations that give a number for each number, and read nothing else.
POINTWISE = {operation._schema.name.removeprefix("aten::") for operation in STEPS}
POINTWISE |= set(
    """
    absolute add celu clip clone divide dtype elu full_like gelu hardshrink hardsigmoid hardswish
    logsigmoid mish multiply negative ones_like positive relu6 selu softshrink softsign square
    subtract tanhshrink to true_divide truediv zeros_like
    """.split()
)
# Instructions that name something: of those that are not known here, in any Python, nothing can be said.
_NAMING = {*dis.hasname, *dis.hasfree}
_ATTRIBUTES = {"LOAD_ATTR", "LOAD_METHOD"}
_KNOWN = {*_ATTRIBUTES, "LOAD_GLOBAL", "LOAD_DEREF", "LOAD_CLASSDEREF"}
_NESTED = "MAKE_FUNCTION"
_SILENT = ("CACHE", "PRECALL", "EXTENDED_ARG", "PUSH_NULL")
# What stands behind + and its like.
_OPERATORS = [
    f"__{way}{name}__"
    for name in "add sub mul truediv pow and or xor".split()
    for way in ("", "r", "i")
]
_OPERATORS += [f"__{name}__" for name in "neg pos abs invert lt le gt ge eq ne".split()]


class Unseen(Exception):
    """Something whose change could not be seen."""


Reads = list[tuple[Callable[[Any], Any], Any, Any]]  # (how it is read, by which key, what it was)


def reads_of(formula: Any) -> Reads | None:
    """What ``unchanged`` compares, or None for a formula that reads what may change unseen."""
    found: dict[Any, Any] = {}
    try:
        _object(formula, found, [])
    except Unseen:
        return None
    for name in _OPERATORS:
        _get(found, functools.partial(getattr, torch.Tensor), "Tensor", name)
    return list(found.values())


def unchanged(reads: Reads) -> bool:
    """Whether each name still means what it meant."""
    try:
        return all(get(key) is value for get, key, value in reads)
    except (AttributeError, KeyError, ValueError):
        return False


def _object(value, found, within):
    """An object that a formula names: plain, torch's, or a function whose own code is looked at."""
    parts = None if isinstance(value, type) else getattr(value, "formula_parts", None)
    if type(value) in (tuple, frozenset):
        parts = value
    if parts is not None:
        for part in parts:
            _object(part, found, within)
    elif isinstance(value, types.FunctionType):
        if _of_torch(
            value.__globals__.get("__name__")
        ):  # __module__ is what functools.wraps copies
            _pointwise(value.__name__)
        elif value.__code__ not in within:
            _code(value, found, [*within, value.__code__])
    elif isinstance(value, types.BuiltinFunctionType):
        if value in _BUILTINS or value.__module__ == "math":
            return
        if not any(value is getattr(home, value.__name__, None) for home in _HOMES):
            raise Unseen(value)
        _pointwise(value.__name__)
    elif isinstance(value, _OVERLOAD):
        _pointwise(value._schema.name.removeprefix("aten::"))
    elif isinstance(value, type):
        if value not in _TYPES:
            raise Unseen(value)
    elif (
        type(value) not in _PLAIN
    ):  # not of a class derived from float, which may compute otherwise
        if type(value).__name__ not in _STATELESS or not _of_torch(type(value).__module__):
            raise Unseen(value)


def _of_torch(module):
    return isinstance(module, str) and module.partition(".")[0] == "torch"


def _is_module(value):
    """Not of a class of the user's, which may look its names up otherwise."""
    return isinstance(value, types.ModuleType) and (
        type(value) is types.ModuleType or _of_torch(type(value).__module__)
    )


def _pointwise(name):
    if name.strip("_") not in POINTWISE:  # add_ is in place, and F.threshold is called _threshold
        raise Unseen(name)


def _code(function, found, within):
    """Follows the names in a function's code."""
    code, names = function.__code__, function.__globals__
    cells = dict(zip(code.co_freevars, function.__closure__ or (), strict=True))
    instructions = list(dis.get_instructions(code))
    of_function = functools.partial(getattr, function)
    for part in ("__code__", "__defaults__", "__kwdefaults__"):
        _get(found, of_function, id(function), part)
    for value in function.__defaults__ or ():
        _object(value, found, within)
    for key in function.__kwdefaults__ or {}:
        _object(_get(found, function.__kwdefaults__.__getitem__, id(function), key), found, within)
    resolved: set[int] = set()  # the places of attributes that were followed
    for place, instruction in enumerate(instructions):
        name = instruction.opname
        if name == _NESTED or (instruction.opcode in _NAMING and name not in _KNOWN):
            raise Unseen(name)
        if name in _ATTRIBUTES and place not in resolved:
            _pointwise(instruction.argval)
            _get(found, functools.partial(getattr, torch.Tensor), "Tensor", instruction.argval)
        if name in ("LOAD_DEREF", "LOAD_CLASSDEREF"):
            cell = cells.get(instruction.argval)
            if cell is None:
                raise Unseen(instruction.argval)
            value = _get(found, _content, id(cell), cell)
        elif name == "LOAD_GLOBAL":
            key = instruction.argval
            if key in names:
                value = _get(found, names.__getitem__, id(names), key)
            else:
                _get(found, names.get, id(names), key)  # a global of that name would hide it
                value = _get(found, vars(builtins).__getitem__, id(builtins), key)
        else:
            continue
        value = _attributes(value, instructions, place, found, resolved)
        _object(value, found, within)


def _attributes(value, instructions, place, found, resolved):
    """The end of a chain of names after a module: ``torch.relu``, ``torch.ops.aten.relu.default``."""
    get: Callable[[str], Any]
    for at in range(place + 1, len(instructions)):
        instruction = instructions[at]
        if instruction.opname in _SILENT:
            continue
        if instruction.opname not in _ATTRIBUTES:
            break
        if isinstance(value, _PACKET):
            get = functools.partial(getattr, value)
        elif _is_module(value) and instruction.argval in vars(value):
            get = vars(value).__getitem__
        else:  # torch.ops.aten makes its names when they are asked for
            break
        value = _get(found, get, id(value), instruction.argval)
        resolved.add(at)
    return value


def _content(cell):
    return cell.cell_contents


def _get(found, get, place, key):
    """Reads and remembers."""
    try:
        value = get(key)
    except (AttributeError, KeyError, ValueError) as error:
        raise Unseen(key) from error
    found[place, str(key)] = (get, key, value)
    return value
