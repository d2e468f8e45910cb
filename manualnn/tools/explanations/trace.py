"""One training step of a model, op by op: what ran, on which shapes, with which parameters, at what cost.

Autograd's graph says it: each op left a node, whose class is the op. A node belongs to the layer that was
running when it was made.
"""

from dataclasses import dataclass, field

import torch

from manualnn._torch import TorchDispatchMode, next_node, tree_iter
from manualnn.tools.ledgers.floor import name_of
from manualnn.tools.ledgers.live import copies, region, total
from manualnn.tools.ledgers.record import Layers

# Ops of torch's that only look at a tensor in another way, or copy it.
_LOOKS = ("view", "reshapealias", "unsafeview", "alias", "t", "transpose", "permute", "squeeze") + (
    "unsqueeze",
    "clone",
    "tocopy",
    "expand",
    "contiguous",
    "movedim",
    "flatten",
)


@dataclass(eq=False)
class Op:
    """One op of a forward pass.

    layer: path of the module that called it; module: what that module's class is called; name: of the op;
    cls: the hand-written Function, or None where it is torch's own; node: autograd's, or None;
    listed: whether it computes something; inputs: the ops that made its inputs; shapes_in, shape: of the
    tensors that came and went; parameters: {path: shape}; flops: (forward, backward).
    """

    layer: str
    module: str
    name: str
    cls: type | None = None
    node: object = None
    listed: bool = False
    inputs: list = field(default_factory=list)
    shapes_in: list = field(default_factory=list)
    shape: tuple = ()
    parameters: dict = field(default_factory=dict)
    flops: tuple = (0, 0)
    given: list = field(default_factory=list)  # shapes that the layer was called with
    key: tuple = ()


def trace(model, inputs, autocast=None):
    """(the ops of a training step of ``model`` in the order of forward, the shapes that it returns).

    The model is a copy of somebody's: its parameters' flags are changed and put back. Two steps are run
    where something is frozen: one that shows all of the graph, one that counts what backward really does.
    """
    flags = {p: p.requires_grad for p in model.parameters()}
    inputs = copies(inputs)
    if not flags:  # then there is only the input to differentiate by
        for t in tree_iter(inputs):
            if isinstance(t, torch.Tensor) and t.is_floating_point():
                t.requires_grad_()
    try:
        for p in flags:
            p.requires_grad_(p.is_floating_point() or p.is_complex())
        book = _run(model, inputs, autocast)
        if not all(flags.values()):
            for p, flag in flags.items():
                p.requires_grad_(flag)
            counted = {op.key: op for op in _run(model, inputs, autocast).ops}
            for op in book.ops:
                backward = counted[op.key].flops[1] if op.key in counted else 0
                op.flops = op.flops[0], backward
    finally:
        for p, flag in flags.items():
            p.requires_grad_(flag)
    return book.ops, book.returned


def _run(model, inputs, autocast):
    devices = {t.device.type for t in model.parameters() if t.device.type == "cuda"}
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    with torch.random.fork_rng(devices), torch.enable_grad(), torch.autocast("cpu", enabled=False):
        layers, counter = Layers(model), Counter()
        book = Book(layers, {id(p): n for n, p in model.named_parameters(remove_duplicate=False)})
        with counter, layers.watched(), region(device, autocast):
            output = model(*inputs)
        loss = total(output)
        book.claim(output, book.top)
        book.finish(output, counter)
        if loss.requires_grad:
            hooks = [op.node.register_prehook(counter.enters(op)) for op in book.with_nodes]
            with counter:
                loss.backward()
            for hook in hooks:
                hook.remove()
            book.count(counter)
    return book


class Counter(TorchDispatchMode):
    """Counts floating-point operations by node, as torch.utils.flop_counter counts them.

    Only matrix products, convolutions and attention count; a multiplication and an addition are two. Of a
    convolution's backward torch's counter forgets the groups: dx and dW each cost what forward cost.
    """

    only_looks_on = True  # so that a converted model computes under it what it computes without

    def __init__(self):
        from torch.utils.flop_counter import conv_flop_count, flop_registry  # it imports triton

        def convolution_backward(dz, x, W, *numbers, out_val=None, **named):
            _, _, _, _, transposed, _, _, (need_x, need_W, _) = numbers
            return conv_flop_count(x.shape, W.shape, dz.shape, transposed) * (need_x + need_W)

        super().__init__()
        self._counts = flop_registry | {torch.ops.aten.convolution_backward: convolution_backward}
        self.forward, self.backward, self._running = {}, {}, None

    def enters(self, op):
        def prehook(grads):
            self._running = op

        return prehook

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        count = self._counts.get(func.overloadpacket)
        if count is not None:
            flops = count(*args, **kwargs, out_val=out)
            if self._running is not None:
                key, of = id(self._running), self.backward
            else:  # the node was made just before
                key, of = next_node() - 1, self.forward
            of[key] = of.get(key, 0) + flops
        return out


class Book:
    """Gives each node of the graph to the layer that made it."""

    def __init__(self, layers, parameters):
        self.ops, self.returned = [], ()
        self._layers, self._parameters = layers, parameters
        self._seen, self._visits, self._before = {}, [], {}
        self.top = layers.running()
        layers.entered, layers.left = self._entered, self._left

    def _entered(self, module, inputs):
        self.claim(inputs, self._layers.running())
        self._visits.append((len(self.ops), inputs))

    def _left(self, module, output):
        layer = self._layers.running()
        self.claim(output, layer)
        start, inputs = self._visits.pop()
        for op in self.ops[start:]:
            op.given = op.given or shapes(inputs)
        leaf = self._layers.is_leaf(layer)
        if leaf and len(self.ops) == start and output is not None:
            op = self._add(layer, type(module).__name__)
            op.shape, op.given = next(iter(shapes(output)), ()), shapes(inputs)

    def claim(self, tensors, layer):
        """All nodes behind these tensors that nobody has claimed."""
        found, waiting = [], [t.grad_fn for t in grads(tensors)]
        while waiting:
            node = waiting.pop()
            if node is None or node in self._seen or hasattr(node, "variable"):
                continue
            self._seen[node] = None
            found.append(node)
            waiting.extend(n for n, _ in node.next_functions)
        for node in sorted(found, key=lambda node: node._sequence_nr()):
            op = self._seen[node] = self._add(layer, name_of(node))
            op.node, op.cls = node, written(node)
            op.listed = op.cls is not None or op.name.lower() not in _LOOKS

    def _add(self, layer, name):
        op = Op(layer, self._layers.type_of(layer), name)
        before = self._before.get((layer, name), 0)
        op.key, self._before[layer, name] = (layer, name, before), before + 1
        self.ops.append(op)
        return op

    @property
    def with_nodes(self):
        return [op for op in self.ops if op.node is not None]

    def finish(self, output, counter):
        self.returned = tuple(shapes(output))
        for op in self.ops:
            self._finish(op, counter)
            op.shapes_in = op.shapes_in or op.given[:1]

    def _finish(self, op, counter):
        if op.node is None:
            return
        for node, i in op.node.next_functions:
            if node is None:
                continue
            leaf = self._leaf(node)
            if leaf is not None:
                name = self._parameters.get(id(leaf))
                if name is not None:
                    op.parameters[name] = tuple(leaf.shape)
                continue
            op.inputs.append(self._seen[node])
            op.shapes_in.append(outputs_of(node)[i])
        op.shape = next(iter(outputs_of(op.node)), ())
        op.flops = counter.forward.get(op.node._sequence_nr(), 0), 0

    def _leaf(self, node):
        """The parameter, or input, that this node passes on: itself, or a cast of it; else None."""
        while not hasattr(node, "variable"):
            before = [n for n, _ in node.next_functions if n is not None]
            if self._seen[node].listed or len(before) != 1:
                return None
            (node,) = before
        return node.variable

    def count(self, counter):
        for op in self.ops:
            op.flops = op.flops[0], counter.backward.get(id(op), 0)


def grads(tensors):
    return [t for t in tree_iter(tensors) if isinstance(t, torch.Tensor) and t.requires_grad]


def shapes(tensors):
    return [tuple(t.shape) for t in tree_iter(tensors) if isinstance(t, torch.Tensor)]


def outputs_of(node):
    return [tuple(map(int, m.shape)) for m in node._input_metadata]


def written(node):
    """The hand-written Function whose node this is; None for torch's own."""
    face = getattr(type(node), "_forward_cls", None)
    return getattr(face, "op", face)
