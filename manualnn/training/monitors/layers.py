"""What one training step does to each layer, seen by hooks that are there for that step alone.

A layer is what the page calls one: a matrix product or convolution with its weight W[l], its output z[l], and
a[l], the output of the activation behind it. Between two watched steps nothing is attached: `nn.MLP` runs as
one node, and a converted model watches its own forward pass undisturbed.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.utils import parametrize

from manualnn._torch import Convolutions, graph_task, without_torch_function
from manualnn.autograd.activation import Activation
from manualnn.ops.catalogue import activations

# A unit is judged by what it did for so many watched examples: a batch of 10 says little about it.
WINDOW = 512
# Saturated is a unit that is flat for so large a part of them: a trained sigmoid is flat on each side for
# some examples, and that is no fault.
MOSTLY = 0.95
# Weights are compared on at most so many of their entries, evenly spread: a copy of all would double the
# memory of a large model.
ENTRIES = 2**16
# Histograms are drawn from at most so many entries.
SAMPLE = 2**12

_ACTIVATIONS = tuple(getattr(torch.nn, op.twin.module) for op in activations())
_CAN_DIE = (torch.nn.ReLU, torch.nn.ReLU6, torch.nn.Threshold, torch.nn.Hardsigmoid)


@dataclass
class LayerSignals:
    """A layer in one step; None is what it does not have: a frozen layer no dW, a ReLU no saturation.

    dz_norm: |dL/dz|, over the batch. dz_spread: root of the mean of its squares.
    dW_norm: |dL/dW|, before the gradients are clipped.
    update: log10 of |W after the optimiser's step - W before| / |W before|.
    a_mean, a_spread: mean and standard deviation of a.
    dead: share of the units whose a was 0 for the last WINDOW watched examples.
    saturated: share of the units on the flat ends of their activation (g' below a twentieth of its
        largest) for 95 % of the last WINDOW watched examples.
    """

    dz_norm: float | None = None
    dz_spread: float | None = None
    dW_norm: float | None = None
    update: float | None = None
    a_mean: float | None = None
    a_spread: float | None = None
    dead: float | None = None
    saturated: float | None = None


@dataclass
class Units:
    """What the units of a layer did since the window began: largest |a|, and for how many examples flat."""

    examples: int = 0
    peak: Tensor | None = None
    flat: Tensor | None = None
    dead: float | None = None
    saturated: float | None = None

    def see(self, peak: Tensor, flat: Tensor | None, examples: int) -> None:
        if self.peak is None or self.peak.shape != peak.shape or self.peak.device != peak.device:
            self.examples, self.peak, self.flat = 0, peak, flat
        else:
            self.peak = torch.maximum(self.peak, peak)
            self.flat = None if flat is None else self.flat + flat
        self.examples += examples

    def close(self, dies: bool, saturates: bool) -> None:
        """Ends the window, if it is full, and keeps its two shares."""
        if self.examples < WINDOW:
            return
        if dies:
            self.dead = (self.peak == 0).float().mean().item()
        if saturates:
            self.saturated = (self.flat >= MOSTLY * self.examples).float().mean().item()
        self.examples, self.peak, self.flat = 0, None, None


@dataclass(eq=False)
class MonitoredLayer:
    """A module with a weight of two dimensions or more, and what is known about it."""

    path: str
    module: torch.nn.Module
    weight: torch.nn.Parameter
    activation: torch.nn.Module | None = None  # the one that ran behind it, seen in the first step
    units: Units = field(default_factory=Units)
    calls: list = field(default_factory=list)  # (mean, standard deviation, count) of a
    errors: list = field(default_factory=list)  # (norm, count) of dz
    before: tuple | None = None  # (dW norm or None, entries of W)
    samples: dict = field(default_factory=dict)  # for histograms: "a" and "dz"

    @property
    def unit_dim(self) -> int:
        return 1 if isinstance(self.module, Convolutions) else -1

    def sampled_weight(self) -> Tensor:
        return _entries(self.weight, SAMPLE)


def layers_of(network: torch.nn.Module) -> list[MonitoredLayer]:
    """In the order in which they were registered; of a shared module, one."""
    inner = {
        id(part)
        for module in network.modules()
        if parametrize.is_parametrized(module)
        for part in module.parametrizations.modules()
    }
    found = []
    for path, module in network.named_modules():
        own = [p for p in module._parameters.values() if p is not None]
        if parametrize.is_parametrized(module):
            own += module.parametrizations.parameters()
        matrices = [p for p in own if p.ndim >= 2]
        if matrices and id(module) not in inner:
            found.append(MonitoredLayer(path, module, max(matrices, key=lambda p: p.numel())))
    return found


def labels_of(layers: list[MonitoredLayer]) -> list[str]:
    """01_conv1, 02_conv2, ...: they sort by depth. A name that is only a number gives way to the class."""
    width = max(2, len(str(len(layers))))
    parts = [layer.path.split(".") for layer in layers]
    shared = 0
    while all(len(part) > shared + 1 for part in parts) and len({p[shared] for p in parts}) == 1:
        shared += 1
    labels = []
    for number, (layer, part) in enumerate(zip(layers, parts, strict=True), 1):
        name = ".".join(part[shared:])
        if not name or name.isdigit():
            name = type(layer.module).__name__
        labels.append(f"{number:0{width}d}_{name}")
    return labels


class LayerHooks:
    """The layers of a network, and the hooks of a step that is watched.

    `begin()` before the forward pass, `before_update()` when the gradients are there, `end()` after the
    optimiser's step; forward and backward may run several times between them.
    """

    def __init__(self, network: torch.nn.Module):
        self.layers = layers_of(network)
        self._activations = [m for m in network.modules() if _is_activation(m)]
        # What is compiled is one kernel: hooks inside it would compile it anew.
        self._closed = any(_is_compiled(module) for module in network.modules())
        # Without an activation that is a module, a[l] is what the next product reads.
        self._called_as_functions = not self._activations
        self._handles: list = []
        self._order: list[MonitoredLayer] = []  # as they were called, each once
        self._ordered = False
        self.labels = labels_of(self.layers)
        self._current: MonitoredLayer | None = None
        self._seen = False  # whether the current layer's activation has run

    def begin(self) -> None:
        self._current, self._order = None, []
        for layer in self.layers:
            layer.calls, layer.errors, layer.before = [], [], None
        if self._closed:
            return
        for layer in self.layers:
            hook = _outside_backward(self._product, layer)
            self._handles.append(layer.module.register_forward_hook(hook))
        for module in self._activations:
            hook = _outside_backward(self._activation, module)
            self._handles.append(module.register_forward_hook(hook))

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def before_update(self) -> None:
        with torch.no_grad():
            for layer in self.layers:
                W, dW = layer.weight, layer.weight.grad
                if dW is not None and dW.is_sparse:
                    dW = dW.coalesce().values()
                layer.before = (None if dW is None else _norm(dW), _entries(W, ENTRIES).clone())

    def end(self, scale: float = 1.0) -> list[LayerSignals]:
        """The signals of each layer; `scale` is what the loss was multiplied by (float16's scaling)."""
        self.remove()
        if self._order and not self._ordered:
            self.layers, self._ordered = self._order, True
            self.labels = labels_of(self.layers)
        with torch.no_grad():
            return self._read(scale)

    # Hooks.

    def _product(self, layer: MonitoredLayer, args, output) -> None:
        if self._called_as_functions and self._current is not None and args:
            self._measure(self._current, args[0])
        self._current, self._seen = layer, False
        if layer not in self._order:
            self._order.append(layer)
        z = _first_tensor(output)
        if z is None:
            return
        if layer.activation is None and not self._called_as_functions:
            self._measure(layer, z)
        if z.requires_grad:
            z.register_hook(lambda dz: self._note_error(layer, dz))

    def _activation(self, module: torch.nn.Module, args, output) -> None:
        layer = self._current
        if layer is None or self._seen:
            return
        self._seen = True
        if layer.activation is None:
            layer.activation, layer.calls = module, layer.calls[:-1]
        self._measure(layer, output)

    def _note_error(self, layer: MonitoredLayer, dz: Tensor) -> None:
        if dz.is_floating_point():
            dz = dz.detach()
            layer.errors.append((_norm(dz), dz.numel()))
            layer.samples["dz"] = _entries(dz, SAMPLE).clone()

    def _measure(self, layer: MonitoredLayer, a: Tensor) -> None:
        if not isinstance(a, Tensor) or not a.is_floating_point() or not a.numel():
            return
        a = a.detach()
        wide = a if a.dtype in (torch.float32, torch.float64) else a.float()
        # var_mean, and below the norm of order infinity, would take ten times as long on a CPU.
        layer.calls.append((wide.mean(), wide.std(correction=0), a.numel()))
        layer.samples["a"] = _entries(a, SAMPLE).clone()
        ends = flat_ends(layer.activation)
        if a.ndim < 2 or not (ends or self._can_die(layer)):
            return
        unit = layer.unit_dim % a.ndim
        others = [d for d in range(a.ndim) if d != unit]
        peak, flat = torch.maximum(a.amax(others), -a.amin(others)), None
        if ends:
            low, high = ends
            flat = ((a <= low) | (a >= high)).float().mean(others) * len(a)
        layer.units.see(peak, flat, len(a))

    def _can_die(self, layer: MonitoredLayer) -> bool:
        if self._called_as_functions:
            return layer is not self.layers[-1]
        return isinstance(layer.activation, _CAN_DIE)

    # Reading.

    def _read(self, scale: float) -> list[LayerSignals]:
        book: list[Tensor] = []  # read once: on an accelerator each number read is a wait

        def later(t: Tensor) -> Callable[[], float]:
            place = len(book)
            book.append(t)
            return lambda: numbers[place]

        asked = []
        for layer in self.layers:
            calls = [(later(mean), later(spread), n) for mean, spread, n in layer.calls]
            errors = [(later(norm), n) for norm, n in layer.errors]
            dW = ratio = None
            if layer.before is not None:
                norm, W = layer.before
                if norm is not None:
                    dW = later(norm)
                    change = _entries(layer.weight, ENTRIES) - W
                    ratio = later(_norm(change)), later(_norm(W))
            asked.append((layer, calls, errors, dW, ratio))
            layer.calls, layer.errors, layer.before = [], [], None
        numbers = torch.stack([t.to(book[0].device) for t in book]).tolist() if book else []
        return [self._signals(*one, scale) for one in asked]

    def _signals(self, layer, calls, errors, dW, ratio, scale) -> LayerSignals:
        signals = LayerSignals()
        if calls:
            count = sum(n for *_, n in calls)
            mean = sum(m() * n for m, _, n in calls) / count
            square = sum((s() ** 2 + (m() - mean) ** 2) * n for m, s, n in calls) / count
            signals.a_mean, signals.a_spread = mean, math.sqrt(square)
        if errors:
            signals.dz_norm = math.hypot(*(norm() for norm, _ in errors)) / scale
            signals.dz_spread = signals.dz_norm / math.sqrt(max(1, sum(n for _, n in errors)))
        if dW is not None:
            signals.dW_norm = dW()
        if ratio is not None:
            change, size = ratio[0](), ratio[1]()
            if change > 0 and size > 0:
                signals.update = math.log10(change / size)
        layer.units.close(self._can_die(layer), flat_ends(layer.activation) is not None)
        signals.dead, signals.saturated = layer.units.dead, layer.units.saturated
        return signals

    # A continued run goes on in the same window.

    def state_dict(self) -> dict:
        return {layer.path: vars(layer.units).copy() for layer in self.layers}

    def load_state_dict(self, state: dict) -> None:
        for layer in self.layers:
            if layer.path in state:
                layer.units = Units(**state[layer.path])

    # Or within a step that is gathered over several batches.

    def gathered(self) -> dict:
        """What `begin` clears, of each layer."""
        return {layer.path: [layer.calls, layer.errors] for layer in self.layers}

    def go_on(self, gathered: dict) -> None:
        """`begin`, in the middle of a watched step."""
        self.begin()
        for layer in self.layers:
            layer.calls, layer.errors = map(list, gathered[layer.path])


def flat_ends(activation: torch.nn.Module | None) -> tuple[float, float] | None:
    """(low, high): at and beyond these outputs g' is below a twentieth of its largest value."""
    if isinstance(activation, torch.nn.Sigmoid):
        return 0.0127, 0.9873  # a (1 - a) = 0.25 / 20
    if isinstance(activation, torch.nn.Tanh):
        return -0.9747, 0.9747  # 1 - a^2 = 1 / 20
    if isinstance(activation, torch.nn.Softsign):
        return -0.7764, 0.7764  # (1 - |a|)^2 = 1 / 20
    if isinstance(activation, torch.nn.ReLU6):
        return -math.inf, 6.0  # its lower end is death
    if isinstance(activation, torch.nn.Hardtanh):
        return activation.min_val, activation.max_val
    if isinstance(activation, torch.nn.Hardsigmoid):
        return 0.0, 1.0
    return None


def _is_activation(module: torch.nn.Module) -> bool:
    own = getattr(type(module), "activation", None)
    return isinstance(module, _ACTIVATIONS) or (
        isinstance(own, type) and issubclass(own, Activation)
    )


def _is_compiled(module: torch.nn.Module) -> bool:
    return isinstance(module, torch.jit.ScriptModule) or hasattr(module, "_orig_mod")


def _outside_backward(note, whom):
    """A forward hook, without effect where a checkpoint runs the layer again inside backward."""

    def hook(module, args, output):
        if graph_task() == -1:
            # What is computed here is none of the model's calls, and no one's gradient.
            with torch.no_grad(), without_torch_function():
                note(whom, args, output)

    return hook


def _first_tensor(output) -> Tensor | None:
    if isinstance(output, (tuple, list)):
        output = output[0] if output else None
    return output if isinstance(output, Tensor) else None


def _norm(t: Tensor) -> Tensor:
    return torch.linalg.vector_norm(t, dtype=torch.promote_types(t.dtype, torch.float32))


def _entries(t: Tensor, most: int) -> Tensor:
    """At most about `most` entries, evenly spread, as a vector: a view where that is possible."""
    flat = t.detach().flatten()
    step = -(-flat.numel() // most)
    if step <= 1:
        return flat
    # A step that shares a factor with the row would see some columns only.
    while math.gcd(step, t.shape[-1]) > 1:
        step += 1
    return flat[::step]
