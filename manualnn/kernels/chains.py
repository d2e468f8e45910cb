"""A chain of formulas as one kernel: what lies between two products, in one pass over memory.

A ``Link`` is a formula and what it is given: tensors, and the results of other links. Its expression is that of
all of them together, traced as they would run one after the other, and printed as one loop. So what lies in
between is never written to memory.
"""

import ctypes
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from manualnn._torch import uncompiled, without_torch_function
from manualnn.kernels import build, c, trust
from manualnn.kernels.c import Given
from manualnn.kernels.expressions import Expression
from manualnn.kernels.running import is_large, is_plain, may_run, pointers, shares
from manualnn.kernels.tracing import trace

MOST = 1000  # kernels
EACH, BY_CHANNEL = "each", "by channel"  # what a link is given: a number an element, or a channel
_SHAPES = ((2, 8, 4, 4), (4, 4, 2, 8), (1, 2, 1, 128))  # of trust.COUNT elements
_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}
# In which dtype each computes, and has what is by channel.
_COMPUTED = {torch.float32: torch.float32, torch.float64: torch.float64}
_COMPUTED |= {torch.bfloat16: torch.float32, torch.float16: torch.float32}


class Link(NamedTuple):
    """``function(*given, *options)``, element by element. Two that are equal compute the same.

    given: of each tensor EACH or BY_CHANNEL, or the link that computes it. options: as ``repr`` shows them, so
    that −0.0 is not 0.0.
    """

    function: Callable[..., Any]
    given: tuple[Any, ...]
    options: tuple[Any, ...] = ()
    shown: str = ""

    def __call__(self, *tensors: Any) -> Any:
        """The result of tensors that are given to it and to the links within, in their order."""
        return self._computed(iter(tensors))

    def _computed(self, tensors: Iterator[Any]) -> Any:
        given = [g._computed(tensors) if isinstance(g, Link) else next(tensors) for g in self.given]
        return self.function(*given, *self.options)

    def leaves(self) -> Iterator[str]:
        """EACH or BY_CHANNEL of the tensors that it is called with."""
        for g in self.given:
            if isinstance(g, Link):
                yield from g.leaves()
            else:
                yield g


class Kernel(NamedTuple):
    """A kernel that is loaded: what is called, and what keeps it loaded."""

    call: Any
    object: Any


_lock = threading.RLock()
_kernels: dict[Any, Kernel | None] = {}


def run(
    link: Link, tensors: Sequence[Tensor], empty_like: Callable[[Tensor], Tensor] = torch.empty_like
) -> Tensor | None:
    """``link(*tensors)`` in one pass, to the last bit; None: ATen is to serve.

    empty_like: gives the memory for the result.

    The tensors (N, C, *) lie by planes, or all with their channels last; those by channel are of shape (C).
    """
    if not may_run():
        return None
    leaves = (*link.leaves(),)
    first: Any = None
    for t, leaf in zip(tensors, leaves, strict=True):
        if leaf is EACH:
            first = t
            break
    if first is None or not is_large(first) or first.dtype not in _COMPUTED or first.dim() < 3:
        return None
    shape, dtype = first.shape, first.dtype
    each, channel = (dtype, shape), (_COMPUTED[dtype], shape[1:2])
    for t, leaf in zip(tensors, leaves, strict=True):
        if (t.dtype, t.shape) != (each if leaf is EACH else channel):
            return None
        if not is_plain(t):
            return None
    last = not first.is_contiguous()
    lie = {"memory_format": _LAST[first.dim()]} if last and first.dim() in _LAST else {}
    for t, leaf in zip(tensors, leaves, strict=True):
        if not (t.is_contiguous(**lie) if leaf is EACH else t.is_contiguous()):
            return None
    try:
        kernel = _kernels[link, dtype, last]
    except KeyError:
        kernel = _made(link, dtype, last)
    if kernel is None:
        return None
    out = empty_like(first)
    _call(kernel.call, out, tensors, _sizes(out, last) if BY_CHANNEL in leaves else (out.numel(),))
    return out


def _sizes(out, last):
    """Of a kernel with numbers by channel: its rows, the channels, and what a row has."""
    N, C = out.shape[:2]
    return (out.numel() // C, C) if last else (N * C, C, out.numel() // (N * C))


def _call(call, out, tensors, sizes):
    threads = min(torch.get_num_threads(), shares(out.numel()))
    call(*sizes, threads, pointers(out, *tensors))


@uncompiled
def _made(link, dtype, last):
    key = link, dtype, last
    with _lock, torch.no_grad(), without_torch_function():
        if key in _kernels:
            return _kernels[key]
        if len(_kernels) > MOST:
            _kernels.clear()
        _kernels[key] = None  # whatever goes wrong, ATen serves from now on
        made = _kernels[key] = _loaded(link, dtype, last)
        return made


def printed(
    link: Link, dtype: torch.dtype, names: Sequence[str] = (), last: bool = False
) -> tuple[Expression, c.Program] | None:
    """What a chain computes in a dtype, and its C; None where ATen is to serve.

    names: of its tensors; left out, x0, x1, ... last: the channels of a place lie together.
    """
    computed, leaves = _COMPUTED[dtype], (*link.leaves(),)
    by_channel = [leaf is BY_CHANNEL for leaf in leaves]
    names = names or [f"x{i}" for i in range(len(leaves))]
    narrow = None if dtype is computed else dtype
    expression = trace(link.__call__, computed, names, by_channel=by_channel, narrow=narrow)
    # What ATen computes in another way at the end of a tensor does not end where a plane does.
    if expression is None or expression.ragged:
        return None
    program = c.program(expression, _given(leaves, dtype, last), dtype)
    return None if program is None else (expression, program)


def _given(leaves, dtype, last=False):
    return [
        Given(_COMPUTED[dtype], by_channel=True, last=last) if leaf is BY_CHANNEL else Given(dtype)
        for leaf in leaves
    ]


def _loaded(link, dtype, last):
    found = printed(link, dtype, last=last)
    if found is None:
        return None
    expression, program = found
    loaded = build.built(c.text([program]), program.names())
    if loaded is None:
        return None
    for function in program.functions:
        ctypes.c_void_p.in_dll(loaded, function.pointer).value = function.address
    given, call = _given((*link.leaves(),), dtype, last), loaded.run
    by_channel = any(g.by_channel for g in given)
    count = (2 if last else 3) if by_channel else 1
    call.argtypes = (*(ctypes.c_longlong,) * count, ctypes.c_int, ctypes.c_void_p)
    call.restype = None
    kernel = Kernel(call, loaded)
    agrees = trust.passes(lambda: _agrees(kernel, link, expression, given, dtype, last))
    return kernel if agrees else None


def _agrees(kernel, link, expression, given, dtype, last):
    """Whether the kernel has the bits of one operation after the other, on random and special values."""
    by_channel = any(g.by_channel for g in given)
    lie = _LAST[4] if last else torch.contiguous_format
    generator = torch.Generator().manual_seed(0)
    for shape in _SHAPES:
        for _ in range(trust.ROUNDS):
            tensors = []
            for g in given:
                t = trust.values(expression, g.dtype, generator)
                t = t[: shape[1]] if g.by_channel else t.view(shape).contiguous(memory_format=lie)
                tensors.append(t)
            out = torch.empty(shape, dtype=dtype, device="cpu", memory_format=lie)
            _call(kernel.call, out, tensors, _sizes(out, last) if by_channel else (out.numel(),))
            if not trust.same_bits(out, link(*tensors)):
                return False
    return True
