"""A network's equations, done one after the other, and the same network under autograd."""

import torch
from torch.nn import functional as F

from manualnn.autograd.masks import dropped
from manualnn.ops.activations import LogSoftmax, PReLU, RReLU, Softmax
from manualnn.ops.dropouts import AlphaDropout
from manualnn.ops.fully_connected import Linear
from manualnn.tools.explanations.page import Layer
from manualnn.tools.explanations.worked import TOLERANCE, Step, short


class Work:
    """The equations, one after the other, on columns; autograd's network on rows, as torch has it."""

    def __init__(self, layers: list[Layer], sizes, m, X, parameters, learned):
        self.layers, self.sizes, self.m, self.X = layers, sizes, m, X
        self.W = {l.l: W for l, (W, _) in zip(layers, parameters, strict=True)}
        self.b = {l.l: b for l, (_, b) in zip(layers, parameters, strict=True)}
        self.learned, self.steps, self._part = learned, [], ""
        self.masks = {l.l: self._mask(l) for l in layers if l.dropout}
        self.slopes = {l.l: self._slopes(l) for l in layers if l.g and l.g.cls is RReLU}
        self.classes = torch.arange(m) % sizes[-1]
        self.Y = F.one_hot(self.classes, sizes[-1]).double().T

    def _mask(self, layer):
        shape = (self.sizes[layer.l], self.m)
        return torch.empty(shape, dtype=torch.float64).bernoulli_(1 - layer.dropout)

    def _slopes(self, layer):
        shape = (self.sizes[layer.l], self.m)
        return torch.empty(shape, dtype=torch.float64).uniform_(1 / 8, 1 / 3)

    def done(self):
        self.reference = self._autograd(self._linear, self._g_of_torch, self._dropped_by_torch)
        self._part = "given"
        self._given()
        self._part = "forward"
        self._forward()
        self._part = "cost"
        self._cost(self.layers[-1].symbols)
        self._backward()
        self._part = "the same by the hand-written layers"
        self._own_layers()
        return self.steps

    # What autograd says.

    def _autograd(self, linear, g, dropped):
        """{name: value} of every tensor of the network and of its derivatives; columns."""
        found, leaves = {}, {}
        x = self.X.T.clone().requires_grad_()
        A = found["A[0]"] = x
        for layer in self.layers:
            l = layer.l
            W = leaves[f"W[{l}]"] = self.W[l].clone().requires_grad_()
            b = None
            if layer.b:
                b = leaves[f"b[{l}]"] = self.b[l].flatten().clone().requires_grad_()
            values = {k: v.clone().requires_grad_() for k, v in self.learned[l].items()}
            leaves |= {f"{k}[{l}]": v for k, v in values.items()}
            Z = found[f"Z[{l}]"] = linear(A, W, b)
            A = Z if layer.g is None else g(layer, Z, values)
            A = dropped(layer, A) if layer.dropout else A
            found[f"A[{l}]"] = A
        if self._scores():
            J = F.cross_entropy(A, self.classes)
        else:
            J = 1 / (2 * self.m) * ((A - self.Y.T) ** 2).sum()
        everything = found | leaves
        grads = torch.autograd.grad(J, list(everything.values()), allow_unused=True)
        columns = {name: t.detach().T for name, t in found.items()}
        for name, grad in zip(everything, grads, strict=True):
            # Of dA and dZ the page has each example's own, autograd a mean loss's: 1/m of it.
            columns["d" + name] = grad.T * self.m if name in found else grad
        return columns | {"J": J.detach()}

    def _scores(self):
        """Whether the network gives scores, for cross-entropy; else the loss is the quadratic one."""
        last = self.layers[-1]
        return last.g is None and not last.dropout and self.sizes[-1] > 1

    @staticmethod
    def _linear(A, W, b):
        return F.linear(A, W, b)

    def _g_of_torch(self, layer, Z, values):
        cls, options = layer.g.cls, layer.g.options
        if cls is PReLU:
            return F.prelu(Z, *values.values())
        if cls is RReLU:
            return torch.where(Z > 0, Z, self.slopes[layer.l].T * Z)
        if cls in (Softmax, LogSoftmax):
            return (F.softmax if cls is Softmax else F.log_softmax)(Z, -1)
        return cls.g(Z, *(options | values).values())

    def _dropped_by_torch(self, layer, A):
        mask = self.masks[layer.l].T
        if layer.alpha:
            return AlphaDropout.masked(A, mask, layer.dropout)
        return A * mask / (1 - layer.dropout)

    # The page's equations.

    def _given(self):
        names = self.layers[0].symbols
        self._note(names["a_prev"], f"{names['a_prev']} = X", self.X)
        for layer in self.layers:
            l = layer.l
            self._note(f"W[{l}]", f"W[{l}]", self.W[l])
            if layer.b:
                self._note(f"b[{l}]", f"b[{l}]", self.b[l])
            for name, value in self.learned[l].items():
                self._note(f"{name}[{l}]", f"{name} of layer {l}", value.reshape(-1, 1))
            if layer.dropout:
                self._note(f"R[{l}]", f"{layer.symbols['r']} = {self._rule(layer)}", self._r(layer))

    def _rule(self, layer):
        return "u mask, drawn" if layer.alpha else f"mask / (1 − {layer.dropout:g}), drawn"

    def _r(self, layer):
        mask, p = self.masks[layer.l], layer.dropout
        if layer.alpha:
            zeros = torch.zeros_like(mask)
            ones = torch.ones_like(mask)
            return AlphaDropout.masked(ones, mask, p) - AlphaDropout.masked(zeros, mask, p)
        return mask / (1 - p)

    def _forward(self):
        self.A, self.Z, self.G = {0: self.X}, {}, {}
        for layer in self.layers:
            l = layer.l
            W, A_prev, b = self.W[l], self.A[l - 1], self.b[l]
            Z = W @ A_prev
            if layer.b:
                Z = Z + b
            first = first_of(
                zip(W[0], A_prev[:, 0], strict=True), b[0] if layer.b else None, Z[0, 0]
            )
            self.Z[l] = Z
            self._check(f"Z[{l}]", layer.forward()[0][0], Z, first)
            G = Z if layer.g is None else self._g(layer, Z)
            self.G[l] = G
            A = G
            if layer.dropout:
                A = G * self._r(layer)
                if layer.alpha:
                    A = A + AlphaDropout.masked(torch.zeros_like(G), self.masks[l], layer.dropout)
            self.A[l] = A
            if layer.g is not None or layer.dropout:
                worked = f"g(z) = {layer.g.a}" if layer.g else ""
                self._check(f"A[{l}]", layer.forward()[1][0], A, worked)

    def _g(self, layer, Z):
        return self._g_of_torch(layer, Z.T, self.learned[layer.l]).T

    def _cost(self, s):
        A, Y, m = self.A[len(self.layers)], self.Y, self.m
        self._note("Y", "Y: the true classes" if self._scores() else "Y: what A should be", Y)
        if self._scores():
            P = torch.exp(A - torch.logsumexp(A, 0, keepdim=True))
            self.dA = P - Y
            J = -(Y * P.log()).sum() / m
            equation = f"J = −1/m Σ log p[y],  P = softmax({s['z']}) by columns"
            self._note("P", f"P = softmax({s['z']})", P)
            self.from_loss = f"d{s['a']} = P − Y"
        else:
            self.dA = A - Y
            J = ((A - Y) ** 2).sum() / (2 * m)
            equation = f"J = 1/m Σ ½ ({s['a']} − Y)²"
            self.from_loss = f"d{s['a']} = {s['a']} − Y"
        self._check("J", equation, J.reshape(1, 1))

    def _backward(self):
        dA, m = self.dA, self.m
        self._check(f"dA[{len(self.layers)}]", self.from_loss, dA)
        for layer in reversed(self.layers):
            l, s = layer.l, layer.symbols
            self._part = f"backward, layer {l}"
            equations = {eq.partition(" ")[0].rstrip(":"): eq for eq, _ in layer.backward()}
            W, A_prev = self.W[l], self.A[l - 1]
            dG = dA * self._r(layer) if layer.dropout else dA
            dZ = dG if layer.g is None else self._times_slope(layer, dG)
            self._check(f"dZ[{l}]", equations[f"d{s['z']}"], dZ)
            self._learned_gradients(layer, dG)
            dW = 1 / m * (dZ @ A_prev.T)
            first = first_of(zip(dZ[0], A_prev[0], strict=True), None, dW[0, 0], m)
            self._check(f"dW[{l}]", equations[f"d{s['W']}"], dW, first)
            if layer.b:
                db = 1 / m * dZ.sum(1, keepdim=True)
                self._check(f"db[{l}]", equations[f"d{s['b']}"], db)
            dA = W.T @ dZ
            self._check(f"dA[{l - 1}]", equations[f"d{s['a_prev']}"], dA)

    def _times_slope(self, layer, dG):
        """dG ∗ g′(Z), of the op's own g′; of softmax, and a random or learned slope, its own backward."""
        g, Z = layer.g, self.Z[layer.l]
        if not g.elementwise:
            return self._by_function(layer, dG)[0]
        saved = self.G[layer.l] if g.from_output else Z
        formula = g.cls.g_prime_a if g.from_output else g.cls.g_prime
        values = (g.options | self.learned[layer.l]).values()
        slope = torch.as_tensor(formula(saved.T, *values)).double().expand(Z.T.shape).T
        name = f"g′({layer.symbols['z']})"
        reference = self._slope_of_autograd(layer, Z)
        self._check(f"g′(Z[{layer.l}])", name, slope, f"g′ = {g.slope}", reference)
        return dG * slope

    def _slope_of_autograd(self, layer, Z):
        Z = Z.clone().requires_grad_()
        A = self._g_of_torch(layer, Z.T, self.learned[layer.l])
        return torch.autograd.grad(A.sum(), Z)[0]

    def _learned_gradients(self, layer, dG):
        for i, (name, value) in enumerate(self.learned[layer.l].items()):
            d = getattr(layer.g.cls, f"d_{name}", None)
            if d is None:
                grad = self._by_function(layer, dG)[1 + i]
            else:
                values = (layer.g.options | self.learned[layer.l]).values()
                grad = (dG.T * d(self.Z[layer.l].T, *values)).sum_to_size(value.shape)
            mean = "" if self.m == 1 else "1/m "
            equation = f"d{name} = {mean}Σ d{layer.symbols['a']} ∗ ∂a/∂{name}"
            key = f"d{name}[{layer.l}]"
            reference = self.reference[key].reshape(-1, 1)
            self._check(key, equation, (grad / self.m).reshape(-1, 1), reference=reference)

    def _by_function(self, layer, dG):
        """The hand-written op's own backward of this layer's g."""
        Z = self.Z[layer.l].T.clone().requires_grad_()
        values = [v.clone().requires_grad_() for v in self.learned[layer.l].values()]
        if layer.g.cls is RReLU:
            slopes = torch.where(self.Z[layer.l] > 0, 1.0, self.slopes[layer.l])
            return (dG * slopes,)
        A = self._g_by_hand(layer, Z, dict(zip(self.learned[layer.l], values, strict=True)))
        dZ, *rest = torch.autograd.grad(A, [Z, *values], dG.T)
        return dZ.T, *rest

    # The hand-written Functions themselves.

    def _g_by_hand(self, layer, Z, values):
        cls = layer.g.cls
        if cls is RReLU:
            return self._g_of_torch(layer, Z, values)
        if cls in (Softmax, LogSoftmax):
            return cls.apply(Z, Z.dim() - 1)
        return cls.apply(Z, *(layer.g.options | values).values())

    def _dropped_by_hand(self, layer, A):
        by_mask = AlphaDropout.masked if layer.alpha else dropped
        return by_mask(A, self.masks[layer.l].T.bool(), layer.dropout)

    def _own_layers(self):
        """All of it once more through the library's own autograd.Functions."""
        ours = self._autograd(Linear.apply, self._g_by_hand, self._dropped_by_hand)
        worst, name = max(
            (error_of(ours[name], self.reference[name]), name)
            for name in self.reference
            if name.startswith("d")
        )
        message = "all their gradients, run as they are"
        ok = worst <= TOLERANCE
        self.steps.append(Step(self._part, f"layers: {name}", message, [], "", worst, ok))

    # Keeping the record.

    def _note(self, name, equation, value):
        self.steps.append(Step(self._part, name, equation, value.tolist()))

    def _check(self, name, equation, value, worked="", reference=None):
        if reference is None:
            reference = self.reference[name]
            if name.startswith("db"):
                reference = reference[:, None]
        error = error_of(value, reference.reshape(value.shape))
        ok = error <= TOLERANCE  # false of NaN
        self.steps.append(Step(self._part, name, equation, value.tolist(), worked, error, ok))


def error_of(value, reference):
    scale = max(1.0, reference.abs().max().item()) if reference.numel() else 1.0
    return ((value - reference).abs().max() / scale).item() if reference.numel() else 0.0


def first_of(pairs, shift, total, m=1):
    """The first number, written out: 0.3 · 0.5 + 0.1 · (−0.7) + 0.2 = 0.28."""

    def signed(number):
        text = short(number, 4)
        return f"({text})" if text.startswith("−") else text

    terms = " + ".join(f"{signed(a)} · {signed(b)}" for a, b in pairs)
    if shift is not None:
        terms += f" + {signed(shift)}"
    if m > 1:
        terms = f"1/{m} ({terms})"
    return f"[1, 1]: {terms} = {short(total, 4)}"
