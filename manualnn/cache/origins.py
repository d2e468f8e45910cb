"""How a tensor was made, remembered instead of the tensor.

Between two matrix products everything is cheap: a norm's scale and shift, an activation, a residual sum, a
concatenation. So one tensor for each matrix product is enough; what lies between is made again in backward,
by the same kernels on the same numbers, and shared by all who ask for it.

``Origins`` watches one forward pass. Each tensor in it has a ``Cell``: the tensor itself, or its origin,
``make(*sources)``. What autograd saves while it watches (by PyTorch's hooks for saved tensors) is the cell.
After each op ``Origins.settle`` decides for what was saved: is everything in its origin kept anyway, or
smaller? Then the origin is kept and the tensor goes; else the tensor is.

Nothing can go stale unseen. A tensor's origin counts only while the tensor is at the version at which it was
made; a tensor that is kept is read back only at the version at which it was kept, as autograd does it. When
the forward pass ends, every origin that nobody kept is forgotten.
"""

import threading
import weakref
from contextlib import contextmanager

import torch
from torch._C import _autograd
from torch.autograd.graph import saved_tensors_hooks

from manualnn.cache.staleness import changed, stream_of

_here = threading.local()
SMALL = 8  # a copy of a parameter costs at most one part in so many
DEEPEST = (
    64  # steps from a kept tensor; beyond it a tensor is kept, so that remaking does not recurse on
)


def active():
    """The Origins that watch this thread now, or None.

    None as well where somebody else's hooks (a checkpoint's, an offloader's) receive what is saved: what
    is theirs to drop must not be kept alive by us.
    """
    origins = getattr(_here, "origins", None)
    if origins is None or not torch.is_grad_enabled():
        return None
    return origins if _autograd._top_saved_tensors_default_hooks(True) is origins.hooks else None


class Cell:
    """A value between forward and backward: a tensor, or how to make it.

    tensor, version   the tensor that is kept, or could be, and the version at which it is right; or
    make, sources     its origin: ``make(*values of the source cells)``
    like              shape, strides, dtype and bytes of the value
    kept              whether somebody relies on this cell: a tensor's memory then counts
    saved             how many saved tensors of autograd's refer to it
    """

    __slots__ = (
        "depth",
        "direct",
        "kept",
        "left",
        "like",
        "make",
        "nbytes",
        "offset",
        "origin",
        "remade",
        "saved",
        "sources",
        "storage",
        "tensor",
        "version",
        "view_of",
        "__weakref__",
    )

    def __init__(self, t):
        self.like, self.offset = (t.shape, t.stride(), t.dtype), t.storage_offset()
        self.nbytes = t.numel() * t.element_size()
        self.make, self.sources, self.view_of, self.origin = None, (), None, None
        # A parameter is alive anyway.
        self.kept, self.direct = isinstance(t, torch.nn.Parameter), False
        self.saved = self.left = self.depth = 0
        self.remade = None
        self.hold(t)

    def hold(self, t):
        """Become the tensor itself."""
        storage = t.untyped_storage()
        self.storage, self.nbytes = storage.data_ptr(), storage.nbytes()
        self.tensor, self.version = t.detach(), t._version
        self.make, self.sources, self.view_of, self.depth = None, (), None, 0

    def made(self, make, sources, origin, view_of=None):
        """Become an origin."""
        self.make, self.sources, self.origin, self.view_of = make, sources, origin, view_of
        self.depth = 1 + max(s.depth for s in sources)
        self.tensor = None

    def usable(self):
        return self.tensor is None or self.tensor._version == self.version

    def leaves(self):
        """The cells of tensors that are not kept so far and this value needs, by their storage."""
        found, seen, ahead = {}, set(), [self]
        while ahead:
            cell = ahead.pop()
            if cell.kept or id(cell) in seen:
                continue
            seen.add(id(cell))
            if cell.tensor is not None:
                found[cell.storage] = cell
            ahead += cell.sources
        return found

    def keep(self):
        """Rely on this cell, and on all that it is made of."""
        if not self.kept:
            self.kept = True
            for source in self.sources:
                source.keep()

    def value(self, known):
        """The value, in backward; made at most once for all who have saved it.

        known: the values that were made on the way to the one that is asked for, by cell.
        """
        if self.tensor is not None:
            if self.tensor._version != self.version:
                raise changed(self.tensor, self.version)
            return self.tensor
        if self in known:
            return known[self]
        if self.remade is not None:
            value, version, stream = self.remade
            if value._version == version and stream == stream_of(value):
                return value
        value = alike(self.make(*[source.value(known) for source in self.sources]), self.like)
        known[self] = value
        if self.left:
            self.remade = (value, value._version, stream_of(value))
        return value

    def unpack(self):
        """The value for one of those who have saved it; the last one's visit ends the sharing."""
        with torch.no_grad():
            value = outside_autocast(self.value)
        self.left -= 1
        if self.left <= 0:
            self.remade, self.left = None, self.saved  # another backward may follow: retain_graph
        return value


def alike(value, like):
    """The value with the strides that it had: views of it are taken by strides."""
    shape, strides, dtype = like
    if value.shape != shape or value.dtype != dtype:
        raise RuntimeError(
            f"made again, a {tuple(shape)} of {dtype} came out as {tuple(value.shape)} of {value.dtype}"
        )
    if value.stride() == strides:
        return value
    return torch.empty_strided(shape, strides, dtype=dtype, device=value.device).copy_(value)


def outside_autocast(make):
    """The origin holds every cast that autocast made; it must make no further ones."""
    if not torch._C._is_any_autocast_enabled():
        return make({})
    with torch.autocast("cpu", enabled=False):
        if not torch.cuda.is_available():
            return make({})
        with torch.autocast("cuda", enabled=False):
            return make({})


class Origins:
    """The origins of the tensors of one forward pass, and the hooks that save them.

    observer: if given, called as ``observer(cell, op)`` for each cell that an op has saved and settled.
    """

    def __init__(self, observer=None):
        self._cells = {}  # id of a tensor -> (weak reference to it, version, cell)
        self._pending = []  # saved by the op that is running, not decided yet: (cell, tensor)
        self._kept_storages = set()
        self._borrowed = {}  # storage -> cells kept for an origin only, which torch would not keep
        self._observer = observer
        self.hooks = (self._pack, Cell.unpack)

    @contextmanager
    def watching(self):
        """Watch what this thread does."""
        before = getattr(_here, "origins", None)
        _here.origins = self
        try:
            with saved_tensors_hooks(*self.hooks):
                yield self
                self.settle("")
        finally:
            _here.origins = before
            self._pending.clear()
            self._cells.clear()

    def of(self, t):
        """The cell of a tensor as it is now."""
        key = id(t)
        found = self._cells.get(key)
        if found is not None:
            alive, version, cell = found
            if alive() is t and version == t._version:
                return cell
        return self.register(t, Cell(t))

    def register(self, t, cell):
        """From now on, and while it stays at its version, ``t`` is the value of ``cell``."""
        key, cells = id(t), self._cells

        def forget(reference):
            found = cells.get(key)
            if found is not None and found[0] is reference:
                del cells[key]

        cells[key] = (weakref.ref(t, forget), t._version, cell)
        return cell

    def made(self, t, make, sources, origin, view_of=None):
        """Remember that ``t`` is ``make`` of the values in the cells ``sources``."""
        cell = self.of(t)
        if cell.kept or cell in sources or any(not s.usable() for s in sources):
            return
        if 1 + max(s.depth for s in sources) <= DEEPEST:
            cell.made(make, tuple(sources), origin, view_of)
            cell.nbytes = t.numel() * t.element_size()

    def source(self, t, cell, out):
        """The cell from which ``out`` can be made; of a parameter a copy, None where that is not small.

        A parameter may be another one by the time that a later layer's backward asks: an optimizer that
        steps during backward, shards that are freed after forward.
        """
        if isinstance(t if t._base is None else t._base, torch.nn.Parameter):
            if SMALL * t.numel() > out.numel():
                return None
            return self.of(t.detach().clone())
        return cell or self.of(t)

    def _pack(self, t):
        cell = self.of(t)
        cell.saved += 1
        cell.left = cell.saved
        self._pending.append((cell, t))
        return cell

    def settle(self, op):
        """Decide, for all that the op has saved, between the tensor and its origin."""
        pending = self._pending
        if not pending:
            return
        self._pending = []
        # Tensors first: what they keep may be what an origin needs.
        for cell, t in sorted(pending, key=lambda saved: saved[0].make is not None):
            if not cell.kept:
                self._decide(cell, t)
            if cell.tensor is not None:
                cell.direct = True
            if self._observer is not None:
                self._observer(cell, op)

    def _decide(self, cell, t):
        if cell.make is not None and not self._worth(cell, t):
            base = cell.view_of
            cell.hold(t)
            if base is not None and base.tensor is None and not base.kept:
                # The view holds the whole storage of its base: the base is kept with it.
                shape, strides, _ = base.like
                base.hold(t.detach().as_strided(shape, strides, base.offset))
                base.keep()
        self._rely(cell)

    def _rely(self, cell):
        for leaf in cell.leaves().values():
            self._kept_storages.add(leaf.storage)
            if leaf is not cell:
                self._borrowed.setdefault(leaf.storage, []).append(leaf)
        cell.keep()

    def keep_origin(self, t):
        """Rely on the origin of ``t``, which may then be overwritten. False where it has none worth it."""
        cell = self.of(t)
        if cell.make is None or not (cell.kept or self._worth(cell, t)):
            return False
        self._rely(cell)
        return True

    def _worth(self, cell, t):
        """Whether the origin needs less memory than the tensor does."""
        leaves = cell.leaves()
        if not all(leaf.usable() for leaf in leaves.values()):
            return False
        needed = sum(leaf.nbytes for at, leaf in leaves.items() if at not in self._kept_storages)
        if cell.origin == "cat":  # its pieces are in the next concatenation too
            return needed <= cell.nbytes
        own = t.untyped_storage()
        at = own.data_ptr()
        if at in leaves:  # a view of what would be kept anyway
            return needed <= own.nbytes()
        return needed < (0 if at in self._kept_storages else own.nbytes())

    def before_write(self, t):
        """``t`` is about to be overwritten: what only an origin keeps there is copied first."""
        for cell in self._borrowed.pop(t.untyped_storage().data_ptr(), ()):
            if cell.usable() and not cell.direct:
                cell.hold(cell.tensor.clone())

    def run(self, apply, inputs, again, op, written=None):
        """``apply(*inputs)`` of a Function, whose output's origin is ``again(inputs, outputs)``."""
        cells = {id(t): self.of(t) for t in inputs if isinstance(t, torch.Tensor)} if again else {}
        if written is not None:
            self.before_write(written)
        outputs = apply(*inputs)
        if again is not None:
            first = outputs[0] if isinstance(outputs, tuple) else outputs
            if first.requires_grad:
                origin = again(inputs, outputs)
                if origin is not None:
                    make, sources = origin
                    found = [self.source(s, cells.get(id(s)), first) for s in sources]
                    if None not in found:
                        self.made(first, make, found, op)
        self.settle(op)
        return outputs


def may_watch():
    """Whether origins may be remembered now: plain eager autograd, and nobody else saves tensors."""
    return (
        torch.is_grad_enabled()
        and getattr(_here, "origins", None) is None
        and not torch.compiler.is_compiling()
        and not torch._C._are_functorch_transforms_active()
        and torch.autograd.forward_ad._current_level < 0
        and not torch.jit.is_tracing()
        and _autograd._saved_tensors_hooks_is_enabled()
        and _autograd._top_saved_tensors_default_hooks(True) is None
    )
