"""A network of fully connected layers in the notation of the page: layers 1 to L, a[l-1] -> z[l] -> a[l].

On the page examples are columns: A[l] is (n[l], m), and dW, db hold the average over the m examples. In
memory they are rows, and a mean-reduced loss has put the 1/m into the gradient that it sends back already.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

from manualnn.autograd.activation import Activation
from manualnn.autograd.faces import options_of
from manualnn.ops.activations import LogSoftmax, PReLU, RReLU, Softmax
from manualnn.ops.dropouts import AlphaDropout, Dropout
from manualnn.ops.fully_connected import Linear
from manualnn.ops.network import Network
from manualnn.tools.explanations.formulas import G, g_of
from manualnn.tools.old_names import renamed

_ACTIVATIONS = (PReLU, RReLU, Softmax, LogSoftmax)


class Needs(NamedTuple):
    """Which derivatives of a layer some gradient asks for: by W, b, what g learns, a[l-1]."""

    W: bool = True
    b: bool = True
    g: bool = True
    a_prev: bool = True


@dataclass
class Layer:
    """Layer l of the page.

    l: its number; name: path of its weight's module; n_prev, n: n[l-1], n[l]; m: examples; W, b: paths of
    the parameters, b None without a bias; g: its activation, None for the identity; learned: {path: shape}
    of what g learns; dropout: p, 0 without; alpha: whether that is AlphaDropout; last: whether l is L;
    needs: its Needs; ops: of the trace; saved: a SavedTensor each.
    """

    l: int
    name: str
    n_prev: int
    n: int
    m: int
    W: str
    b: str | None
    g: G | None = None
    learned: dict = field(default_factory=dict)
    dropout: float = 0.0
    alpha: bool = False
    last: bool = False
    needs: Needs = Needs()
    ops: list = field(default_factory=list)
    saved: list = field(default_factory=list)

    kept = renamed("kept", "saved")

    @property
    def symbols(self):
        """How the page calls them: of one example in small letters, of m side by side in capitals."""
        z, a, r = "zar" if self.m == 1 else "ZAR"
        l = self.l
        return {
            "z": f"{z}[{l}]",
            "a": f"{a}[{l}]",
            "a_prev": f"{a}[{l - 1}]",
            "r": f"{r}[{l}]",
            "W": f"W[{l}]",
            "b": f"b[{l}]",
        }

    @property
    def reached(self):
        """Whether backward comes here at all: something in this layer or before it needs a gradient."""
        return any(self.needs)

    @property
    def flops(self):
        """(forward, backward) of the matrix products: 2 n[l] n[l-1] m each, one forward, two backward."""
        product = 2 * self.n * self.n_prev * self.m
        return product, product * (self.needs.W + self.needs.a_prev)

    def forward(self):
        """[(equation, a remark or "")] from A[l-1] to A[l]."""
        s = self.symbols
        message = [(f"{s['z']} = {s['W']} {s['a_prev']}" + (f" + {s['b']}" if self.b else ""), "")]
        if self.g is not None:
            message.append((f"{s['a']} = g({s['z']})" + self._dropped(), self._mask()))
        elif self.dropout:
            message.append((f"{s['a']} = {s['z']}" + self._dropped(), self._mask()))
        elif self.last:
            message.append((f"{s['a']} = {s['z']}", "no activation: the loss takes the scores"))
        else:
            message.append((f"{s['a']} = {s['z']}", "no activation"))
        return message

    def _dropped(self):
        if self.alpha:
            return f" ∗ {self.symbols['r']} + s" if self.dropout else ""
        return f" ∗ {self.symbols['r']}" if self.dropout else ""

    def _mask(self):
        if not self.dropout:
            return ""
        r, p = self.symbols["r"], self.dropout
        if self.alpha:
            return f"{r}, s: alpha dropout, p = {p:g}"
        return f"{r} = mask / (1 − {p:g}), 1 with probability {1 - p:g} in the mask"

    def backward(self):
        """[(equation, a remark or "")] from dA[l] to dA[l-1]."""
        s = self.symbols
        z, a_prev, W, b = s["z"], s["a_prev"], s["W"], s["b"]
        mask = f" ∗ {s['r']}" if self.dropout else ""
        from_loss = f"d{s['a']} is dL/d{s['a']}, from the loss" if self.last else ""
        if self.g is None:
            if self.last and not self.dropout:
                from_loss = f"from the loss: of cross-entropy, softmax({z}) − Y"
            message = [(f"d{z} = d{s['a']}{mask}", from_loss)]
        elif self.g.elementwise or self.g.cls in (PReLU, RReLU):
            message = [(f"d{z} = d{s['a']}{mask} ∗ g′({z})", from_loss)]
        else:
            message = [(f"d{z}: {self.g.slope}", from_loss)]
        mean = "" if self.m == 1 else "1/m "
        for name, slope in (self.g.learned if self.g else {}).items():
            remark = f"∂a/∂{name} = {slope}" if self.needs.g else f"left out: {name} is frozen"
            message.append((f"d{name} = {mean}Σ d{s['a']}{mask} ∗ ∂a/∂{name}", remark))
        if not self.reached:
            message = [(equation, "left out: all is frozen up to here") for equation, _ in message]
        remark = "" if self.needs.W else "left out: W is frozen"
        message.append((f"d{W} = {mean}d{z} {a_prev}ᵀ", remark))
        if self.b:
            right = f"d{z}" if self.m == 1 else f"1/m Σ d{z}"
            remark = "" if self.m == 1 else "over the columns"
            message.append((f"d{b} = {right}", remark if self.needs.b else "left out: b is frozen"))
        why = "left out: nothing before it needs a gradient"
        message.append((f"d{a_prev} = {W}ᵀ d{z}", "" if self.needs.a_prev else why))
        return message

    def matrices(self):
        """{symbol: shape}, as on the page, each derivative behind what it is a derivative by."""
        s, found = self.symbols, {}
        wide = {s["W"]: (self.n, self.n_prev)}
        if self.b:
            wide[s["b"]] = (self.n, 1)
        wide[s["a_prev"]] = (self.n_prev, self.m)
        wide |= {s["z"]: (self.n, self.m), s["a"]: (self.n, self.m)}
        if self.dropout:
            wide[s["r"]] = (self.n, self.m)
        for name, shape in wide.items():
            found[name] = shape
            if name != s["r"]:
                found[f"d{name}"] = shape
        return found


def layers_of(ops, model, inputs, dtype):
    """The network's layers 1 to L; or None, where it is not such a network.

    ops: of its trace; model: the one that was traced; inputs: what it was called with; dtype: of z.
    """
    row, made = straight(ops), []
    if row is None or not all(_take(op, made, dtype) for op in row):
        return None
    if not made:
        return None
    made[-1].last = True
    _mark_needs(made, model, inputs)
    return made


def straight(ops):
    """The ops that compute something, if each takes what the one before it gave; else None."""
    row, before = [op for op in ops if op.listed], None
    for op in row:
        made = {id(one): one for one in map(behind, op.inputs) if one is not None}
        if set(made) != ({id(before)} if before else set()):
            return None
        before = op
    return row


def behind(op):
    """The op itself, or what made the tensor that it only looks at; None for the model's input."""
    while op is not None and not op.listed:
        op = op.inputs[0] if op.inputs else None
    return op


def _take(op, made, dtype):
    """Adds an op to the layers; False where it does not belong into such a network."""
    if op.cls is Linear:
        W, b = _weight_and_bias(op.parameters)
        if W is None or len(op.shape) < 2:
            return False
        made.append(_layer(len(made) + 1, W, b, op.parameters[W], op.shape))
    elif op.cls is Network:
        return _take_network(op, made, dtype)
    elif not made:
        return False
    elif _is_activation(op.cls):
        if made[-1].g is not None or made[-1].dropout or op.shape != made[-1].ops[-1].shape:
            return False
        if op.cls in (Softmax, LogSoftmax):
            if op.node.options[0] not in (-1, len(op.shape) - 1):
                return False  # over the examples
        # Of one that learns: None where the parameter stands.
        options = tuple(op.node.options) if issubclass(op.cls, Activation) else ()
        made[-1].g, made[-1].learned = g_of(op.cls, options, dtype), dict(op.parameters)
    elif op.cls in (Dropout, AlphaDropout):
        options = options_of(op.node)
        if made[-1].dropout or options["shape"] != op.shape:
            return False
        made[-1].dropout, made[-1].alpha = options["p"], op.cls is AlphaDropout
    else:
        return False
    made[-1].ops.append(op)
    return True


def _is_activation(cls):
    return cls is not None and (issubclass(cls, Activation) or cls in _ACTIVATIONS)


def _layer(l, W, b, shape, z_shape):
    n, n_prev = shape
    m = 1
    for size in z_shape[:-1]:
        m *= size
    return Layer(l, W.rpartition(".")[0], n_prev, n, m, W, b)


def _weight_and_bias(parameters):
    W = [path for path, shape in parameters.items() if len(shape) == 2]
    b = [path for path, shape in parameters.items() if len(shape) == 1]
    if len(W) != 1 or len(b) > 1 or len(parameters) != len(W) + len(b):
        return None, None
    return W[0], (b or [None])[0]


def _take_network(op, made, dtype):
    """The layers of the single node: its parameters are W[1], b[1], ..., W[L], b[L] in this order."""
    if len(op.shape) < 2:
        return False
    before, paths = len(made), list(op.parameters)
    for path in paths:
        if len(op.parameters[path]) == 2:
            shape = op.parameters[path]
            made.append(_layer(len(made) + 1, path, None, shape, op.shape))
        else:
            made[-1].b = path
    between = op.node.options[0]
    for layer in made[before:]:
        layer.ops.append(op)
        if layer is not made[-1]:
            layer.g, layer.dropout = g_of(between.g, between.options, dtype), between.p
    return True


def _mark_needs(made, model, inputs):
    """Which gradients are asked for: as the model's and the inputs' flags say."""
    flags = {n: p.requires_grad for n, p in model.named_parameters(remove_duplicate=False)}
    below = any(getattr(t, "requires_grad", False) for t in inputs)
    for layer in made:
        W, b = flags[layer.W], layer.b is not None and flags[layer.b]
        g = any(flags[path] for path in layer.learned)
        layer.needs = Needs(W, b, g, below)
        below = any(layer.needs)
