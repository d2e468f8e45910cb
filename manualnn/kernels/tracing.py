"""A formula run on symbols: what it does is written down as an expression.

A symbol is a tensor without memory. While a formula runs on symbols a dispatch mode sees each of ATen's
operations as ATen would execute it, numbers rounded and dtypes promoted by torch's own rules, and writes down
its steps (``steps``). Whatever else a formula does, a choice by value, a reduction, another tensor, is not
written down: the answer is None, and ATen serves.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from manualnn._torch import (
    TorchDispatchMode,
    to_copy,
    tree_map,
    without_memory,
    without_torch_function,
)
from manualnn.kernels.expressions import Builder, Expression
from manualnn.kernels.steps import STEPS, Unknown

aten = torch.ops.aten
SHAPE = (3,)  # of every symbol: of one element only a number is
PLANES = (2, 3, 2)  # of a symbol that lies by planes, of examples and channels

_SAME = {aten.clone.default, aten.detach.default, aten.alias.default, aten.lift_fresh.default}
_SAME |= {to_copy, aten.contiguous.default}
_FULL = {aten.ones_like.default: 1.0, aten.zeros_like.default: 0.0}
_COMPARED = ("lt", "le", "gt", "ge", "eq", "ne")
_TRUTHS = [
    f"{how}_{what}" for how in ("bitwise", "logical") for what in ("and", "or", "xor", "not")
]


class Symbol(torch.Tensor):
    """A value that a formula computes: the place of its step."""

    place: int

    @staticmethod
    def __new__(cls, place: int, shape: Any, dtype: torch.dtype) -> "Symbol":
        made: Symbol = without_memory(cls, shape, dtype=dtype, device=torch.device("cpu"))
        made.place = place
        return made

    @classmethod  # torch's hint leaves func out
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):  # type: ignore[override]
        raise Unknown(f"{func} outside of the trace")


def trace(
    formula: Callable[..., Any],
    dtype: torch.dtype,
    names: Sequence[str],
    options: Sequence[Any] = (),
    by_channel: Sequence[bool] = (),
    narrow: torch.dtype | None = None,
) -> Expression | None:
    """What ``formula(*tensors, *options)`` computes, or None where that cannot be said.

    Args:
        formula: as it is written.
        dtype: in which it computes, float32 or float64.
        names: of its tensors.
        options: Python's numbers, handed to it after the tensors.
        by_channel: of each tensor, whether it has one number for each channel; left out, all are of one shape.
        narrow: the dtype of the others and of the result, if they are narrower than what computes them.
    """
    build = Builder(dtype, narrow=narrow)
    shape = PLANES if by_channel else SHAPE
    shapes = [PLANES[1:2] if channel else shape for channel in by_channel] or [SHAPE] * len(names)
    given = [build.step("input", value=i) for i in range(len(names))]
    try:
        with torch.no_grad(), without_torch_function(), _Trace(build):
            symbols = [
                Symbol(place, of, (narrow or dtype) if of is shape else dtype)
                for place, of in zip(given, shapes, strict=True)
            ]
            result = formula(*symbols, *options)
    except Exception:  # whatever it is, ATen meets it as well, and says it in its own words
        return None
    if (
        not isinstance(result, Symbol)
        or result.dtype is not (narrow or dtype)
        or result.shape != shape
    ):
        return None
    return build.finished(result.place, tuple(names))


class _Trace(TorchDispatchMode):
    """Writes down the steps of each operation."""

    def __init__(self, build):
        super().__init__()
        self.build = build

    def operation(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is aten.scalar_tensor.default:
            return self.number(args[0], kwargs.get("dtype") or torch.get_default_dtype())
        if func is aten.lift_fresh.default and not isinstance(args[0], Symbol):
            return self.number(args[0].item(), args[0].dtype)
        target = _not_in_place(func)
        if not (
            target in STEPS
            or target in _SAME
            or target in _FULL
            or target is aten.full_like.default
        ):
            raise Unknown(
                f"{func} has no steps"
            )  # and is not executed: it might draw a random number
        like = target(*tree_map(_example, args), **tree_map(_example, kwargs))
        if isinstance(like, torch.Tensor) and like.dtype is torch.bool:
            name = target._schema.name.removeprefix("aten::")
            if target not in _SAME and name not in (*_COMPARED, *_TRUTHS, "isnan"):
                raise Unknown(f"{func} of truth values")
        if isinstance(like, (tuple, list)):
            places = self.steps(target, args, kwargs, like[0].dtype)
            if like[0].dtype is self.build.narrow:
                places = (self.build.narrowed(places[0]), *places[1:])
            return tuple(Symbol(p, o.shape, o.dtype) for p, o in zip(places, like, strict=True))
        place = self.place(target, args, kwargs, like.dtype)
        if like.dtype is self.build.narrow:
            place = self.build.narrowed(place)
        elif like.dtype not in (self.build.dtype, torch.bool):
            raise Unknown(f"{func} gives {like.dtype}")
        if target is func:
            return Symbol(place, like.shape, like.dtype)
        written = args[0]
        if like.dtype is not written.dtype or self.build.steps[written.place].kind == "input":
            raise Unknown(f"{func} writes over what it was given")
        written.place = place
        return written

    def number(self, value, dtype):
        if dtype is not self.build.dtype:
            raise Unknown(f"a number in {dtype}")
        return Symbol(self.build.constant(value), (), self.build.dtype)

    def place(self, func, args, kwargs, dtype):
        if func in _SAME:
            return self.cast(args[0], dtype)
        if func in _FULL:
            return self.build.constant(_FULL[func])
        if func is aten.full_like.default:
            return self.build.constant(args[1])
        return self.steps(func, args, kwargs, dtype)

    def steps(self, func, args, kwargs, dtype):
        row = STEPS.get(func)
        if row is None:
            raise Unknown(f"{func} has no steps")
        name = func._schema.name.removeprefix("aten::")
        args = [self.given(name, i, value, dtype) for i, value in enumerate(args)]
        kwargs = {
            k: v if k == "alpha" else self.given(name, -1, v, dtype) for k, v in kwargs.items()
        }
        return row(self.build, *args, **kwargs)

    def given(self, name, i, value, dtype):
        """An argument as the place of a step, in the dtype in which the operation computes."""
        if value is None:
            return None
        if name in _TRUTHS or (name == "where" and i == 0):
            if not isinstance(value, Symbol) or value.dtype is not torch.bool:
                raise Unknown(f"{name} of numbers")
            return value.place
        if name in _COMPARED:
            dtype = self.build.dtype  # of truth values as of numbers
        if dtype is torch.bool and name == "where":
            raise Unknown("a choice of truth values")
        return self.cast(value, self.build.dtype)

    def cast(self, value, dtype):
        if not isinstance(value, Symbol):
            if isinstance(value, (bool, int, float)):
                return self.build.constant(value)
            raise Unknown(f"{type(value).__name__} in a formula")
        if value.dtype is dtype or {value.dtype, dtype} == {self.build.dtype, self.build.narrow}:
            return value.place  # a wider dtype holds the number as it is
        if value.dtype is torch.bool and dtype is self.build.dtype:
            return self.build.step("number", value.place)
        raise Unknown(f"{value.dtype} as {dtype}")


# Stated in the class, torch would wrap it, and import its compiler at the first call: seconds. mypy knows of no
# method that is set afterwards.
_Trace.__torch_dispatch__ = _Trace.operation  # type: ignore[assignment, method-assign]


def _example(value):
    """A tensor with memory: torch's own rules tell dtype and shape of what comes out."""
    if isinstance(value, Symbol):
        return torch.ones(value.shape, dtype=value.dtype)
    if isinstance(value, torch.Tensor):
        raise Unknown("a tensor that is not among the arguments")
    return value


def _not_in_place(func):
    """``aten.add`` of ``aten.add_``, and ``func`` itself of any other."""
    name = func._schema.name.removeprefix("aten::")
    if not name.endswith("_") or name.endswith("__"):
        return func
    found = getattr(getattr(aten, name[:-1], None), func._overloadname, None)
    if found is None:
        raise Unknown(f"{func} writes over what it was given")
    return found
