"""The bookkeeping of one backward pass: what it has recomputed, and how often each will still be asked for."""

import threading
import weakref

import torch

from manualnn._torch import after_backward, graph_task, is_alias_of
from manualnn.autograd.spare import Pile
from manualnn.kernels import chains
from manualnn.memory.chain import chain_of
from manualnn.memory.fingerprint import differ
from manualnn.memory.tensors import RECOMPUTE_HINT, changed, stream_of, version_of

_passes = {}  # graph task -> a weak reference to its BackwardPass
_opening = threading.Lock()


class Recomputed:
    """A recomputed tensor that a backward pass shares until the last one has asked for it.

    version, stream  of the tensor when it was recomputed: changed since, or asked for in another stream, it is
                     recomputed once more
    is_own           whether it has memory of its own, and is no view of a source
    is_verified      whether it has been compared with the fingerprint
    references       how many will still ask for it
    """

    __slots__ = ("is_own", "is_verified", "references", "stream", "tensor", "version")

    def __init__(self, tensor, is_own, references):
        self.tensor, self.is_own, self.references = tensor, is_own, references
        self.version, self.stream, self.is_verified = tensor._version, stream_of(tensor), False

    def is_current(self):
        return self.tensor._version == self.version and self.stream == stream_of(self.tensor)


class BackwardPass:
    """Recomputes values, each once for all that ask for it, and releases each after the last has asked.

    What is left is released when the pass ends: one that went through a part of the graph, or that ended with
    an exception, leaves no tensor behind, and no count that would be wrong in the next pass. Autograd holds
    this object, by the callback for the end of the pass; nothing else does.
    """

    __slots__ = ("__weakref__", "_comparisons", "_is_running", "_recomputed", "_spare", "lock")

    def __init__(self, is_running):
        self._is_running = is_running
        self._recomputed = {}  # SavedValue -> Recomputed
        self._spare = Pile()
        self._comparisons = []  # on a GPU: (whether it found a difference, the error to raise)
        # One pass may run in several threads, one for each device: what one of them overwrites because it is
        # needed no more must not be read by another. A thread may come here again from within.
        self.lock = threading.RLock()

    def tensor_of(self, value, fresh):
        """The tensor of a value: the saved one, or recomputed.

        fresh: what was recomputed on the way to the value that autograd asks for.

        Raises:
            RuntimeError: a saved tensor has been changed in place since.
        """
        tensor = value.tensor
        if tensor is not None:
            if version_of(tensor) != value.version:
                raise changed(tensor, value.version, RECOMPUTE_HINT)
            return tensor
        if value in fresh:
            return fresh[value].tensor
        shared = self._recomputed.get(value)
        if shared is not None and shared.is_current():
            return shared.tensor
        found = self._in_one_pass(value, fresh) or self._by_recipe(value, fresh)
        tensor, is_own, sources = found
        laid_out = value.recipe.laid_out(tensor)
        is_own = is_own or laid_out is not tensor
        references = value.references if shared is None else shared.references
        fresh[value] = self._recomputed[value] = Recomputed(laid_out, is_own, references)
        for source in sources:
            self.release(source)
        return laid_out

    def _in_one_pass(self, value, fresh):
        """The tensor by the kernel of a chain of recipes, whether it is its own, and its sources; or None."""

        def is_needed_once(source):
            there = source.tensor is not None or source in fresh or source in self._recomputed
            return not there and source.recipes == 1 and not source.saves

        found = chain_of(value, is_needed_once)
        if found is None:
            return None
        link, sources = found
        tensors = [self.tensor_of(source, fresh) for source in sources]
        tensor = chains.run(link, tensors, self._spare_like)
        return None if tensor is None else (tensor, True, sources)

    def _by_recipe(self, value, fresh):
        recipe = value.recipe
        tensors = [self.tensor_of(source, fresh) for source in recipe.sources]
        first = recipe.sources[0]
        if recipe.in_place is not None and _is_scratch(first, fresh):
            del fresh[first]
            return recipe.in_place(*tensors), True, recipe.sources
        if recipe.into is not None:
            shape, strides, dtype = recipe.layout
            out = self._spare.take(shape, dtype, strides, exactly=False)
            if out is not None:
                return recipe.into(out, *tensors), True, recipe.sources
        tensor = recipe.recompute(*tensors)
        for t in tensors:
            if is_alias_of(tensor, t):
                return tensor, False, recipe.sources
        return tensor, True, recipe.sources

    def release(self, value):
        """One has been served; after the last the recomputed tensor is no longer shared."""
        shared = self._recomputed.get(value)
        if shared is not None:
            shared.references -= 1
            if shared.references <= 0:
                del self._recomputed[value]
                if shared.is_own:
                    self._spare.add(shared.tensor)

    def _spare_like(self, t):
        """A tensor like ``t``, in memory that was recomputed into and is needed no more, or in new memory."""
        found = self._spare.take(t.shape, t.dtype, t.stride(), exactly=False)
        return torch.empty_like(t) if found is None else found

    def spare_rows(self, t):
        """The same of a gradient, which may be kept: in no more memory than it takes; None: there is none."""
        return self._spare.take(t.shape, t.dtype, (), exactly=True)

    def to_verify(self, value):
        """What was recomputed for the value, if it has not been compared with a fingerprint."""
        shared = self._recomputed.get(value)
        return None if shared is None or shared.is_verified else shared

    def compare(self, now, before, dtype, error):
        """Raise ``error()`` unless two fingerprints are equal; on a GPU when the pass ends.

        There a comparison would wait for all that is queued. By then gradients may have been accumulated, but
        no call returns with them.
        """
        found = differ(now, before, dtype)
        if isinstance(found, torch.Tensor) and self._is_running:
            self._comparisons.append((found, error))
        elif found:
            raise error()

    def end(self):
        """Release everything, and look at the comparisons that a GPU has made."""
        self._recomputed.clear()
        self._spare.clear()
        comparisons, self._comparisons = self._comparisons, []
        for differs, error in comparisons:
            if differs.item():
                raise error()


def current_pass():
    """The BackwardPass that this thread runs. Outside of backward, where the user looks at what a node of the
    graph has saved, a new one.
    """
    task = graph_task()
    if task < 0:
        return BackwardPass(is_running=False)
    reference = _passes.get(task)
    found = None if reference is None else reference()
    return _open_pass(task) if found is None else found


def spare_like(t):
    """Memory for a gradient like ``t``, by rows: what the running pass has recomputed into and needs no more,
    or new memory.
    """
    reference = _passes.get(graph_task())
    found = None if reference is None else reference()
    spare = None
    if found is not None:
        with found.lock:
            spare = found.spare_rows(t)
    return t.new_empty(t.shape) if spare is None else spare


def _open_pass(task):
    with _opening:
        for other, reference in [*_passes.items()]:
            found = reference()
            if other == task and found is not None:  # another thread of the same pass has opened it
                return found
            if found is None:
                del _passes[other]
        found = BackwardPass(is_running=True)
        after_backward(found.end)
        _passes[task] = weakref.ref(found)
        return found


def _is_scratch(value, fresh):
    """Whether the value was recomputed for one recipe alone, in memory of its own: that may be overwritten."""
    return value in fresh and fresh[value].is_own and value.recipes == 1 and not value.saves
