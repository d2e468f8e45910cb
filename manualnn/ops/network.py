"""The L-layer network as one autograd node: the forward loop and the backward loop, written out.

Layer by layer autograd pays for a node an operation. Here the whole network is one: it remembers one
tensor a hidden layer (and a bit an element for dropout), and makes the rest again.
"""

from dataclasses import dataclass

import torch
from torch import mm

from manualnn._torch import F
from manualnn.autograd.activation import Activation
from manualnn.autograd.function import Function
from manualnn.autograd.masks import as_bools, draw, dropped, keepable
from manualnn.ops.fully_connected import input_gradient, product, rows, weight_gradient


@dataclass(frozen=True)
class Between:
    """What lies between two layers: the activation g, its options, and dropout with probability p."""

    g: type[Activation]
    options: tuple
    p: float


class Network(Function):
    """a[0] = x;  z[l] = a[l−1] W[l]ᵀ + b[l];  a[l] = g(z[l]) ∗ r[l];  the last layer is z[L] alone
    dz[L] = dL/dz[L];  dW[l] = dz[l]ᵀ a[l−1];  db[l] = Σ dz[l];  da[l−1] = dz[l] W[l]
    dz[l−1] = da[l−1] ∗ r[l−1] ∗ g′(z[l−1])
    x (*, n[0]), W[l] (n[l], n[l−1]), b[l] (n[l]) or None -> z[L] (*, n[L]), and what is saved
    Caches, of each hidden layer, g(z) where that gives g′, else z; the dropout mask r in bits; the
    input of the first layer that needs a gradient.
    Source: the page of equations, rows for columns.

    ``apply(x, Between(g, options, p), W1, b1, ..., WL, bL)[0]``
    """

    outputs = 1

    @staticmethod
    def forward(x, between, *params):
        g, options, p = between.g, between.options, between.p
        a, caches, masks, last = x, [], [], len(params) - 2
        for l in range(0, last, 2):
            z = F.linear(a, params[l], params[l + 1])
            a = g.forward(z, *options)
            caches.append(a if g._saves_output(z, options) else z)
            if p:
                mask = draw(a, p)
                a = dropped(a, mask, p)
                masks.append(keepable(mask))
        return product(a, params[last], params[last + 1]), *caches, *masks

    @staticmethod
    def save(needs, output, x, between, *params):
        first = 0
        if any(needs.params) and not needs.x:
            first = needs.params.index(True) // 2
        hidden = len(params) // 2 - 1
        caches, masks = output[1 : 1 + hidden], output[1 + hidden :]
        options = between, len(params) // 2, first
        if first == 0:
            return (x, *params, *caches, *masks), options
        # Below the first layer that needs a gradient nothing is saved, not even its parameters.
        below = first - 1
        return (None, *params[2 * first :], *caches[below:], *masks[below:]), options

    @staticmethod
    def gradients(needs, dz, *saved, recompute=True):
        *tensors, between, layers, first = saved
        params, inputs, caches, masks = recall(tensors, between, layers, first, recompute)
        g, options, p = between.g, between.options, between.p
        dx, d_params = None, [None] * len(needs.params)
        for l in range(layers - 1, first - 1, -1):
            if needs.params[2 * l]:
                d_params[2 * l] = weight_gradient(dz, inputs[l])
            if needs.params[2 * l + 1]:
                d_params[2 * l + 1] = rows(dz).sum(0)
            if l > first:
                da = input_gradient(dz, params[2 * l])
                if p:
                    da = dropped(da, masks[l - 1], p)
                dz = g.da_times_slope(caches[l - 1], options, da)
        if needs.x:
            dx = input_gradient(dz, params[0])
        return dx, None, *d_params

    @staticmethod
    def kernel_gradients(needs, dz, *saved):
        """The same loop with what was saved; and with nothing to decide, where all is needed."""
        x, *tensors, between, layers, _ = saved
        g, options = between.g, between.options
        if between.p or g.g_prime or not g.kernel_prime_a or not all(needs.params) or x.dim() != 2:
            return Network.gradients(needs, dz, *saved, recompute=False)
        grads, outer = [], x.shape[0] == 1
        for l in range(2 * layers - 2, -1, -2):
            a = tensors.pop() if l else x
            # da, dW, db: in other orders the allocator gives memory back and asks for it again each time.
            da = mm(dz, tensors[l]) if l else None
            dW = dz.t() * a if outer else mm(dz.t(), a)
            grads += (dz.sum(0), dW)
            if l:
                dz = g.kernel_prime_a(da, a, *options)
        dx = mm(dz, tensors[0]) if needs.x else None
        return dx, None, *reversed(grads)

    @staticmethod
    def tangent(step, *saved):
        *tensors, between, layers, first = saved
        params, inputs, caches, masks = recall(tensors, between, layers, first, recompute=True)
        a_dot = step.x
        for l in range(layers):
            W, (W_dot, b_dot) = params[2 * l], step.params[2 * l : 2 * l + 2]
            z_dot = torch.zeros((), dtype=W.dtype, device=W.device)
            if a_dot is not None:
                z_dot = z_dot + a_dot @ W.T
            if W_dot is not None:
                z_dot = z_dot + inputs[l] @ W_dot.T
            if b_dot is not None:
                z_dot = z_dot + b_dot
            a_dot = z_dot.expand(*inputs[l].shape[:-1], W.shape[0])
            if l < layers - 1:
                a_dot = between.g.da_times_slope(caches[l], between.options, a_dot)
                if between.p:
                    a_dot = dropped(a_dot, masks[l], between.p)
        return a_dot


def recall(tensors, between, layers, first, recompute):
    """What the loops read: all parameters, and by layer the input a[l−1], z or a, and the mask.

    What was saved is an intermediate without its history. ``recompute`` computes it anew from the saved
    inputs, which do have theirs: otherwise a second derivative would silently miss every path that
    leads through it. What the first layer reads has no history to lose.
    """
    g, options, p, hidden = between.g, between.options, between.p, layers - 1
    below = max(first - 1, 0)
    x, *saved = tensors
    count = 2 * (layers - first)
    params = [None] * (2 * first) + saved[:count]
    caches = [None] * below + saved[count : count + hidden - below]
    masks = [None] * below + saved[count + hidden - below :]
    inputs = [x] + [None] * hidden
    for l in range(below, hidden):
        cache = caches[l]
        if recompute and l >= first:
            z = F.linear(inputs[l], params[2 * l], params[2 * l + 1])
            a = g.apply(z, *options)
            cache = caches[l] = a if g._saves_output(z, options) else z
        else:
            a = cache if g._saves_output(cache, options) else g.forward(cache, *options)
        if p:
            masks[l] = as_bools(masks[l], a.shape)
            a = dropped(a, masks[l], p)
        inputs[l + 1] = a
    return params, inputs, caches, masks
