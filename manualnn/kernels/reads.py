"""What a formula reads besides its arguments, so that a kernel is not kept when that has changed.

A kernel holds the numbers that were there when its formula was traced. A formula may read globals, closures,
attributes of modules; of each that it names the object is remembered, and compared at each call. A formula
that reads anything whose content may change under the same name, or does what cannot be seen in its code,
is not traced.
"""

import builtins
import dis
import types
from collections.abc import Callable
from typing import Any

_PLAIN = (bool, int, float, str, type(None), type(...))
_BUILTINS = {abs, min, max, pow, round, len, isinstance, sum}
_TYPES = {float, int, bool, range, tuple, zip, enumerate, reversed}
_STATELESS = {"OpOverload", "OpOverloadPacket", "_OpNamespace", "dtype", "device", "memory_format"}
# Instructions that name something: of those that are not known here, in any Python, nothing can be said.
_NAMING = {*dis.hasname, *dis.hasfree}
_KNOWN = {"LOAD_ATTR", "LOAD_METHOD", "LOAD_GLOBAL", "LOAD_DEREF", "LOAD_CLASSDEREF"}
_NESTED = "MAKE_FUNCTION"


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
    return list(found.values())


def unchanged(reads: Reads) -> bool:
    """Whether each name still means what it meant."""
    try:
        return all(get(key) is value for get, key, value in reads)
    except (KeyError, ValueError):
        return False


def _object(value, found, within):
    """An object that a formula names: plain, torch's, or a function whose own code is looked at."""
    parts = None if isinstance(value, type) else getattr(value, "formula_parts", None)
    if isinstance(value, (tuple, frozenset)):
        parts = value
    if parts is not None:
        for part in parts:
            _object(part, found, within)
    elif isinstance(value, types.FunctionType):
        if not _of_torch(value.__module__) and value.__code__ not in within:
            _code(value, found, [*within, value.__code__])
    elif isinstance(value, types.BuiltinFunctionType):
        if value not in _BUILTINS and not _of_torch(value.__module__):
            raise Unseen(value)
    elif isinstance(value, type):
        if value not in _TYPES and not _of_torch(value.__module__):
            raise Unseen(value)
    elif not isinstance(value, (*_PLAIN, types.ModuleType)):
        if type(value).__name__ not in _STATELESS or not _of_torch(type(value).__module__):
            raise Unseen(value)


def _of_torch(module):
    return isinstance(module, str) and module.partition(".")[0] in ("torch", "math", "_operator")


def _code(function, found, within):
    """Follows the names in a function's code."""
    code, names = function.__code__, function.__globals__
    cells = dict(zip(code.co_freevars, function.__closure__ or (), strict=True))
    instructions = list(dis.get_instructions(code))
    for value in (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()):
        _object(value, found, within)
    for place, instruction in enumerate(instructions):
        name = instruction.opname
        if name == _NESTED or (instruction.opcode in _NAMING and name not in _KNOWN):
            raise Unseen(name)
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
                value = _get(found, vars(builtins).__getitem__, id(builtins), key)
        else:
            continue
        value = _attributes(value, instructions[place + 1 :], found)
        _object(value, found, within)


def _attributes(value, following, found):
    """The end of a chain of names after a module: ``torch.nn.functional.relu``."""
    for instruction in following:
        if instruction.opname in ("CACHE", "PRECALL", "EXTENDED_ARG", "PUSH_NULL"):
            continue
        if instruction.opname not in ("LOAD_ATTR", "LOAD_METHOD"):
            break
        if not isinstance(value, types.ModuleType):
            break
        if instruction.argval not in vars(
            value
        ):  # torch.ops.aten makes its names when they are asked for
            break
        value = _get(found, vars(value).__getitem__, id(value), instruction.argval)
    return value


def _content(cell):
    return cell.cell_contents


def _get(found, get, place, key):
    """Reads and remembers."""
    try:
        value = get(key)
    except (KeyError, ValueError) as error:
        raise Unseen(key) from error
    found[place, str(key)] = (get, key, value)
    return value
