"""What a forward pass saves for backward: a tensor, or the recipe by which it is recomputed.

Between two matrix products everything is cheap: a norm's scale and shift, an activation, a residual sum, a
concatenation. So one tensor for each matrix product is enough; what lies between is recomputed in backward,
by the same kernels on the same numbers, and shared by all who ask for it.

A ``Recorder`` records one forward pass. Each tensor computed in it has a ``Value``: the tensor itself, or its
recipe, ``make(*sources)``. While an op runs, and only then, autograd's hooks for saved tensors are ours: what
user code, another library or a compiled function saves between is autograd's as ever. After the op
``Recorder.settle`` decides for what was saved: can it be recomputed from what is held anyway, or from what is
smaller? Then the tensor is let go; else it is held, at the version at which it was saved.

A recipe holds values: options are frozen, and what comes from outside of the pass is copied where small and no
source otherwise. A tensor's recipe counts only while the tensor is at the version, in the memory, and with the
fingerprint with which it was made; and what is recomputed in backward must have that fingerprint before anyone
uses it. The fingerprint is of some elements, or of all (``verify="full"``): what it does not show is not seen.
"""

import sys
import weakref
from contextlib import contextmanager

import torch

from manualnn._torch import (
    all_dispatch_modes,
    all_function_modes,
    dispatch_modes,
    forward_level,
    pop_saved_tensors_hooks,
    push_saved_tensors_hooks,
    saved_tensors_hooks_allowed,
    top_saved_tensors_hooks,
    transforms_active,
    uncompiled,
    without_torch_function,
)
from manualnn.autograd.interceptor import here
from manualnn.autograd.subclasses import with_subclass
from manualnn.memory.freeze import Unfreezable, frozen
from manualnn.memory.saved import Saved
from manualnn.memory.tensors import (
    is_lazy,
    is_ordinary,
    is_outside,
    memory_of,
    version_of,
)
from manualnn.memory.value import Constant, Value
from manualnn.memory.verify import Place

FEW = 4096  # bytes: no more than the bookkeeping
SMALL = 8  # a copy costs at most one part in so many of what it is copied for
# Steps from a tensor that is held; beyond them one is held, so that recomputing does not recurse without end.
DEEPEST = 64
FRAMES = 12  # from an op up to the forward of the layer that called it, at most


class Reference(weakref.ref):
    """A weak reference to a tensor that knows under which key the tensor's value stands in a table."""

    __slots__ = ("key",)


class Recorder:
    """The values of the tensors of one forward pass, and the hooks that save them.

    model: whose forward pass it is, for messages.
    fingerprint_of: takes a tensor's fingerprint; None, and nothing is verified.
    saved_later: the numbers of the recipes whose tensors were saved in earlier passes by another op than the
        one that made them; added to. These have their fingerprints taken when they are made, in a first pass
        all have: so it is seen that a tensor was changed between, and it is held. One that is saved later for
        the first time has its fingerprint taken then, and such a change is an error in backward.
    observer: if given, called as ``observer(saved, op)`` for each tensor that an op has saved, once decided.
    """

    def __init__(self, model=None, fingerprint_of=None, saved_later=None, observer=None):
        values = self._values = {}  # id of a tensor -> its value

        def gone(reference):
            found = values.get(reference.key)
            if found is not None and found.alive is reference:
                del values[reference.key]

        self._gone = gone
        self._placeholders = {}  # id of a tensor that stands for another -> (the tensor, that one's value)
        self._pending = []  # saved by the op that is running, not decided yet: (saved, value, tensor)
        self._held = set()  # storages
        self._sources = {}  # storage -> values held there that recipes rely on
        self._let_go = {}  # storage -> what was saved there and is to be recomputed
        # Storages that were handed out: what is saved there is held, as autograd does.
        self._exposed = set()
        self._fingerprinted = []
        self._count = 0  # of recipes
        self._saved_later, self._all_are_new = saved_later, not saved_later
        # The value, and its tensor, that the op has made whose saved tensors are being decided.
        self._newest = None, None
        self._model = None if model is None else weakref.ref(model)
        self._fingerprint_of, self._observer = fingerprint_of, observer
        self.busy = False  # an op is running: what it calls is its own affair
        self.dispatch_modes = dispatch_modes()  # those around the model: they only look on

    @contextmanager
    def recording(self):
        """Record what this thread does."""
        before = getattr(here, "recorder", None)
        here.recorder = self
        try:
            yield self
        finally:
            here.recorder = before
            for value in self._fingerprinted:
                if not value.saved:  # on the way to others, which have theirs
                    value.fingerprint = None
            # What stands in a cycle is freed late.
            self._fingerprinted = []
            self._pending, self._sources, self._let_go = [], {}, {}
            self._values.clear()
            self._placeholders.clear()

    def hand_over(self, result):
        """The model's result is the caller's, who may overwrite it: what only recipes hold there is copied.

        What autograd has saved there as well is refused in backward, as ever, if it is overwritten.
        """
        if isinstance(result, torch.Tensor):
            if self._sources and is_ordinary(result):
                self._copy_sources(memory_of(result), all_of_them=False)
        elif isinstance(result, dict):
            for part in result.values():
                self.hand_over(part)
        elif isinstance(result, (tuple, list)):
            for part in result:
                self.hand_over(part)

    def run(self, call, args, kwargs):
        """``call(*args, **kwargs)``, an op of torch's; what it saves is decided by ``settle``."""
        push_saved_tensors_hooks(self._pack, _unpack)
        self.busy = True
        try:
            return call(*args, **kwargs)
        finally:
            self.busy = False
            pop_saved_tensors_hooks()

    @uncompiled
    def run_function(self, apply, inputs, again, op, written=None):
        """``apply(*inputs)`` of a Function, whose output's recipe is ``again(inputs, outputs)``."""
        # What we and the Function call is no call of the model's.
        with without_torch_function():
            operands = None if again is None else self._operands(inputs)
            if written is not None:
                self.before_write(written)
            outputs = self.run(apply, inputs, {})
            if operands is not None:
                self._remember(again, inputs, outputs, operands, op)
            self.settle(op)
        if operands is not None:  # all were plain tensors
            return outputs
        return with_subclass(outputs, inputs)

    def of(self, t):
        """The value of a tensor as it is now."""
        key = id(t)
        value = self._values.get(key)
        if value is not None and value.alive() is t and value.is_value_of(t):
            return value
        if key in self._placeholders:
            return self._placeholders[key][1]
        alive = Reference(t, self._gone)
        alive.key = key
        value = self._values[key] = Value(t, alive)
        return value

    def stand_for(self, t, value):
        """``t`` is a placeholder: what is saved as ``t`` is ``value``."""
        self._placeholders[id(t)] = t, value

    def set_recipe(self, t, make, sources, op, view=False, over=None):
        """Remember that ``t`` is ``make`` of the values ``sources``."""
        value = self.of(t)
        if value.kept or value in sources or not all(s.usable() for s in sources):
            return
        if 1 + max(s.depth for s in sources) <= DEEPEST:
            value.set_recipe(t, make, tuple(sources), op, view, over)
            value.number = self._count
            self._newest = value, t
            self._count += 1

    def source(self, t, before, out):
        """From what ``out`` is recomputed where ``t`` was an operand: its value, or a copy, or None.

        before: the value of ``t`` before the call, or the version of what is from outside of the pass.

        A copy of what comes from outside, where it is small. Else nothing that others hold: it may be another
        one by the time of backward. An optimizer steps during backward, shards are freed after forward, a
        buffer is moved by the next call, noise is drawn anew. And of a statistic, say, which users change.
        """
        if isinstance(before, int):
            unchanged = version_of(t) == before
            return Constant(t.detach().clone()) if unchanged and is_small(t, out) else None
        if before.storage in self._exposed or is_lazy(t):
            return None
        if before.make is None:
            if before.present() is None:
                return None
            if t.untyped_storage().nbytes() <= FEW and is_small(t, out):
                return Constant(t.detach().clone())
        return before

    def before(self, t):
        """What ``source`` is to be told of an operand before the call, which may write over it."""
        return version_of(t) if is_outside(t) else self.of(t)

    def _pack(self, t):
        saved = Saved(t)
        value = None
        if is_ordinary(t) and (id(t) in self._placeholders or not is_outside(t)):
            value = self.of(t)
            value.saved += 1
            value.expect()
        self._pending.append((saved, value, t))
        return saved

    def settle(self, op):
        """Decide, for all that the op has saved, between the tensor and its recipe."""
        pending = self._pending
        if pending:
            self._pending = []
            # Tensors first, then views of them: what they hold may be what a recipe needs.
            for saved, value, t in sorted(pending, key=_by_kind) if len(pending) > 1 else pending:
                if value is not None:
                    self._decide(saved, value, t, op)
                if self._observer is not None:
                    self._observer(saved, op)
        value, t = self._newest
        if value is not None:
            # A view shows what its source holds.
            if value.fingerprint is None and value.make is not None and not value.view:
                if self._all_are_new or value.number in self._saved_later:
                    self._take_fingerprint(value, t)
            self._newest = None, None

    def _take_fingerprint(self, value, t):
        if self._fingerprint_of is not None:
            value.fingerprint = self._fingerprint_of(t)
            self._fingerprinted.append(value)

    def _decide(self, saved, value, t, op):
        plan = None
        if value.make is not None and value.storage not in self._exposed:
            plan = () if value.kept else self._worthwhile(value)
            if plan is not None and not self._is_as_made(value, t):
                value.asked -= 1
                plan, value = None, self._as_it_is(value, t)
                value.expect()
        if plan is None:
            if id(t) in self._placeholders:
                raise AssertionError("a placeholder has no numbers to hold")
            if value.kept and value.tensor is None:
                value = self._as_it_is(value, t)
            if value.tensor is None:
                value.hold(t, saved.version)
            value.kept = value.direct = True
            self._held.add(value.storage)
            return
        if not value.kept:
            self._rely(value, plan)
        saved.let_go(value, Place(op, _layer(), self._model), self._fingerprint_of)
        self._let_go.setdefault(value.storage, []).append(saved)

    def _as_it_is(self, value, t):
        """A value of ``t`` without a recipe."""
        if self._values.get(id(t)) is value:
            del self._values[id(t)]
        return self.of(t)

    def _is_as_made(self, value, t):
        """Whether ``t`` still has its fingerprint. If not, all that was saved of it is as torch has it."""
        take = self._fingerprint_of
        if take is None or id(t) in self._placeholders:
            return True
        if value.fingerprint is None:
            if value.view:
                source = value.sources[0]
                shown = source.present() if source.make is not None else None
                if shown is not None and not self._is_as_made(source, shown):
                    return False
            elif value is not self._newest[0]:
                self._saved_later.add(value.number)
            self._take_fingerprint(value, t)
            return True
        if value is not self._newest[0]:
            self._saved_later.add(value.number)
            now, before = take(t), value.fingerprint
            if isinstance(now, torch.Tensor):
                # No waiting for a GPU: a change between is an error when backward ends.
                value.fingerprint = now
            elif now != before:
                self.forget(t)
                return False
        return True

    def keep_recipe(self, t):
        """Rely on the recipe of ``t``, which may then be overwritten. False where it has none worth it."""
        if not is_ordinary(t):
            return False
        value = self.of(t)
        if value.make is None or value.storage in self._exposed or not self._is_as_made(value, t):
            return False
        if not value.kept:
            plan = self._worthwhile(value)
            if plan is None:
                return False
            self._rely(value, plan)
        return True

    def _rely(self, value, plan):
        """Recompute ``value`` in backward: what it is recomputed from is held from now on."""
        for source in plan:
            source.hold(source.present())
            self._held.add(source.storage)
        value.kept, waiting = True, [value]
        while waiting:
            for source in waiting.pop().sources:
                source.expect()
                if isinstance(source, Value):
                    if source.make is None:
                        found = self._sources.setdefault(source.storage, [])
                        if source not in found:
                            found.append(source)
                    elif not source.kept:
                        waiting.append(source)
                    source.kept = True

    def _worthwhile(self, value):
        """What to hold for the recipe of this value, if it needs less memory than the tensor does."""
        plan = value.plan_of_sources(self._costs, {})
        if plan is None:
            return None
        needed, own = self._costs(plan), self._costs((value,))
        # A view of what is held; or pieces that are in the next concatenation too.
        as_good = value.op == "cat" or any(s.storage == value.storage for s in plan)
        return plan if needed < own or (as_good and needed == own) else None

    def _costs(self, values):
        """Bytes of holding these values' tensors, each storage once, beyond what is held."""
        return sum({v.storage: v.nbytes for v in values if v.storage not in self._held}.values())

    def forget(self, t):
        """The memory of ``t`` is handed out: what is written there from now on no version would tell.

        What recipes rely on there is copied, and what was let go there is held after all, as autograd would
        have it, who sees such a change.
        """
        memory = memory_of(t)
        for saved in self._let_go.pop(memory, ()):
            saved.take_back()
        self.before_write(t)
        self._exposed.add(memory)
        for key in [key for key, value in self._values.items() if value.storage == memory]:
            value = self._values.pop(key)
            if value.tensor is None:  # its recipe, if it has one, is that of the value as it was
                value.as_made = None

    def before_write(self, t):
        """``t`` is about to be overwritten: what recipes rely on there is copied first."""
        self._copy_sources(memory_of(t))

    def _copy_sources(self, memory, all_of_them=True):
        sources = self._sources.pop(memory, ())
        for value in sources:
            if value.present() is None:
                continue
            if all_of_them or not value.direct:
                value.hold_copy()
                self._held.add(value.storage)
            self._sources.setdefault(value.storage, []).append(value)

    def _operands(self, inputs):
        """What ``source`` is to be told of the inputs, by id; None where we know nothing about one."""
        found = {}
        for t in inputs:
            if isinstance(t, torch.Tensor):
                if not is_ordinary(t):
                    return None
                found[id(t)] = self.before(t)
        return found

    def _remember(self, again, inputs, outputs, operands, op):
        first = outputs[0] if isinstance(outputs, tuple) else outputs
        if not first.requires_grad:
            return
        try:
            inputs = [v if isinstance(v, torch.Tensor) else frozen(v) for v in inputs]
        except Unfreezable:
            return
        recipe = again(inputs, outputs)
        if recipe is None:
            return
        make, sources, *over = recipe
        found = []
        for s in sources:
            before = operands.get(id(s))
            if before is None:  # the Function's own: its statistics, its mask, its copies
                found.append(Constant(s))
            else:
                found.append(self.source(s, before, first))
        if None not in found:
            self.set_recipe(first, make, found, op, over=over[0] if over else None)


def is_small(t, out):
    """Whether a copy of ``t`` costs little beside ``out``."""
    return SMALL * t.numel() * t.element_size() <= out.numel() * out.element_size()


def _unpack(saved):
    return saved.unpack()


def _by_kind(pending):
    _, value, _ = pending
    return 0 if value is None or value.make is None else 1 if value.view else 2


def _layer():
    """The layer whose forward is running, found on the stack: nothing else knows it at no cost."""
    frame = sys._getframe(2)
    for _ in range(FRAMES):
        frame = frame.f_back
        if frame is None:
            return None
        if frame.f_code.co_name == "forward":
            layer = frame.f_locals.get("self")
            if isinstance(layer, torch.nn.Module):
                return layer
    return None


def may_record():
    """Whether a forward pass may be recorded now: plain eager autograd, and nobody else saves tensors."""
    return (
        torch.is_grad_enabled()
        and getattr(here, "recorder", None) is None
        and not torch.compiler.is_compiling()
        and not transforms_active()
        and forward_level() < 0
        and not torch.jit.is_tracing()
        and not _foreign_modes()
        and saved_tensors_hooks_allowed()
        and top_saved_tensors_hooks(True) is None
    )


def _foreign_modes():
    """Modes around the model that may change what an op does, or are to see it before we do.

    One that chooses a device for what is created sees none of ours; one of ours says that it only looks on.
    """
    functions, dispatches = all_function_modes(), all_dispatch_modes()
    return any(type(m).__module__ != "torch.utils._device" for m in functions) or any(
        not getattr(m, "only_looks_on", False) for m in dispatches
    )
