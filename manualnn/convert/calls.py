"""What a model computes by calling functions, seen while its forward pass is watched.

A converted model calls torch's functions between its layers: a residual sum, a concatenation, F.relu, a
permutation. ``Calls`` is a ``TorchFunctionMode``: each call comes here first. Where manualnn.functional has
the function, ours is called; where the call only copies or adds, its origin is remembered; views are known
by their strides. Everything else runs as it is, and what it saves is kept as it is.
"""

import functools
import types

import torch
from torch.nn import functional as TF
from torch.overrides import TorchFunctionMode

from manualnn import functional
from manualnn.cache import Origins, active
from manualnn.cache.tensors import is_ordinary, is_parameter, memory_of
from manualnn.functional.products import matmul

_PLAIN = {torch.Tensor, torch.nn.Parameter}
_BUILT_IN = (types.BuiltinFunctionType, types.MethodDescriptorType, types.WrapperDescriptorType)


def _named(*names, owners=(torch, torch.Tensor, TF)):
    """The functions of these names, wherever torch has them."""
    return {getattr(owner, name) for owner in owners for name in names if hasattr(owner, name)}


# Each makes its output again from the tensors that it was given, in a pass over memory.
COPIES = _named(
    *"add sub subtract mul multiply div divide true_divide neg negative rsub where".split(),
    *"__add__ __radd__ __sub__ __rsub__ __mul__ __rmul__ __truediv__ __neg__ __getitem__".split(),
    *"clone contiguous reshape flatten to float double half bfloat16 type".split(),
    *"roll flip pad stack repeat index_select".split(),
)
CONCATENATIONS = _named("cat", "concat", "concatenate")
WRITES = {
    getattr(torch.Tensor, f"{name}_"): getattr(torch.Tensor, name)
    for name in ("add", "sub", "subtract", "mul", "multiply", "div", "divide", "true_divide", "neg")
}
WRITES |= {
    getattr(torch.Tensor, f"__i{name}__"): getattr(torch.Tensor, f"__{name}__")
    for name in ("add", "sub", "mul", "truediv")
}
COPIED = torch.Tensor.copy_
_VIEWS = {torch.Tensor.T, torch.Tensor.mT, torch.Tensor.H, torch.Tensor.mH}
_VIEWS |= {torch.Tensor.real, torch.Tensor.imag}
_ASKING = _named(
    *"dim ndimension size stride numel nelement element_size storage_offset get_device __len__".split(),
    *"is_floating_point is_complex is_contiguous is_signed is_same_size is_conj is_neg item".split(),
    *"tolist __bool__ __int__ __float__ __format__ __repr__ __hash__ _is_view".split(),
    owners=(torch.Tensor,),
)
# After these calls memory may be written to without a trace in the version of a tensor.
_HANDING_OUT = {torch.Tensor.data, *_named("set_", "apply_", "map_", owners=(torch.Tensor,))}
_HANDING_OUT |= _named(
    *"numpy __array__ data_ptr untyped_storage storage _typed_storage __dlpack__".split(),
    owners=(torch.Tensor,),
)


@functools.cache
def _ours():
    """torch's functions that have a hand-written one of the same name and arguments."""
    pairs = {}
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


ASKS, HANDS_OUT, OURS, NATIVE, OTHER = "asks", "hands out", "ours", "native", "other"


@functools.cache
def _kind(func):
    """What is to be done about a call of ``func``."""
    if getattr(func, "__self__", func) in _HANDING_OUT:
        return HANDS_OUT
    if func in _ASKING:
        return ASKS
    if func in _ours():
        return OURS
    if type(func) is types.MethodWrapperType:  # an attribute
        return NATIVE if func.__self__ in _VIEWS else ASKS
    return NATIVE if type(func) in _BUILT_IN or func in COPIES else OTHER


@functools.cache
def _writes(func):
    name = getattr(func, "__name__", "")
    if name.startswith("__"):
        return name == "__setitem__" or (
            name.startswith("__i") and name not in ("__init__", "__int__")
        )
    return name.endswith("_")


def _written(args, kwargs):
    out = kwargs.get("out", args[0] if args else ())
    out = out if isinstance(out, (tuple, list)) else (out,)
    return [t for t in out if isinstance(t, torch.Tensor) and is_ordinary(t)]


def _is_plain(types, kwargs):
    return "out" not in kwargs and _PLAIN.issuperset(types)


class Calls(TorchFunctionMode):
    """Sees every call of a torch function and remembers origins in ``origins``."""

    def __init__(self, origins: Origins):
        super().__init__()
        self.origins = origins
        # Ours is at work in place of this one; if it calls it, torch itself is meant, to refuse the input.
        self.ours_of = None

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        kind = _kind(func)
        if kind is ASKS:
            return func(*args, **kwargs)
        if _writes(func) or "out" in kwargs:  # with or without a history
            for t in _written(args, kwargs):
                self.origins.before_write(t)
        if active() is not self.origins:
            return func(*args, **kwargs)
        if kind is HANDS_OUT:
            if is_ordinary(args[0]):
                self.origins.forget(args[0])
            return func(*args, **kwargs)
        if kind is OURS and func is not self.ours_of and _is_plain(types, kwargs):
            outer, self.ours_of = self.ours_of, func
            try:
                with self:
                    return _call(_ours()[func], func, args, kwargs)
            finally:
                self.ours_of = outer
        if kind is OTHER:
            out = func(*args, **kwargs)
            self.origins.settle(getattr(func, "__name__", "?"))
            return out
        return self._run(func, args, kwargs)

    def _run(self, func, args, kwargs):
        origins, name = self.origins, func.__name__
        tensors = [a for a in args if isinstance(a, torch.Tensor)]
        if not tensors and args and isinstance(args[0], (tuple, list)):
            tensors = [a for a in args[0] if isinstance(a, torch.Tensor)]
        if not any(t.requires_grad for t in tensors) or not all(map(is_ordinary, tensors)):
            out = func(*args, **kwargs)
            origins.settle(name)
            return out
        # Their cells as they are now: the call may write over one of them.
        cells = [origins.of(t) for t in tensors]
        out = func(*args, **kwargs)
        if isinstance(out, torch.Tensor):
            if func is COPIED:
                self._copied(out, tensors, cells)
            elif func in WRITES:
                self._wrote(WRITES[func], args, kwargs, tensors, cells)
            elif not self._viewed(out, tensors, cells) and (
                func in COPIES or func in CONCATENATIONS
            ):
                self._copies(func, args, kwargs, out, tensors, cells, name)
        elif isinstance(out, (tuple, list)):
            for o in out:
                if isinstance(o, torch.Tensor):
                    self._viewed(o, tensors, cells)
        origins.settle(name)
        return out

    def _viewed(self, out, tensors, cells):
        """Whether ``out`` is a view of a tensor that it was given; then that is its origin."""
        if not out._is_view() or out.is_conj() or out.is_neg():
            return False
        at = memory_of(out)
        for t, cell in zip(tensors, cells, strict=True):
            if out is t or is_parameter(t if t._base is None else t._base):
                return True
            if cell.storage == at and t.dtype == out.dtype:
                shape, strides = out.shape, out.stride()
                offset = out.storage_offset() - t.storage_offset()

                def make(base, shape=shape, strides=strides, offset=offset):
                    return base.as_strided(shape, strides, base.storage_offset() + offset)

                self.origins.made(out, make, [cell], "view", view=True)
                return True
        return False

    def _copies(self, func, args, kwargs, out, tensors, cells, name):
        if not out.requires_grad or any(out is t for t in tensors) or _hidden(args, kwargs):
            return
        sources = _sources(self.origins, func, tensors, cells, out)
        if sources is not None:
            origin = "cat" if func in CONCATENATIONS else name
            over = _over(func, args, kwargs, out)
            self.origins.made(out, _again(func, args, kwargs), sources, origin, over=over)

    def _wrote(self, func, args, kwargs, tensors, cells):
        out = args[0]
        sources = _sources(self.origins, func, tensors, cells, out)
        if sources is None or _hidden(args, kwargs) or torch.result_type(*_two(args)) != out.dtype:
            return
        over = _over(func, args, kwargs, out)
        self.origins.made(out, _again(func, args, kwargs), sources, func.__name__, over=over)

    def _copied(self, out, tensors, cells):
        source = tensors[-1]
        same = (source.dtype, source.shape, source.device) == (out.dtype, out.shape, out.device)
        if len(tensors) == 2 and same:
            self.origins.made(out, _same, [cells[1]], "copy_")


def _hidden(args, kwargs):
    """Whether tensors stand where their versions are not seen: in a nested index, in a keyword."""
    nested = [a for a in args[1:] if isinstance(a, (tuple, list))]
    return any(
        isinstance(v, torch.Tensor) for v in (*kwargs.values(), *(v for a in nested for v in a))
    )


def _same(value):
    return value


def _two(args):
    return args[0], (args[1] if len(args) > 1 else args[0])


def _call(ours, func, args, kwargs):
    if func in (torch.Tensor.softmax, torch.softmax, torch.log_softmax, torch.Tensor.log_softmax):
        dim = args[1] if len(args) > 1 else kwargs.get("dim")
        if not isinstance(dim, int) or len(args) > 2:
            return func(*args, **kwargs)
        return ours(args[0], dim, dtype=kwargs.get("dtype"))
    return ours(*args, **kwargs)


def _sources(origins, func, tensors, cells, out):
    """The cells to make ``out`` from, or None. A parameter's cast is its own layer's affair, so no copy."""
    if func in _CASTS:
        return cells
    found = [origins.source(t, cell, out) for t, cell in zip(tensors, cells, strict=True)]
    return None if None in found else found


_CASTS = _named("to", "float", "double", "half", "bfloat16", owners=(torch.Tensor,))


def _again(func, args, kwargs):
    """``func`` with the tensors among its arguments given anew, in the order in which they stand."""
    if args and isinstance(args[0], (tuple, list)):
        plain = args[1:]
        return lambda *values: func(list(values), *plain, **kwargs)
    template = [None if isinstance(a, torch.Tensor) else a for a in args]
    at = [i for i, a in enumerate(args) if isinstance(a, torch.Tensor)]

    def make(*values):
        given = list(template)
        for i, value in zip(at, values, strict=True):
            given[i] = value
        return func(*given, **kwargs)

    return make


def _over(func, args, kwargs, out):
    """The same written over the first tensor, where that has the output's shape and dtype."""
    writes, first = _IN_PLACE.get(func), args[0]
    if writes is None or not isinstance(first, torch.Tensor):
        return None
    same = first.shape == out.shape and first.dtype == out.dtype
    return _again(writes, args, kwargs) if same else None


_IN_PLACE = {
    getattr(owner, name): getattr(torch.Tensor, f"{name}_")
    for owner in (torch, torch.Tensor)
    for name in ("add", "sub", "mul", "div")
}
