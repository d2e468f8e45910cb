"""Random numbers: each call of what is checked draws the same, and all is left as it was."""

import functools
import random
import sys
import types
from contextlib import contextmanager

import torch

from manualnn.tools.checks.arguments import Arguments


def seeded(seed, own=()):
    """All global generators: torch's, Python's, NumPy's where it is in use; and a function's own.

    torch.manual_seed takes milliseconds: of a device that is not in use it notes the stack.
    """
    torch.default_generator.manual_seed(seed)
    random.seed(seed)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)
    for generator in own:
        if isinstance(generator, torch.Generator):
            generator.manual_seed(seed)
        elif hasattr(generator, "seed"):  # random.Random, numpy's RandomState
            generator.seed(seed)
        else:
            bits = generator.bit_generator
            bits.state = type(bits)(seed).state


@contextmanager
def generators_kept(*targets):
    """Puts all global generators back where they were, and those of the targets."""
    numpy = sys.modules.get("numpy")
    states = torch.get_rng_state(), random.getstate(), numpy and numpy.random.get_state()
    own = [(g, _state(g)) for target in targets for g in generators_of(target)]
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        random.setstate(states[1])
        if numpy:
            numpy.random.set_state(states[2])
        for generator, state in own:
            _set_state(generator, state)


def generators_of(target):
    """The generators that a function, a Function, a module or a list of arguments holds, in whatever way."""
    return [g for g in held_by(target, _kinds()) if not isinstance(g, random.SystemRandom)]


def held_by(target, kinds, most=2000):
    """What a function holds of these kinds, in its closure, defaults and globals, in modules and lists."""
    found, seen, waiting = [], set(), [target]
    while waiting and len(seen) < most:
        value = waiting.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, kinds):
            found.append(value)
        else:
            waiting += _within(value, kinds)
    return found


def _within(value, kinds):
    if isinstance(value, functools.partial):
        return [value.func, *value.args, *value.keywords.values()]
    if isinstance(value, types.MethodType):
        return [value.__self__, value.__func__]
    if isinstance(value, types.BuiltinMethodType):  # generator.random, say
        return [] if isinstance(value.__self__, types.ModuleType) else [value.__self__]
    if isinstance(value, (staticmethod, classmethod)):
        return [value.__func__]
    if isinstance(value, types.FunctionType):
        cells = [c.cell_contents for c in value.__closure__ or () if c != types.CellType()]
        named = [value.__globals__.get(name) for name in value.__code__.co_names]
        worth = (types.FunctionType, torch.nn.Module)
        own = [v for v in named if isinstance(v, kinds) or isinstance(v, worth)]
        return [*cells, *own, *(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values()]
    if isinstance(value, Arguments):
        return value.constants()
    if isinstance(value, torch.nn.Module):
        return [type(value).forward, *vars(value).values()]
    if isinstance(value, type) and issubclass(value, torch.autograd.Function):
        return [v for c in value.__mro__ for v in vars(c).values()]
    if isinstance(value, dict):
        return list(value.values())
    if isinstance(getattr(type(value), "__call__", None), types.FunctionType):  # noqa: B004
        return [type(value).__call__, *getattr(value, "__dict__", {}).values()]
    return list(value) if type(value) in (list, tuple) else []


def _kinds():
    numpy = sys.modules.get("numpy")
    of_numpy = (numpy.random.Generator, numpy.random.RandomState) if numpy else ()
    return (torch.Generator, random.Random, *of_numpy)


def _state(generator):
    if isinstance(generator, random.Random):
        return generator.getstate()
    bits = getattr(generator, "bit_generator", None)
    return generator.get_state() if bits is None else bits.state


def _set_state(generator, state):
    bits = getattr(generator, "bit_generator", None)
    if isinstance(generator, random.Random):
        generator.setstate(state)
    elif bits is None:
        generator.set_state(state)
    else:
        bits.state = state
