"""One training step of a model, and what each of its layers saves in it."""

import contextlib
import weakref
from dataclasses import dataclass

import torch
from torch.autograd.graph import saved_tensors_hooks

from manualnn._torch import tree_iter
from manualnn.conversion.model import is_memory_saving, observing
from manualnn.nn import MLP
from manualnn.tools.ledgers.floor import floor, name_of
from manualnn.tools.ledgers.live import Live, given, measure, storage_of
from manualnn.tools.ledgers.words import WEIGHT, kind_of, reason
from manualnn.tools.old_names import renamed

TOP = "(the model)"


@dataclass(frozen=True)
class Entry:
    """A tensor that backward reads, in the layer that reads it.

    layer: module path; op: what reads it; kind: of which kind that is; shape, dtype: of the tensor;
    bytes: of its storage, 0 where it is not saved, or counted elsewhere; why: the reason, in words.
    """

    layer: str
    op: str
    kind: str
    shape: tuple[int, ...]
    dtype: str
    bytes: int
    why: str


@dataclass(frozen=True)
class Run:
    """What one training step saved.

    entries: in the order of the forward pass; retained, peak: as measured (live.Step); floor: bytes, None for
    a model whose graph is not torch.nn's own.
    """

    entries: list[Entry]
    retained: int
    peak: int
    floor: int | None = None

    held = renamed("held", "retained")

    @property
    def total(self) -> int:
        return sum(entry.bytes for entry in self.entries)


def record(model, inputs, autocast, with_floor=False):
    """Runs a training step of ``model``, whose gradients and statistics it changes."""
    layers = Layers(model)
    live = Live(given(model, inputs), layers.running)
    book = Book(layers, live, inputs, with_floor)
    step = measure(
        *(model, *inputs), autocast=autocast, live=live, around=book.open(), between=book.close
    )
    return Run(book.entries, step.retained, step.peak, book.floor)


class Layers:
    """Which layer of a model is running, by its path.

    ``entered(module, inputs)`` is called before a layer is the one that is running, ``left(module, output)``
    while it still is.
    """

    def __init__(self, model):
        self._names = {id(m): name or TOP for name, m in model.named_modules()}
        self._modules = {self._names[id(m)]: m for m in model.modules()}
        self._stack = []
        self.entered = self.left = lambda module, tensors: None

    def running(self):
        return self._stack[-1] if self._stack else TOP

    def is_leaf(self, name):
        return next(self._modules[name].children(), None) is None

    def type_of(self, name):
        return type(self._modules[name]).__name__

    @contextlib.contextmanager
    def watched(self):
        hooks = []

        def before(module, args, kwargs):
            # A hook on a layer of an MLP would end its being one node: only where it is none anyway.
            if isinstance(module, MLP) and module._plan(*args, **kwargs) is None:
                watch(m for m in module.modules() if m is not module and id(m) not in watching)
            self.entered(module, (args, kwargs))
            self._stack.append(self._names[id(module)])

        def after(module, args, output):
            self.left(module, output)
            self._stack.pop()

        def watch(found):
            for m in found:
                watching.add(id(m))
                hooks.append(m.register_forward_pre_hook(before, prepend=True, with_kwargs=True))
                hooks.append(m.register_forward_hook(after, prepend=True, always_call=True))

        watching = set()
        try:
            watch(module for name, module in self._modules.items() if not self._in_a_node(name))
            yield
        finally:
            for hook in hooks:
                hook.remove()
            self._stack.clear()

    def _in_a_node(self, name):
        above = [name.rpartition(".")[0] or TOP] if name != TOP else []
        return any(isinstance(self._modules.get(path), MLP) for path in above)


class Saved:
    """What autograd is given in place of a tensor: the tensor, and who reads it."""

    __slots__ = ("__weakref__", "name", "node", "tensor")

    def __init__(self, t):
        self.tensor, self.node, self.name = t.detach(), None, ""


class Book:
    """Notes all that a forward pass saves: autograd's own tensors, and those of a recorded model."""

    def __init__(self, layers, live, inputs, with_floor):
        self.entries, self.floor = [], None
        self._layers, self._live, self._with_floor = layers, live, with_floor
        self._inputs = {
            storage_of(t)._cdata for t in tree_iter(inputs) if isinstance(t, torch.Tensor)
        }
        self._notes = []  # (layer, op, Packed or SavedValue of a recorder, or weak reference to a Saved here)
        self._makers = {}  # id of a Saved -> (its tensor's node, output number)
        self._reading = None

    @contextlib.contextmanager
    def open(self):
        with contextlib.ExitStack() as stack:
            hooks = saved_tensors_hooks(self._pack, self._unpack)
            watching = []

            # A model that is watched saves by hooks of its own, and only where there are no others.
            def entered(module, inputs):
                if is_memory_saving(type(module)):
                    if not watching:
                        hooks.__exit__()
                    watching.append(module)

            def left(module, output):
                if watching and watching[-1] is module:
                    watching.pop()
                    if not watching:
                        hooks.__enter__()

            self._layers.entered, self._layers.left = entered, left
            stack.enter_context(hooks)
            stack.enter_context(self._layers.watched())
            stack.enter_context(observing(self._observe))
            yield

    def _observe(self, saved, op):
        thing = saved if saved.value is None else saved.value
        self._notes.append((self._layers.running(), op, thing))

    def _pack(self, t):
        saved = Saved(t)
        self._notes.append((self._layers.running(), "", weakref.ref(saved)))
        self._makers[id(saved)] = (t.grad_fn, t.output_nr)
        return saved

    def _unpack(self, saved):
        if self._reading is not None:
            saved.node, saved.name = self._reading
        return saved.tensor

    def close(self, loss):
        """Makes the entries, while all that is saved is there."""
        nodes = self._walk(loss) if self._makers else []
        notes = [note for note in map(self._alive, self._notes) if note is not None]
        direct = {
            storage_of(thing.tensor)._cdata for *_, thing in notes if thing.tensor is not None
        }
        counted = {}
        for layer, op, thing in notes:
            if thing.tensor is not None:
                self._enter(layer, op, thing.tensor, counted, getattr(thing, "name", ""))
                continue
            found = leaves(thing)
            # What is left of it: its fingerprint, where that is a tensor, once for all who have saved it.
            size = 0 if thing in counted else getattr(thing.fingerprint, "nbytes", 0)
            counted[thing] = layer
            self.entries.append(
                entry(layer, op, kind_of(op), thing.recipe.layout, size, self._recomputed(found))
            )
            for t in found:
                if storage_of(t)._cdata not in direct:
                    self._enter(layer, op, t, counted, recomputed=True)
        if self._with_floor:
            self.floor = floor(nodes, self._reads(notes))
        self._notes, self._makers = [], {}

    def _alive(self, note):
        layer, op, thing = note
        if isinstance(thing, weakref.ref):
            thing = thing()
            if thing is None:
                return None
            # What writes on a view in place stands inside a node that shows nothing of it.
            op = name_of(thing.node) if thing.node is not None else self._layers.type_of(layer)
        return layer, op, thing

    def _enter(self, layer, op, t, counted, name="", recomputed=False):
        key, made = storage_of(t)._cdata, self._live.of(t)
        like, size = (t.shape, t.stride(), t.dtype), storage_of(t).nbytes()
        if not self._live.counts(t):
            if key in self._inputs:
                kind, why = reason(op, t, made, name)
                self.entries.append(entry(layer, op, kind, like, 0, f"{why}: the model's input"))
            return
        if key in counted:
            if not recomputed:
                kind, why = reason(op, t, made, name)
                where = "above" if counted[key] == layer else f"at {counted[key]}"
                self.entries.append(entry(layer, op, kind, like, 0, f"{why}: counted {where}"))
            return
        counted[key] = layer
        kind, why = reason(op, t, made, name)
        if recomputed:
            why = "copy of a parameter" if kind == WEIGHT else self._origin(t)
            why += f", to recompute what {op} reads"
        elif size > t.numel() * t.element_size():
            why += ", a part of what is saved whole"
        self.entries.append(entry(layer, op, kind, like, size, why))

    def _recomputed(self, found):
        largest = max((t.numel() for t in found), default=0)
        names = [self._origin(t) for t in found if 8 * t.numel() >= largest]
        names = list(dict.fromkeys(names))
        message = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        return f"recomputed from {message}" if message else "recomputed"

    def _origin(self, t):
        if storage_of(t)._cdata in self._inputs:
            return "the model's input"
        made = self._live.of(t)
        if made is None:
            return "a parameter"
        leaf = self._layers.is_leaf(made.layer)
        return f"{made.layer}'s output" if leaf else f"{made.op.strip('_')} in {made.layer}"

    def _walk(self, loss):
        """The nodes of the graph; on the way each Saved learns who reads it, under which name."""
        seen, waiting, nodes = set(), [loss.grad_fn] if loss.requires_grad else [], []
        while waiting:
            node = waiting.pop()
            if node is None or node in seen:
                continue
            seen.add(node)
            nodes.append(node)
            waiting.extend(n for n, _ in node.next_functions)
            for attribute in dir(node):
                if attribute.startswith("_saved_") or attribute == "saved_tensors":
                    self._reading = node, attribute.removeprefix("_saved_")
                    try:
                        getattr(node, attribute)
                    except RuntimeError:
                        continue
        self._reading = None
        return nodes

    def _reads(self, notes):
        reads = []
        for *_, saved in notes:
            if isinstance(saved, Saved):
                t, (maker, at) = saved.tensor, self._makers[id(saved)]
                made = self._live.of(t)
                free = not self._live.counts(t) or (made is not None and made.of_parameter)
                random = made is not None and made.random
                size = t.numel() * t.element_size()
                reads.append((saved.node, saved.name, maker, at, size, t.numel(), random, free))
        return reads


def leaves(value):
    """The tensors from which a value is recomputed."""
    found, seen, waiting = [], set(), [value]
    while waiting:
        value = waiting.pop()
        if value in seen:
            continue
        seen.add(value)
        if value.tensor is not None:
            found.append(value.tensor)
        waiting.extend(reversed(value.sources))
    return found


def entry(layer, op, kind, like, size, why):
    shape, _, dtype = like
    return Entry(layer, op, kind, tuple(shape), str(dtype).removeprefix("torch."), size, why)
