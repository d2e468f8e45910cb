"""Records the functions that a model calls between its layers.

A converted model calls torch's functions between its layers: a residual sum, a concatenation, F.relu, a
permutation. ``Calls`` is a ``TorchFunctionMode``: each call comes here first. If manualnn.functional has
the function, ours is called. If the call only copies or adds, its recipe is recorded; a view's recipe is
its strides. Everything else runs as it is, and so is what it saves.
"""

import functools
import sys
import types
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as TF
from torch.overrides import TorchFunctionMode

from manualnn import functional
from manualnn._torch import F, uncompiled
from manualnn.autograd.blockwise import Elementwise
from manualnn.autograd.interceptor import active
from manualnn.functional.products import matmul
from manualnn.memory import Recorder
from manualnn.memory.freeze import Unfreezable, frozen
from manualnn.memory.recorder import is_small
from manualnn.memory.tensors import is_lazy, is_ordinary, is_parameter, lies_within, memory_of

_PLAIN = {torch.Tensor, torch.nn.Parameter}
_BUILT_IN = (types.BuiltinFunctionType, types.MethodDescriptorType, types.WrapperDescriptorType)


def _named(*names, owners=(torch, torch.Tensor, TF)):
    """The functions of these names, wherever torch has them."""
    return {getattr(owner, name) for owner in owners for name in names if hasattr(owner, name)}


# Each recomputes its output from its arguments, bit for bit, in a pass over memory.
COPIES = _named(
    *"add sub subtract mul multiply div divide true_divide neg negative rsub where".split(),
    *"__add__ __radd__ __sub__ __rsub__ __mul__ __rmul__ __truediv__ __neg__ __getitem__".split(),
    *"clone contiguous reshape flatten to float double half bfloat16 type".split(),
    *"roll flip pad stack repeat index_select".split(),
)
# Of two tensors of one shape and dtype each computes its output element by element.
ELEMENTWISE = _named(
    *"add sub subtract mul multiply __add__ __radd__ __sub__ __mul__ __rmul__".split()
)
CONCATENATIONS = _named("cat", "concat", "concatenate")
# What they make may be much larger than what they are given.
GROWING = CONCATENATIONS | _named(*"pad stack repeat index_select repeat_interleave expand".split())
# Autocast has a rule for these, on one device or another: they are recomputed under the same rule.
CAST = CONCATENATIONS | _named("pad", "stack")
WRITES = {
    getattr(torch.Tensor, f"{name}_"): getattr(torch.Tensor, name)
    for name in ("add", "sub", "subtract", "mul", "multiply", "div", "divide", "true_divide", "neg")
}
WRITES |= {
    getattr(torch.Tensor, f"__i{name}__"): getattr(torch.Tensor, f"__{name}__")
    for name in ("add", "sub", "mul", "truediv")
}
COPY = torch.Tensor.copy_
_VIEWS = {torch.Tensor.T, torch.Tensor.mT, torch.Tensor.H, torch.Tensor.mH}
_VIEWS |= {torch.Tensor.real, torch.Tensor.imag}
_QUERIES = _named(
    *"dim ndimension size stride numel nelement element_size storage_offset get_device __len__".split(),
    *"is_floating_point is_complex is_contiguous is_signed is_same_size is_conj is_neg item".split(),
    *"tolist __bool__ __int__ __float__ __format__ __repr__ __hash__ _is_view".split(),
    owners=(torch.Tensor,),
)
AS_STRIDED = {torch.as_strided, torch.Tensor.as_strided}
# After these calls memory may be overwritten, and no version counter shows it.
_EXPOSING = {torch.Tensor.data, *_named("set_", "apply_", "map_", owners=(torch.Tensor,))}
_EXPOSING |= _named(
    *"numpy __array__ data_ptr untyped_storage storage _typed_storage __dlpack__ share_memory_".split(),
    owners=(torch.Tensor,),
)


@functools.cache
def _ours():
    """torch's functions that have a hand-written one of the same name and arguments."""
    pairs: dict[Any, Callable[..., Any]] = {}
    owner: Any
    for name in functional.__all__:
        ours = getattr(functional, name)
        for owner, theirs in ((TF, name), (TF, f"_{name}")):
            found = getattr(owner, theirs, None)
            if found is not None:
                pairs[found] = ours
    for name in ("relu", "relu_", "sigmoid", "tanh", "selu", "celu"):
        for owner in (torch, torch.Tensor):
            if hasattr(owner, name) and hasattr(functional, name):
                pairs[getattr(owner, name)] = getattr(functional, name)
    for name in ("softmax", "log_softmax"):
        for owner in (torch, torch.Tensor):
            pairs[getattr(owner, name)] = getattr(functional, name)
    for product in (torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__):
        pairs[product] = matmul
    return pairs


def _unpatched(func):
    """torch's own function, if it was called by another one that has its place in torch.nn.functional.

    A function of torch's gives a mode the object that bears its name there, so the mode sees the other one. The
    stack shows whose code is running.
    """
    if type(func) is not types.FunctionType or vars(F).get(func.__name__) is func:
        return func
    frame: types.FrameType | None = sys._getframe(2)
    for _ in range(3):
        if frame is None:
            break
        name = frame.f_code.co_name
        torchs = vars(F).get(name)
        if getattr(torchs, "__code__", None) is frame.f_code and vars(TF).get(name) is func:
            return torchs
        frame = frame.f_back
    return func


QUERY, EXPOSES, OURS, NATIVE, OTHER = "query", "exposes", "ours", "native", "other"


@functools.cache
def _kind(func):
    """How a call of ``func`` is treated: see ``__torch_function__``."""
    if getattr(func, "__self__", func) in _EXPOSING:
        return EXPOSES
    if func in _QUERIES:
        return QUERY
    if func in _ours():
        return OURS
    if type(func) is types.MethodWrapperType:  # an attribute
        return NATIVE if func.__self__ in _VIEWS else QUERY
    return NATIVE if type(func) in _BUILT_IN or func in COPIES else OTHER


@functools.cache
def _writes(func):
    """Whether ``func`` writes in place, by its name: add_, add_.Tensor, __iadd__, __setitem__."""
    name = getattr(func, "__name__", "").partition(".")[0]
    if name.startswith("__"):
        return name == "__setitem__" or (
            name.startswith("__i") and name not in ("__init__", "__int__")
        )
    return name.endswith("_")


def _written(args, kwargs):
    first = args[0] if args else kwargs.get("input", kwargs.get("tensor", ()))
    out = kwargs.get("out", first)
    out = out if isinstance(out, (tuple, list)) else (out,)
    return [t for t in out if isinstance(t, torch.Tensor) and is_ordinary(t)]


def _is_plain(types, kwargs):
    return "out" not in kwargs and _PLAIN.issuperset(types)


class Calls(TorchFunctionMode):
    """Passes every call of a torch function on, and records its recipe in ``recorder``."""

    def __init__(self, recorder: Recorder):
        super().__init__()
        self.recorder = recorder
        # The function that ours is running in place of. If ours calls it, torch's is meant, which refuses the
        # input.
        self.replaced = None

    @uncompiled
    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs, func = kwargs or {}, _unpatched(func)
        # A compiler traces a part of the model: it must see torch's functions alone.
        if torch.compiler.is_compiling():
            return func(*args, **kwargs)
        kind = _kind(func)
        if kind is QUERY:
            return func(*args, **kwargs)
        recorder = self.recorder
        recording = active() is recorder
        if kind is EXPOSES:  # of a tensor with or without a history
            if is_ordinary(args[0]):
                recorder.expose(args[0])
            return func(*args, **kwargs)
        if _writes(func) or "out" in kwargs:
            for t in _written(args, kwargs):
                recorder.before_write(t)
        # Ours says itself what it writes over, when it is recorded.
        elif (kind is OTHER or kind is OURS and not recording) and (
            kwargs.get("inplace") or any(a is True for a in args[1:])
        ):
            for t in _written(args, kwargs):
                recorder.before_write(t)
        if not recording:
            return func(*args, **kwargs)
        if kind is OURS and func is not self.replaced and _is_plain(types, kwargs):
            outer, self.replaced = self.replaced, func
            try:
                with self:
                    return _call(_ours()[func], func, args, kwargs)
            finally:
                self.replaced = outer
        if kind is OTHER:
            out = recorder.run(func, args, kwargs)
            recorder.decide(getattr(func, "__name__", "?"))
            return out
        return self._run(func, args, kwargs)

    def _run(self, func, args, kwargs):
        recorder, name = self.recorder, func.__name__
        tensors = [a for a in args if isinstance(a, torch.Tensor)]
        if not tensors and args and isinstance(args[0], (tuple, list)):
            tensors = [a for a in args[0] if isinstance(a, torch.Tensor)]
        if self._is_left(func, tensors, kwargs):
            return recorder.leave(func, args, kwargs, name)
        if (
            not any(t.requires_grad for t in tensors)
            or not all(map(is_ordinary, tensors))
            or any(map(is_lazy, tensors))
        ):
            out = recorder.run(func, args, kwargs)
            recorder.decide(name)
            return out
        # The values as they are now: the call may write over one of them.
        before = [recorder.before_call(t) for t in tensors]
        out = recorder.run(func, args, kwargs)
        if isinstance(out, torch.Tensor):
            if func is COPY:
                self._record_copy(out, tensors, before)
            elif func in WRITES:
                self._record_write(WRITES[func], args, kwargs, tensors, before)
            elif not self._record_view(func, out, tensors, before) and (
                func in COPIES or func in CONCATENATIONS
            ):
                self._record_recipe(func, args, kwargs, out, tensors, before, name)
        elif isinstance(out, (tuple, list)):
            for o in out:
                if isinstance(o, torch.Tensor):
                    self._record_view(func, o, tensors, before)
        recorder.decide(name)
        return out

    def _is_left(self, func, tensors, kwargs):
        """Whether the call is of small tensors, and gives none that is much larger."""
        if func in GROWING or not self.recorder.leaves(tensors):
            return False
        if len(tensors) > 1 and any(t.shape != tensors[0].shape for t in tensors):
            return False
        return not any(isinstance(value, torch.Tensor) for value in kwargs.values())

    def _record_view(self, func, out, tensors, before):
        """Record ``out`` as a view, if it is a view of one of ``tensors``. Whether it needs no other recipe."""
        if not out._is_view():
            return False
        if is_lazy(out):
            return True
        at = memory_of(out)
        for t, value in zip(tensors, before, strict=True):
            if out is t or is_parameter(t if t._base is None else t._base):
                return True
            if isinstance(value, int):  # from outside of the pass; then so is its view
                if memory_of(t) == at:
                    return True
                continue
            if func in AS_STRIDED and not lies_within(out, t):
                return True  # around a recomputed t the memory holds anything
            if value.storage == at and t.dtype == out.dtype:
                shape, strides = out.shape, out.stride()
                offset = out.storage_offset() - t.storage_offset()

                def recompute(base, shape=shape, strides=strides, offset=offset):
                    return base.as_strided(shape, strides, base.storage_offset() + offset)

                self.recorder.set_recipe(out, recompute, [value], "view", is_view=True)
                return True
        return False

    def _record_recipe(self, func, args, kwargs, out, tensors, before, name):
        if not out.requires_grad or any(out is t for t in tensors):
            return
        sources = self._sources(tensors, before, out)
        recipe = None if sources is None else _recipe(func, args, kwargs, out)
        if recipe is not None:
            if func in CAST and torch.is_autocast_enabled(out.device.type):
                recipe = _under_autocast(recipe, out.device.type)
            op = "cat" if func in CONCATENATIONS else name
            in_place = _in_place(func, args, kwargs, out)
            into = _into(func, recipe, tensors, out)
            self.recorder.set_recipe(out, recipe, sources, op, in_place=in_place, into=into)

    def _record_write(self, func, args, kwargs, tensors, before):
        out = args[0]
        sources = self._sources(tensors, before, out)
        if sources is None or torch.result_type(*_two(args)) != out.dtype:
            return
        recipe = _recipe(func, args, kwargs, out)
        if recipe is not None:
            in_place = _in_place(func, args, kwargs, out)
            self.recorder.set_recipe(out, recipe, sources, func.__name__, in_place=in_place)

    def _record_copy(self, out, tensors, before):
        source = tensors[-1]
        same = (source.dtype, source.shape, source.device) == (out.dtype, out.shape, out.device)
        if len(tensors) == 2 and same:
            value = self.recorder.source(source, before[1], out)
            if value is not None:
                self.recorder.set_recipe(out, _same, [value], "copy_")

    def _sources(self, tensors, before, out):
        """The sources from which ``out`` is recomputed; None if one of ``tensors`` cannot be a source."""
        pairs = zip(tensors, before, strict=True)
        found = [self.recorder.source(t, value, out) for t, value in pairs]
        return None if None in found else found


def _same(value):
    return value


def _two(args):
    return args[0], (args[1] if len(args) > 1 else args[0])


def _call(ours, func, args, kwargs):
    if func in (torch.Tensor.softmax, torch.softmax, torch.log_softmax, torch.Tensor.log_softmax):
        input, *rest = args or (kwargs.get("input"),)
        dim = rest[0] if rest else kwargs.get("dim")
        if not isinstance(dim, int) or len(rest) > 1 or input is None:
            return func(*args, **kwargs)
        return ours(input, dim, dtype=kwargs.get("dtype"))
    return ours(*args, **kwargs)


def _recipe(func, args, kwargs, out):
    """A function of the tensors among ``args``, in their order, that calls ``func`` as it is called now; None
    if another argument cannot be frozen. A tensor inside an index or a keyword argument is copied.
    """

    def copied(t):
        if t.requires_grad or not is_ordinary(t) or not is_small(t, out):
            raise Unfreezable
        return t.clone()

    try:
        named = {name: frozen(value, copied) for name, value in kwargs.items()}
        if args and isinstance(args[0], (tuple, list)):
            plain: Any = frozen(tuple(args[1:]), copied)
            return lambda *tensors, **out: func(list(tensors), *plain, **named, **out)
        template = [None if isinstance(a, torch.Tensor) else frozen(a, copied) for a in args]
    except Unfreezable:
        return None
    at = [i for i, a in enumerate(args) if isinstance(a, torch.Tensor)]
    if func in ELEMENTWISE and len(at) == len(args) == 2 and not named:
        return Elementwise(func)

    def recompute(*tensors):
        arguments = list(template)
        for i, t in zip(at, tensors, strict=True):
            arguments[i] = t
        return func(*arguments, **named)

    return recompute


def _under_autocast(recipe, device):
    """``recipe`` with the casts that autocast makes now."""
    dtype = torch.get_autocast_dtype(device)

    def recompute(*tensors, **out):
        with torch.autocast(device, dtype, cache_enabled=False):
            return recipe(*tensors, **out)

    return recompute


def _in_place(func, args, kwargs, out):
    """The recipe that writes over the first tensor, if that has the output's shape and dtype; else None."""
    writes, first = _IN_PLACE.get(func), args[0]
    if writes is None or not isinstance(first, torch.Tensor):
        return None
    same = first.shape == out.shape and first.dtype == out.dtype
    return _recipe(writes, args, kwargs, out) if same else None


def _into(func, recipe, tensors, out):
    """The recipe of a concatenation that writes into a tensor that is given; None of anything else."""
    if func not in CONCATENATIONS or not all(t.is_contiguous() for t in (out, *tensors)):
        return None
    if any(t.dtype is not out.dtype for t in tensors):
        return None
    return lambda into, *tensors: recipe(*tensors, out=into)


_IN_PLACE = {
    getattr(owner, name): getattr(torch.Tensor, f"{name}_")
    for owner in (torch, torch.Tensor)
    for name in ("add", "sub", "mul", "div")
}
