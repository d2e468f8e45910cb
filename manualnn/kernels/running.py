"""A formula's kernel, looked up and called; None wherever ATen is to serve.

``run`` is asked for every large tensor of a formula, so what is fixed is found once: whether a formula can be
traced, its expression, its kernel. What depends on the call is asked in each: how the tensors lie in memory,
whether something that the formula reads has changed, whether a mode wants to see each operation.
"""

import ctypes
import os
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch

from manualnn._torch import (
    any_autocast,
    dispatch_modes,
    is_batched,
    is_jit_tracing,
    uncompiled,
    without_torch_function,
)
from manualnn.kernels import build, c, library, trust
from manualnn.kernels.c import Given
from manualnn.kernels.expressions import Expression
from manualnn.kernels.reads import Reads, reads_of, unchanged
from manualnn.kernels.tracing import trace

# Of a formula: options that change at every step would be compiled at every step.
KINDS_OF_OPTIONS = 8
KERNELS = 1000  # at most; more are of functions that are new in each call
LEAST = 1 << 15  # elements; of fewer ATen's passes are as fast as a kernel with its call
TAILS = 16  # pieces of a tensor that ATen computes, at most
GRAIN = 32768  # ATen gives a thread at least so many elements

_COMPUTED = {torch.float32: torch.float32, torch.float64: torch.float64}
_COMPUTED |= {torch.bfloat16: torch.float32, torch.float16: torch.float32}
_GIVEN = {(dtype, single): Given(dtype, single) for dtype in _COMPUTED for single in (False, True)}
_PLAIN = (float, int, bool, type(None))
_LEAST = 5e-324
# Names of C's, and of what is printed around a formula.
_TAKEN = """
    n at out i x y t threads tensors block run count vector floats doubles ROWS row size planes channels places
    linux unix tl
    asm auto break case char const continue default do double else enum extern float for goto if inline int
    long register restrict return short signed sizeof static struct switch typedef typeof union unsigned void
    volatile while
""".split()

enabled = os.environ.get("MANUALNN_KERNELS", "").lower() not in ("off", "0", "no", "false")
_lock = threading.RLock()
_kernels: dict[Any, "Kernel | None"] = {}
_known: Counter[Any] = Counter()


class Kernel(NamedTuple):
    """A kernel that is loaded: what it computes, what its formula reads, what is called."""

    expression: Expression
    reads: Reads
    call: Any
    object: Any


def run(
    once: Callable[..., Any],
    formula: Callable[..., Any],
    tensors: Sequence[torch.Tensor],
    options: tuple[Any, ...],
    block: int,
) -> torch.Tensor | None:
    """What ``once(formula, tensors, options)`` gives block by block, to the last bit; None: ATen is to serve.

    Args:
        once: computes the formula by ATen, narrow dtypes in float32.
        formula: hashable; two that are equal compute the same.
        tensors: of one shape, on a CPU.
        options: handed to the formula after the tensors.
        block: the number of elements that ``once`` would be given at a time.
    """
    if not may_run():
        return None
    given = _given(tensors)
    if given is None:
        return None
    for option in options:
        if type(option) not in _PLAIN:
            return None
    key = _key(formula, given, options)
    try:
        kernel = _kernels[key]
    except KeyError:
        kernel = _made(key, Wanted(once, formula, given, options))
    except TypeError:  # a formula that cannot be looked up
        return None
    if kernel is None or not unchanged(kernel.reads):
        return None
    first = tensors[0]
    if kernel.expression.by_rows and not first.is_contiguous():
        return None
    if kernel.expression.ragged and block < first.numel() != first.stride(0) * first.shape[0]:
        return None  # a block, some of the first dimension, has its elements here and there
    out = torch.empty_like(tensors[0])
    threads = torch.get_num_threads()
    if kernel.expression.ragged:
        tails = list(_tails(out.numel(), block, threads, kernel.expression.dtype))
        if len(tails) > TAILS:
            return None
    else:
        tails = []
    if out.numel():
        _call(kernel.call, out, tensors, threads)
    for start, end in tails:
        part = [_flat(t)[start:end] for t in tensors]
        _flat(out)[start:end] = once(formula, part, options)
    return out


def may_run() -> bool:
    """Whether a kernel may compute now: none is to see each operation, cast, trace, or flush denormals."""
    others = dispatch_modes() or any_autocast() or is_jit_tracing() or _flushes_denormals()
    return enabled and not others


def is_large(t: torch.Tensor) -> bool:
    """Whether a kernel is worth its call."""
    return t.numel() >= LEAST


def is_plain(t: torch.Tensor) -> bool:
    """Whether the numbers of a tensor lie in memory as it says: on a CPU, strided, nobody's class."""
    kind = type(t)
    return (
        (kind is torch.Tensor or kind is torch.nn.Parameter)
        and t.is_cpu
        and t.layout is torch.strided
        and not is_batched(t)
        and not t.is_neg()
    )


def lies_by_rows(t: torch.Tensor) -> bool:
    """Whether it is contiguous, and its strides say so and nothing else.

    Of one channel, or one place, they may say channels last as well, and ATen goes by that.
    """
    if not t.is_contiguous():
        return False
    if 1 not in t.shape:
        return True
    usual = 1
    for size, stride in zip(reversed(t.shape), reversed(t.stride()), strict=True):
        if stride != usual:
            return False
        usual *= size
    return True


def expression_of(
    formula: Callable[..., Any], dtype: torch.dtype, count: int, options: Sequence[Any] = ()
) -> Expression | None:
    """The expression of a formula of ``count`` tensors, or None.

    None is the answer for one that cannot be traced, or reads what may change unseen.
    """
    return None if reads_of(formula) is None else _traced(formula, dtype, options, count)


def _flushes_denormals():
    """Whether this thread takes the smallest numbers for 0, of which other threads do not hear."""
    return _LEAST * 2.0 == 0.0


def _fit(name):
    """Whether C and Triton may call an input so."""
    if re.fullmatch(
        r"t\d+|u\d+|x\d+|\w+_i|(all|each|from|to|call|run)_\w+", name
    ):  # what is printed has such names
        return False
    return re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII) and name not in _TAKEN


def _given(tensors):
    """How the tensors lie in memory, if all that are no single number lie alike; None: no kernel takes them."""
    first = tensors[0]
    shape, computed = first.shape, _COMPUTED.get(first.dtype)
    found, full, plain = [], [], True
    for t in tensors:
        dtype = t.dtype
        if _COMPUTED.get(dtype, False) is not computed or t.shape != shape or not is_plain(t):
            return None
        single = False
        if not lies_by_rows(t):
            single = t is not first and not any(t.stride())
            if (
                t.is_contiguous() and not single
            ):  # what ATen's result is like depends on its last operation
                return None
            plain = plain and single
        if not single:
            full.append(t)
        found.append(_GIVEN[dtype, single])
    if not plain:
        strides = first.stride()
        if any(t.stride() != strides for t in full) or torch.empty_like(first).stride() != strides:
            return None
    return tuple(found)


def _flat(t):
    """The elements as they follow one another in memory."""
    if t.dim() and not any(t.stride()):
        return t.as_strided((1,), (1,)).expand(t.numel())
    return t.as_strided((t.numel(),), (1,))


def _tails(count, block, threads, dtype) -> Iterator[tuple[int, int]]:
    """Where ATen has no whole pair of vectors left: at the end of what a thread has of a block."""
    pair = 2 * library.width(dtype)
    for start in range(0, count, block):
        size = min(block, count - start)
        shares = 1 if size < GRAIN or threads == 1 else min(threads, -(-size // GRAIN))
        share = -(-size // shares)
        for begin in range(start, start + size, share):
            end = min(begin + share, start + size)
            if (end - begin) % pair:
                yield end - (end - begin) % pair, end


def _call(call, out, tensors, threads):
    call(out.numel(), min(threads, shares(out.numel())), pointers(out, *tensors))


def shares(count: int) -> int:
    """Among how many threads so many elements are shared at most, as by ATen."""
    return max(1, -(-count // GRAIN))


def pointers(*tensors: torch.Tensor | None) -> Any:
    """Where the tensors lie, as C takes them; NULL of None."""
    return (ctypes.c_void_p * len(tensors))(*[None if t is None else t.data_ptr() for t in tensors])


class Wanted(NamedTuple):
    """A kernel that is to be made: of which formula and options, for which tensors.

    once: computes the formula by ATen, narrow dtypes in float32.
    """

    once: Callable[..., Any]
    formula: Callable[..., Any]
    given: tuple[Given, ...]
    options: tuple[Any, ...] = ()


def _key(formula, given, options):
    return formula, repr(options) if options else "", given, torch.get_default_dtype()


def _made(key, wanted):
    with _lock:
        if key in _kernels:
            return _kernels[key]
        family = (_code(wanted.formula), wanted.given)
        _known[family] += 1
        if _known[family] > KINDS_OF_OPTIONS:
            return None
        made = make([wanted])[0]
        if made is None and reads_of(wanted.formula) is None:
            # Not asked again, nor held: a function that is new in each call may hold that call's tensors.
            _known[family] = KINDS_OF_OPTIONS
            del _kernels[key]
        return made


def _code(formula):
    """What two formulas have in common that are made anew in each call, as a closure is."""
    parts = getattr(formula, "formula_parts", None)
    if parts is not None:
        return (type(formula), *map(_code, parts))
    return getattr(formula, "__code__", formula)


def make(wanted: Sequence[Wanted]) -> list[Kernel | None]:
    """Makes kernels, together in one file; None where ATen is to serve."""
    # Not as a mode would have it, such as one that chooses where tensors are made.
    with _lock, torch.no_grad(), without_torch_function():
        if len(_kernels) > KERNELS:
            _kernels.clear()
        keys = [_key(w.formula, w.given, w.options) for w in wanted]
        _kernels.update(dict.fromkeys(keys))  # of whatever goes wrong, ATen serves from now on
        printed = {}
        for i, w in enumerate(wanted):
            found = _printed(w, f"run{i}" if i else "run")
            if found is not None:
                printed[i] = found
        programs = [program for *_, program in printed.values()]
        names = [name for program in programs for name in program.names()]
        loaded = build.built(c.text(programs), names) if programs else None
        if loaded is not None:
            for i, found in printed.items():
                _kernels[keys[i]] = _trusted(wanted[i], loaded, *found)
        return [_kernels[key] for key in keys]


# Where a compiler has given up a part of a model, it would look at what traces, too.
uncompiled(make)


def _printed(wanted, name):
    reads = reads_of(wanted.formula)
    if reads is None:
        return None
    given, out = wanted.given, wanted.given[0].dtype
    expression = _traced(wanted.formula, _COMPUTED[out], wanted.options, len(given))
    if expression is None or not any(s.inputs for s in expression.steps):
        return None
    program = c.program(expression, given, out, name)
    return None if program is None else (reads, expression, program)


def _traced(formula, dtype, options, count):
    names = [*names_of(formula)[:count]]
    names += [""] * (count - len(names))
    names = [n if _fit(n) and names.count(n) == 1 else f"x{i}" for i, n in enumerate(names)]
    return trace(formula, dtype, names, options)


def _trusted(wanted, loaded, reads, expression, program):
    for function in program.functions:
        ctypes.c_void_p.in_dll(loaded, function.pointer).value = function.address
    call = getattr(loaded, program.name)
    call.argtypes, call.restype = (ctypes.c_longlong, ctypes.c_int, ctypes.c_void_p), None

    def compute(tensors):
        out = torch.empty(trust.COUNT, dtype=wanted.given[0].dtype)
        _call(call, out, tensors, torch.get_num_threads())
        return out

    def reference(*tensors):
        return wanted.once(wanted.formula, tensors, wanted.options)

    try:
        agrees = trust.agrees(compute, reference, expression, wanted.given)
    except Exception:  # an option that ATen does not take: it will say so
        agrees = False
    return None if not agrees else Kernel(expression, reads, call, loaded)


def names_of(formula: Callable[..., Any]) -> tuple[str, ...]:
    """What a formula calls its arguments, as far as it says so."""
    stated = getattr(formula, "names", None)
    if stated is None:
        code = getattr(formula, "__code__", None)
        stated = code.co_varnames[: code.co_argcount] if code else ()
    return tuple(stated)
