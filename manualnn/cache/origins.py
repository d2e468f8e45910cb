"""How a tensor was made, remembered instead of the tensor.

Between two matrix products everything is cheap: a norm's scale and shift, an activation, a residual sum, a
concatenation. So one tensor for each matrix product is enough; what lies between is made again in backward,
by the same kernels on the same numbers, and shared by all who ask for it.

``Origins`` watches one forward pass. Each tensor in it has a ``Cell``: the tensor itself, or its origin,
``make(*sources)``. What autograd saves while it watches (by PyTorch's hooks for saved tensors) is the cell.
After each op ``Origins.settle`` decides for what was saved: is everything in its origin kept anyway, or
smaller? Then the origin is kept and the tensor goes; else the tensor is kept.

Nothing can go stale unseen. A tensor's origin counts only while the tensor is at the version, and in the
memory, at which it was made; a tensor that is kept is read back only at the version at which it was kept, as
autograd does it. When the forward pass ends, every origin that nobody kept is forgotten.
"""

import threading
import weakref
from contextlib import contextmanager

import torch
from torch._C import _autograd
from torch.autograd.graph import saved_tensors_hooks

from manualnn.cache.cells import Cell, Plain
from manualnn.cache.staleness import version_of
from manualnn.cache.tensors import is_ordinary, is_parameter, memory_of

_here = threading.local()
SMALL = 8  # a copy of a parameter costs at most one part in so many
# Steps from a kept tensor; beyond them a tensor is kept, so that remaking does not recurse without end.
DEEPEST = 64


def active():
    """The Origins that watch this thread now, or None.

    None as well where somebody else's hooks (a checkpoint's, an offloader's) receive what is saved: what
    is theirs to drop must not be kept alive by us.
    """
    origins = getattr(_here, "origins", None)
    if origins is None or not torch.is_grad_enabled():
        return None
    hooks = _autograd._top_saved_tensors_default_hooks(True)
    return origins if hooks is not None and hooks[0] is origins.hooks[0] else None


def running():
    """Whether a Function is running whose output's origin will be asked for."""
    origins = getattr(_here, "origins", None)
    return origins is not None and origins.busy


class Reference(weakref.ref):
    """A weak reference to a tensor that knows under which key the tensor's cell stands in a table."""

    __slots__ = ("key",)


class Origins:
    """The origins of the tensors of one forward pass, and the hooks that save them.

    observer: if given, called as ``observer(cell, op)`` for each cell that an op has saved and settled.
    """

    def __init__(self, observer=None):
        cells = self._cells = {}  # id of a tensor -> its cell

        def gone(reference):
            found = cells.get(reference.key)
            if found is not None and found.alive is reference:
                del cells[reference.key]

        self._gone = gone
        self._standing = {}  # id of a tensor that stands for another -> (the tensor, that one's cell)
        self._pending = []  # saved by the op that is running, not decided yet: (cell, tensor)
        self._held = set()  # storages
        self._borrowed = {}  # storage -> cells kept for an origin only, which torch would not keep
        self._observer = observer
        self.busy = False  # one of ours is running: what it calls is its own affair
        self.hooks = (self._pack, _unpack)

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
            # What stands in a cycle, as our hooks do, is freed late.
            self._pending, self._borrowed, self.hooks = [], {}, (None, None)
            self._cells.clear()
            self._standing.clear()

    def of(self, t):
        """The cell of a tensor as it is now."""
        key = id(t)
        cell = self._cells.get(key)
        if cell is not None and cell.alive() is t and cell.is_value_of(t):
            return cell
        if key in self._standing:
            return self._standing[key][1]
        alive = Reference(t, self._gone)
        alive.key = key
        cell = self._cells[key] = Cell(t, alive)
        return cell

    def stand_in(self, t, cell):
        """``t`` holds nothing; what is saved as ``t`` is the value of ``cell``."""
        self._standing[id(t)] = t, cell

    def made(self, t, make, sources, origin, view=False, over=None):
        """Remember that ``t`` is ``make`` of the values in the cells ``sources``."""
        cell = self.of(t)
        if cell.kept or cell in sources or not all(s.usable() for s in sources):
            return
        if 1 + max(s.depth for s in sources) <= DEEPEST:
            cell.made(t, make, tuple(sources), origin, view, over)

    def source(self, t, cell, out):
        """The cell from which ``out`` can be made; of a parameter a copy, None where that is not small.

        A parameter may be another one by the time that a later layer's backward asks: an optimizer that
        steps during backward, shards that are freed after forward.
        """
        if is_parameter(t if t._base is None else t._base):
            return None if SMALL * t.numel() > out.numel() else Plain(t.detach().clone())
        if cell is None:
            if SMALL * t.untyped_storage().nbytes() <= out.numel() * out.element_size():
                return Plain(t)  # nobody else may hold it
            cell = self.of(t)
        return cell

    def _pack(self, t):
        if not is_ordinary(t) or (id(t) not in self._cells and (t.dim() <= 1 or is_parameter(t))):
            plain = Plain(t)
            if self._observer is not None:
                self._pending.append((plain, t))
            return plain
        cell = self.of(t)
        cell.saved += 1
        cell.expect()
        self._pending.append((cell, t))
        return cell

    def settle(self, op):
        """Decide, for all that the op has saved, between the tensor and its origin."""
        pending = self._pending
        if not pending:
            return
        self._pending = []
        # Tensors first, then views of them: what they keep may be what an origin needs.
        for cell, t in sorted(pending, key=_by_kind) if len(pending) > 1 else pending:
            if not cell.kept:
                plan = self._worthwhile(cell) if cell.make is not None else None
                if plan is None:
                    cell.hold(t)
                self._rely(cell, plan)
            if cell.tensor is not None:
                cell.direct = True
            if self._observer is not None:
                self._observer(cell, op)

    def keep_origin(self, t):
        """Rely on the origin of ``t``, which may then be overwritten. False where it has none worth it."""
        cell = self.of(t)
        if cell.make is None:
            return False
        if not cell.kept:
            plan = self._worthwhile(cell)
            if plan is None:
                return False
            self._rely(cell, plan)
        return True

    def _rely(self, cell, plan):
        if cell.tensor is not None:
            self._held.add(cell.storage)
        else:
            for source in plan:
                source.hold(source.present())
                self._held.add(source.storage)
                self._borrowed.setdefault(source.storage, []).append(source)
        cell.keep()

    def _worthwhile(self, cell):
        """The cells to hold for the origin of this one, if they need less memory than the tensor does."""
        plan = cell.plan_of_sources(self._costs, {})
        if plan is None:
            return None
        needed, own = self._costs(plan), self._costs((cell,))
        # A view of what is held; or pieces that are in the next concatenation too.
        as_good = cell.origin == "cat" or any(s.storage == cell.storage for s in plan)
        return plan if needed < own or (as_good and needed == own) else None

    def _costs(self, cells):
        """Bytes of holding these cells' tensors, each storage once, beyond what is held."""
        return sum({c.storage: c.nbytes for c in cells if c.storage not in self._held}.values())

    def forget(self, t):
        """The memory of ``t`` is handed out: what is written there from now on no version would tell."""
        self.before_write(t)
        memory = memory_of(t)
        for key in [key for key, cell in self._cells.items() if cell.storage == memory]:
            cell = self._cells.pop(key)
            if cell.tensor is None:  # its origin, if it has one, is that of the value as it was
                cell.as_made = None

    def before_write(self, t):
        """``t`` is about to be overwritten: what only an origin keeps there is copied first."""
        for cell in self._borrowed.pop(memory_of(t), ()):
            if cell.usable() and not cell.direct:
                cell.hold(cell.tensor.clone())

    def run(self, apply, inputs, again, op, written=None):
        """``apply(*inputs)`` of a Function, whose output's origin is ``again(inputs, outputs)``."""
        # What we and the Function call is no call of the model's.
        with torch._C.DisableTorchFunction():
            before = None if again is None else self._before(inputs)
            if written is not None:
                self.before_write(written)
            self.busy = True
            try:
                outputs = apply(*inputs)
                if before is not None:
                    self._remember(again, inputs, outputs, before, op)
            finally:
                self.busy = False
            self.settle(op)
        return outputs

    def _before(self, inputs):
        """What the inputs are before the call, which may write over one: the cell, or of what is copied
        or small the version. None where one is a tensor that we know nothing about.
        """
        before = {}
        for t in inputs:
            if isinstance(t, torch.Tensor):
                if not is_ordinary(t):
                    return None
                before[id(t)] = version_of(t) if t.dim() <= 1 or is_parameter(t) else self.of(t)
        return before

    def _remember(self, again, inputs, outputs, before, op):
        first = outputs[0] if isinstance(outputs, tuple) else outputs
        origin = again(inputs, outputs) if first.requires_grad else None
        if origin is None:
            return
        make, sources, *over = origin
        found = []
        for s in sources:
            was = before.get(id(s))
            if isinstance(was, int):
                if version_of(s) != was:
                    return
                was = None
            found.append(self.source(s, was, first))
        if None not in found:
            self.made(first, make, found, op, over=over[0] if over else None)


def _unpack(kept):
    return kept.unpack()


def _by_kind(saved):
    cell, _ = saved
    return 0 if cell.make is None else 1 if cell.view else 2


def may_watch():
    """Whether origins may be remembered now: plain eager autograd, and nobody else saves tensors."""
    return (
        torch.is_grad_enabled()
        and getattr(_here, "origins", None) is None
        and not torch.compiler.is_compiling()
        and not torch._C._are_functorch_transforms_active()
        and torch.autograd.forward_ad._current_level < 0
        and not torch.jit.is_tracing()
        and torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.FAKE) is None
        and _autograd._saved_tensors_hooks_is_enabled()
        and _autograd._top_saved_tensors_default_hooks(True) is None
    )
