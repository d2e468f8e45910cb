"""Records a forward pass, so that backward can recompute tensors instead of saving them.

Between two matrix products everything is cheap: a norm's scale and shift, an activation, a residual sum, a
concatenation. So it is enough to save one tensor for each matrix product. What lies between is recomputed in
backward, by the same kernels on the same numbers, once for all that ask for it.

A ``Recorder`` records one forward pass. Each tensor computed in it has a ``SavedValue``: its recipe, if the
recorder knows one, and the tensor itself once that is saved. Autograd's hooks for saved tensors are ours only
while an op runs: what user code, another library or a compiled function saves between ops is autograd's as
ever. After each op ``Recorder.decide`` asks, for each tensor that the op saved, whether backward shall
recompute it (see decision.py). If so the tensor is dropped; else it is saved, at the version at which the op
saved it.

A recipe holds values: options are frozen, and what comes from outside of the pass is copied if it is small,
and otherwise no source. A tensor's recipe is valid only while the tensor is at the version, in the memory,
and with the fingerprint with which it was made. What backward recomputes must have that fingerprint before
anything uses it. The fingerprint is of some elements, or of all (``verify="full"``); a change that it does
not show goes unnoticed.
"""

import weakref
from contextlib import contextmanager

import torch
from torch.multiprocessing.reductions import StorageWeakRef

from manualnn._torch import (
    dispatch_modes,
    pop_saved_tensors_hooks,
    push_saved_tensors_hooks,
    uncompiled,
    without_torch_function,
)
from manualnn.autograd.interceptor import here
from manualnn.autograd.subclasses import with_subclass
from manualnn.memory.decision import LeastBytes
from manualnn.memory.freeze import ATOMS, Unfreezable, frozen
from manualnn.memory.packed import Packed
from manualnn.memory.recipe import Recipe
from manualnn.memory.saved_value import Constant, SavedValue, TensorReference
from manualnn.memory.tensors import (
    has_history,
    is_lazy,
    is_ordinary,
    is_outside,
    memory_of,
    version_of,
)
from manualnn.memory.verify import Place, running_layer

# Bytes: an op whose inputs are all as small, or parameters, is left to autograd. To keep the books of a tensor
# takes longer than to write so many bytes and to read them again.
LEAST = 1 << 17
FEW = 4096  # bytes: no more than the bookkeeping of a value takes
SMALL = 8  # a copy may take at most one part in so many of what it is copied for
# Recipes from a value to a saved tensor, at most. A tensor in between is saved, so that recomputing does not
# recurse without end.
DEEPEST = 64


class Recorder:
    """Records one forward pass: the values of its tensors, and the hooks by which autograd saves them.

    model: the model whose forward pass it is, for messages.
    fingerprint_of: takes a tensor's fingerprint; with None nothing is verified.
    saved_later: the numbers of the recipes whose tensors were saved, in earlier passes, by another op than
        the one that made them; this pass adds to it. Only these have their fingerprints taken when they are
        made; in the first pass all have. So a change between is noticed, and the changed tensor saved. A
        tensor that is saved later for the first time has its fingerprint taken then; a change before is an
        error in backward.
    observer: if given, called as ``observer(packed, op)`` for each tensor that an op has saved, once decided.
    decision: which tensors to save; LeastBytes by default.
    """

    def __init__(
        self, model=None, fingerprint_of=None, saved_later=None, observer=None, decision=None
    ):
        values = self._values = {}  # id of a tensor -> its value

        def gone(reference):
            value = values.get(reference.key)
            if value is not None and value.reference is reference:
                del values[reference.key]

        self._gone = gone
        self._placeholders = {}  # id of a placeholder -> (the placeholder, the value it stands for)
        self._pending = []  # saved by the running op, not decided yet: (packed, value, tensor)
        # What the running forward pass must still be able to find, by storage. Weak references, because a graph
        # may be dropped in the middle of forward: nothing here may retain what it has saved.
        self._pinned_tensors = {}  # storage -> values whose tensor is a source of pinned recipes
        self._dropped = {}  # storage -> packed tensors that are to be recomputed
        self._fingerprinted = []  # values
        # Storages whose memory was handed out: tensors there are saved, as autograd does. Weak references: once
        # the memory is free, another tensor may have its address.
        self._exposed = {}
        self._count = 0  # of recipes
        self._saved_later, self._is_first_pass = saved_later, not saved_later
        self._newest = None, None  # the value and the tensor that the last op has made
        self._model = None if model is None else weakref.ref(model)
        self._fingerprint_of, self._observer = fingerprint_of, observer
        self._decision = LeastBytes() if decision is None else decision
        self.busy = False  # an op is running: what it calls inside is not recorded
        self._is_left = False  # and it is one that is left to autograd
        self.dispatch_modes = dispatch_modes()  # those around the model: they only look on

    @contextmanager
    def recording(self):
        """Record what this thread does."""
        before = here.recorder
        here.recorder = self
        try:
            yield self
        finally:
            here.recorder = before
            for reference in self._fingerprinted:
                value = reference()
                # An intermediate step, which autograd has not saved: the steps after it have a fingerprint.
                if value is not None and not value.saves:
                    value.fingerprint = None
            # Values stand in a cycle with their table, which would be freed late.
            self._values.clear()
            self._placeholders.clear()
            self._pending, self._fingerprinted = [], []
            self._pinned_tensors, self._dropped = {}, {}

    def before_return(self, result):
        """Prepare for a caller who may overwrite the model's result: a source of recipes is copied first.

        A tensor that autograd itself has saved is not: if it is overwritten backward refuses it, as ever.
        """
        if isinstance(result, torch.Tensor):
            if self._pinned_tensors and is_ordinary(result):
                self._copy_sources(memory_of(result), even_direct=False)
        elif isinstance(result, dict):
            for part in result.values():
                self.before_return(part)
        elif isinstance(result, (tuple, list)):
            for part in result:
                self.before_return(part)

    def run(self, call, args, kwargs):
        """``call(*args, **kwargs)``, an op of torch's. Record its recipe after it, then call ``decide``."""
        push_saved_tensors_hooks(self._pack, Packed.unpack)
        self.busy = True
        try:
            return call(*args, **kwargs)
        except BaseException:
            self._discard_pending()
            raise
        finally:
            self.busy = False
            pop_saved_tensors_hooks()

    def leaves(self, inputs):
        """Whether an op of these inputs is left to autograd: all are small, but for parameters beside them."""
        if self._placeholders:  # which only the recorder can tell from a tensor
            return False
        large_parameter = others = False
        for t in inputs:
            kind = type(t)
            if kind in ATOMS or not isinstance(t, torch.Tensor):
                continue
            is_parameter = kind is torch.nn.Parameter
            if not (is_parameter or kind is torch.Tensor):
                return False
            others = others or not is_parameter
            if t.numel() * t.element_size() > LEAST:
                if not is_parameter:
                    return False
                large_parameter = True
            elif t._is_view() and t.untyped_storage().nbytes() > LEAST:
                return False  # it would keep all of what it is a part of
        return others or not large_parameter

    def leave(self, call, args, kwargs, op):
        """``call(*args, **kwargs)``, an op that is left to autograd: its output has no recipe."""
        if self._observer is not None:
            self._is_left = True
            try:
                out = self.run(call, args, kwargs)
            finally:
                self._is_left = False
            self.decide(op)
            return out
        self.busy = True
        try:
            return call(*args, **kwargs)
        finally:
            self.busy = False

    @uncompiled
    def run_function(self, apply, inputs, recompute, op, written=None):
        """``apply(*inputs)`` of a Function; ``recompute(inputs, outputs)`` states the recipe of its output.

        written: the input that it writes over, if any.
        """
        # What the Function and this method call is no call of the model's.
        with without_torch_function():
            is_left = self.leaves(inputs)
            operands = None if is_left or recompute is None else self._operands(inputs)
            if written is not None:
                self.before_write(written)
            if is_left:
                return self.leave(apply, inputs, {}, op)
            outputs = self.run(apply, inputs, {})
            if operands is not None:
                self._record_function(recompute, inputs, outputs, operands, op)
            self.decide(op)
        if operands is not None:  # all were plain tensors
            return outputs
        return with_subclass(outputs, inputs)

    def _inside(self, t):
        """The value of ``t`` as it is now, if that stands in the table as one computed in the graph; or None.

        What ``is_ordinary`` and ``is_outside`` ask of a tensor stays as it is while its type, version and
        memory do; but ``detach_`` takes its history away.
        """
        value = self._values.get(id(t))
        if value is None or not value.is_inside or type(t) is not torch.Tensor:
            return None
        reference = value.reference
        found = reference() is t and reference.is_unchanged(t) and has_history(t)
        return value if found else None

    def _seen_inside(self, t):
        """The value of ``t``, which is ordinary and was computed in the graph: not to be asked again."""
        value = self.value_of(t)
        if id(t) not in self._placeholders:  # whose value is that of another tensor
            value.is_inside = True
        return value

    def value_of(self, t):
        """The value of a tensor as it is now."""
        key = id(t)
        value = self._values.get(key)
        if value is not None and value.reference() is t and value.reference.is_unchanged(t):
            return value
        if key in self._placeholders:
            return self._placeholders[key][1]
        reference = TensorReference(t, self._gone)
        reference.key = key
        value = self._values[key] = SavedValue(t, reference)
        return value

    def set_placeholder(self, t, value):
        """Let the placeholder ``t``, which has no numbers, stand for ``value`` in what the next op saves."""
        self._placeholders[id(t)] = t, value

    def set_recipe(self, t, recompute, sources, op, is_view=False, in_place=None, into=None):
        """Record that ``t`` is ``recompute(*sources)``, where ``sources`` are values."""
        value, deepest = self.value_of(t), 0
        if value.is_pinned:
            return
        for source in sources:
            if source is value or not source.is_available():
                return
            depth = source.depth
            if depth > deepest:
                deepest = depth
        if deepest >= DEEPEST:
            return
        layout = t.shape, t.stride(), t.dtype
        ways = (self._count, deepest + 1, in_place, into)
        value.set_recipe(Recipe(recompute, tuple(sources), op, is_view, layout, *ways))
        self._newest = value, t
        self._count += 1

    def before_call(self, t):
        """What ``source`` needs to know of an operand, taken before the call, which may write over it."""
        return self._inside(t) or (version_of(t) if is_outside(t) else self._seen_inside(t))

    def source(self, t, before, out):
        """The source for an operand ``t`` in a recipe of ``out``: its value, a copy, or None.

        before: what ``before_call`` gave: the value of ``t``, or the version of a tensor from outside of the
        pass.

        Of a tensor from outside a copy, if that is small; else it is no source, because other code may change
        it before backward: an optimizer steps during backward, shards are freed after forward, the next call
        moves a buffer, noise is drawn anew. A small tensor without a recipe (a statistic, say, which users
        change) is copied, too.
        """
        if isinstance(before, int):
            unchanged = version_of(t) == before
            return Constant(t.detach().clone()) if unchanged and is_small(t, out) else None
        if self._is_exposed(before) or is_lazy(t):
            return None
        if before.recipe is None:
            if before.present() is None:
                return None
            if t.untyped_storage().nbytes() <= FEW and is_small(t, out):
                return Constant(t.detach().clone())
        return before

    def _pack(self, t):
        packed = Packed(t)
        placeholder = id(t) in self._placeholders
        value = None
        if not self._is_left and (
            placeholder or packed.tensor is not t
        ):  # packed as it is, it has no history: it is from outside
            value = self._inside(t)
            if value is None and is_ordinary(t) and (placeholder or not is_outside(t)):
                value = self._seen_inside(t)
        if value is not None:
            value.saves += 1
            value.references += 1
        elif self._observer is None:
            return packed
        self._pending.append((packed, value, t))
        return packed

    def _discard_pending(self):
        """The op raised: no node of the graph will ask for what it has saved."""
        for _, value, _ in self._pending:
            if value is not None:
                value.saves -= 1
                value.references -= 1
        self._pending = []
        self._placeholders.clear()

    def decide(self, op):
        """Decide, for each tensor that the op has saved, between the tensor and its recipe."""
        pending = self._pending
        if pending:
            self._pending = []
            # Tensors first, then views of them: what is saved then may be what a recipe needs.
            if len(pending) > 1:
                pending.sort(key=_by_kind)
            for packed, value, t in pending:
                if value is not None:
                    self._decide_one(packed, value, t, op)
                if self._observer is not None:
                    self._observer(packed, op)
        if self._placeholders:
            self._placeholders.clear()
        value, t = self._newest
        if value is not None:
            recipe = value.recipe
            # A view needs no fingerprint: it shows what its source holds.
            if value.fingerprint is None and recipe is not None and not recipe.is_view:
                if self._is_first_pass or recipe.number in self._saved_later:
                    self._take_fingerprint(value, t)
            self._newest = None, None

    def _take_fingerprint(self, value, t):
        if self._fingerprint_of is not None:
            value.fingerprint = self._fingerprint_of(t)
            self._fingerprinted.append(weakref.ref(value))

    def _decide_one(self, packed, value, t, op):
        needed = None
        if value.recipe is not None and not self._is_exposed(value):
            needed = () if value.is_pinned else self._decision.values_to_save(value)
            if needed is not None and not self._is_unchanged(value, t):
                needed, value = None, self._without_recipe(value, t)
        if needed is None:
            if id(t) in self._placeholders:
                raise AssertionError("a placeholder has no numbers to save")
            if value.is_pinned and value.tensor is None:
                value = self._without_recipe(value, t)
            if value.tensor is None:
                value.save(packed.tensor, packed.version)
            value.is_pinned = value.is_direct = True
            self._decision.note_saved(value)
            return
        if not value.is_pinned:
            self._pin(value, needed)
        packed.drop(value, Place(op, running_layer(), self._model), self._fingerprint_of)
        self._dropped.setdefault(value.storage, []).append(weakref.ref(packed))

    def _without_recipe(self, value, t):
        """A value without a recipe for ``t``, which autograd was about to save as ``value``."""
        value.saves -= 1
        value.references -= 1
        if self._values.get(id(t)) is value:
            del self._values[id(t)]
        value = self.value_of(t)
        value.saves += 1
        value.references += 1
        return value

    def _is_unchanged(self, value, t):
        """Whether ``t`` still has its fingerprint. If not, all that was saved of it is saved as torch does."""
        take = self._fingerprint_of
        if take is None or id(t) in self._placeholders:
            return True
        recipe = value.recipe
        if value.fingerprint is None:
            if recipe.is_view:
                source = recipe.sources[0]
                shown = source.present() if source.recipe is not None else None
                if shown is not None and not self._is_unchanged(source, shown):
                    return False
            elif value is not self._newest[0]:
                self._saved_later.add(recipe.number)
            self._take_fingerprint(value, t)
            return True
        if value is not self._newest[0]:
            self._saved_later.add(recipe.number)
            now, before = take(t), value.fingerprint
            if isinstance(now, torch.Tensor):
                # Do not wait for a GPU: a change between is an error when backward ends.
                value.fingerprint = now
            elif now != before:
                self.expose(t)
                return False
        return True

    def pin_recipe(self, t):
        """Rely on the recipe of ``t``, so that ``t`` may be overwritten. False if it saves no bytes."""
        if not is_ordinary(t):
            return False
        value = self.value_of(t)
        if value.recipe is None or self._is_exposed(value) or not self._is_unchanged(value, t):
            return False
        if not value.is_pinned:
            needed = self._decision.values_to_save(value)
            if needed is None:
                return False
            self._pin(value, needed)
        return True

    def _pin(self, value, needed):
        """Have backward recompute ``value``: save what that needs, and count who asks for what."""
        for source in needed:
            t = source.present()
            source.save(t.detach(), version_of(t))
            self._decision.note_saved(source)
        value.is_pinned, waiting = True, [value]
        while waiting:
            for source in waiting.pop().sources:
                if isinstance(source, SavedValue):
                    source.references += 1
                    if source.recipe is None:
                        self._add_pinned_tensor(source)
                    elif not source.is_pinned:
                        waiting.append(source)
                    source.is_pinned = True

    def _add_pinned_tensor(self, value):
        pinned, reference = self._pinned_tensors.setdefault(value.storage, []), weakref.ref(value)
        if reference not in pinned:
            pinned.append(reference)

    def expose(self, t):
        """The memory of ``t`` is handed out: from now on no version counter shows what is written there.

        Sources of recipes there are copied. What was dropped there is saved after all, so that it shows such a
        change, as what autograd saves does.
        """
        memory = memory_of(t)
        for reference in self._dropped.pop(memory, ()):
            packed = reference()
            if packed is not None:
                packed.restore()
        self.before_write(t)
        self._exposed[memory] = StorageWeakRef(t.untyped_storage())
        for key in [key for key, value in self._values.items() if value.storage == memory]:
            value = self._values.pop(key)
            if value.tensor is None:  # its recipe, if it has one, is that of what it was until now
                value.disown_tensor()

    def _is_exposed(self, value):
        if not self._exposed:
            return False
        reference = self._exposed.get(value.storage)
        return reference is not None and not reference.expired()

    def before_write(self, t):
        """``t`` is about to be overwritten: sources of recipes there are copied first."""
        self._copy_sources(memory_of(t), even_direct=True)

    def _copy_sources(self, memory, even_direct):
        for reference in self._pinned_tensors.pop(memory, ()):
            value = reference()
            if value is None or value.present() is None:
                continue
            if even_direct or not value.is_direct:
                value.save_copy()
                self._decision.note_saved(value)
            self._add_pinned_tensor(value)

    def _operands(self, inputs):
        """What ``before_call`` gives for the inputs, by id; None if one is not an ordinary tensor."""
        found = {}
        for t in inputs:
            if type(t) in ATOMS or not isinstance(t, torch.Tensor):
                continue
            value = self._inside(t)
            if value is None:
                if not is_ordinary(t):
                    return None
                value = version_of(t) if is_outside(t) else self._seen_inside(t)
            found[id(t)] = value
        return found

    def _record_function(self, recompute, inputs, outputs, operands, op):
        first = outputs[0] if isinstance(outputs, tuple) else outputs
        if not first.requires_grad:
            return
        try:
            inputs = [
                v if type(v) in ATOMS or isinstance(v, torch.Tensor) else frozen(v) for v in inputs
            ]
        except Unfreezable:
            return
        stated = recompute(inputs, outputs)
        if stated is None:
            return
        make, tensors, *in_place = stated
        sources = []
        for t in tensors:
            before = operands.get(id(t))
            if before is None:  # the Function's own: its statistics, its mask, its copies
                sources.append(Constant(t))
            else:
                sources.append(self.source(t, before, first))
        if None not in sources:
            self.set_recipe(first, make, sources, op, in_place=in_place[0] if in_place else None)


def is_small(t, out):
    """Whether a copy of ``t`` takes few bytes beside ``out``."""
    return SMALL * t.numel() * t.element_size() <= out.numel() * out.element_size()


def _by_kind(pending):
    _, value, _ = pending
    if value is None or value.recipe is None:
        return 0
    return 1 if value.recipe.is_view else 2
