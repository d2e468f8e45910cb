"""What is really retained: the storages that are alive, seen from outside of autograd.

Nothing here knows how a layer saves what it saves. Every storage that an op makes is noted, weakly; what is
alive after the forward pass, when only the loss is referenced, is retained for backward.
"""

import contextlib
import gc
from dataclasses import dataclass

import torch
from torch.multiprocessing.reductions import StorageWeakRef

from manualnn._torch import TorchDispatchMode, tree_iter, tree_map

RANDOM = ("bernoulli", "native_dropout", "rand")
COPYING = ("_to_copy", "clone", "copy_")


class Made:
    """A storage that was made: how large, at which call of which op, in which layer.

    of_parameter   whether it is a copy, or a cast, of a parameter
    random         whether random numbers were written to it
    """

    __slots__ = ("alive", "layer", "nbytes", "of_parameter", "op", "random")

    def __init__(self, storage, op, layer):
        self.alive, self.nbytes = StorageWeakRef(storage), storage.nbytes()
        self.op, self.layer = op, layer
        self.of_parameter = self.random = False


class Live(TorchDispatchMode):
    """While it is entered, notes each new storage; ``now()`` sums those that are alive.

    uncounted: tensors whose storages are not counted: parameters, buffers, the model's inputs.
    layer: if given, called without arguments for the name of the layer that is running.

    ``peak`` is the largest sum so far. What an op takes and gives back inside itself (a workspace) is not seen.
    Once ``backward`` is true, a new tensor in a parameter's shape is a gradient, and not counted.
    """

    only_looks_on = True  # so that a converted model saves under it what it saves without

    def __init__(self, uncounted=(), layer=None):
        super().__init__()
        self.backward = False
        self._gradients = {sizes(t) for t in uncounted if isinstance(t, torch.nn.Parameter)}
        self._uncounted = {storage_of(t)._cdata for t in uncounted}
        self._made = {}
        self._layer = layer or (lambda: "")
        self._bound = self.peak = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        name = func._schema.name.partition("::")[2]
        for t in tree_iter(out):
            if isinstance(t, torch.Tensor) and has_storage(t):
                self._note(t, name, args)
        if self._bound > self.peak:  # else no sum can be larger than one that has been seen
            self.peak = max(self.peak, self.now())
        return out

    def _note(self, t, name, args):
        storage = storage_of(t)
        key = storage._cdata
        if key in self._uncounted:
            return
        made = self._made.get(key)
        if made is None or made.alive.expired():
            if self.backward and sizes(t) in self._gradients:
                return
            made = self._made[key] = Made(storage, name, self._layer())
            self._bound += made.nbytes
            first = args[0] if args else None
            if name in COPYING and isinstance(first, torch.Tensor) and has_storage(first):
                made.of_parameter = storage_of(first)._cdata in self._uncounted
        elif made.nbytes != storage.nbytes():
            self._bound += max(0, storage.nbytes() - made.nbytes)
            made.nbytes = storage.nbytes()
        made.random = made.random or name.startswith(RANDOM)

    def now(self):
        """Bytes of the storages that are alive."""
        self._made = {key: made for key, made in self._made.items() if not made.alive.expired()}
        self._bound = sum(made.nbytes for made in self._made.values())
        return self._bound

    def of(self, t):
        """The Made of a tensor's storage, or None if it was not made while this was entered."""
        made = self._made.get(storage_of(t)._cdata)
        return None if made is None or made.alive.expired() else made

    def counts(self, t):
        return storage_of(t)._cdata not in self._uncounted


@dataclass(frozen=True)
class Step:
    """What a training step was seen to retain, in bytes.

    retained: between forward and backward. peak: at most, without parameters and, but on CUDA, their gradients.
    """

    retained: int
    peak: int


def measure(model, *inputs, autocast=None, live=None, around=None, between=None):
    """Runs forward, ``total`` and backward once, as they are: gradients are added, statistics move.

    Args:
        model: a module, its gradients None.
        inputs: what it is called with.
        autocast: None, or the dtype of an autocast region around the forward pass.
        live: the Live to measure with; by default one that leaves out parameters, buffers and inputs.
        around: a context for the forward pass.
        between: called with the loss between forward and backward.

    Returns:
        Step: on CUDA by the allocator, whose blocks are a multiple of 512 bytes; elsewhere by storages.
    """
    live = live or Live(given(model, inputs))
    device = next((t.device for t in given(model, inputs)), torch.device("cpu"))
    with counting(live, device) as (now, peak):
        with region(device, autocast), around or contextlib.nullcontext():
            loss = total(model(*inputs))
        torch.clear_autocast_cache()  # inside a region of the caller's it would live on
        gc.collect()
        retained = now() - loss.untyped_storage().nbytes() if loss.requires_grad else 0
        if between is not None:
            between(loss)
        if loss.requires_grad:
            live.backward = True
            loss.backward()
        return Step(retained, max(retained, peak()))


def retained(model, *inputs, autocast=None):
    """Bytes retained between forward and backward, beside parameters, buffers and inputs."""
    return measure(model, *inputs, autocast=autocast).retained


@contextlib.contextmanager
def counting(live, device):
    """Two functions: bytes alive now, and the most that were alive."""
    if device.type != "cuda":
        with live:
            yield live.now, lambda: live.peak
        return
    cuda = torch.cuda
    cuda.synchronize(device)
    cuda.reset_peak_memory_stats(device)
    before = cuda.memory_allocated(device)
    with live:
        yield (
            lambda: cuda.memory_allocated(device) - before,
            lambda: cuda.max_memory_allocated(device) - before,
        )


def region(device, autocast):
    if autocast is None:
        return contextlib.nullcontext()
    return torch.autocast(device.type, autocast)


def given(model, inputs):
    """The tensors that are there before and after: parameters, buffers, inputs."""
    tensors = [*model.parameters(), *model.buffers(), *tree_iter(inputs)]
    return [t for t in tensors if isinstance(t, torch.Tensor) and has_storage(t)]


def total(output):
    """Σ of all that a model returns, which saves nothing itself: a loss."""
    found = [t for t in tree_iter(output) if isinstance(t, torch.Tensor) and t.requires_grad]
    if not found:
        return torch.zeros(())
    return sum(t.abs().sum() if t.is_complex() else t.sum() for t in found)


def copies(inputs):
    """The inputs once more, so that a model that writes on its input does not write on the caller's."""

    def copy(t):
        if not isinstance(t, torch.Tensor):
            return t
        return t.detach().clone().requires_grad_(t.requires_grad)

    return tree_map(copy, inputs)


def sizes(t):
    """Of a tensor, in order: a gradient may still be transposed when it is made."""
    return tuple(sorted(t.shape))


def has_storage(t):
    return t.layout == torch.strided and t.device.type != "meta"


def storage_of(t):
    return t.untyped_storage()
