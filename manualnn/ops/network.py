"""The L-layer network as one autograd node: the forward loop and the backward loop, written out.

Layer by layer autograd pays for a node an operation. Here the whole network is one: it remembers one
tensor a hidden layer (and a bit an element for dropout), and makes the rest again.
"""

from functools import partial

import torch
from torch.nn import functional as F

from manualnn.function import Function, first_order, forward_mode
from manualnn.ops.dropout import draw, factor, keepable, unpack
from manualnn.ops.linear import rows


class Network(Function):
    """a[0] = x;  z[l] = a[l−1] W[l]ᵀ + b[l];  a[l] = g(z[l]) ∗ r[l];  the last layer is z[L] alone
    dz[L] = dL/dz[L];  dW[l] = dz[l]ᵀ a[l−1];  db[l] = Σ dz[l];  da[l−1] = dz[l] W[l]
    dz[l−1] = da[l−1] ∗ r[l−1] ∗ g′(z[l−1])
    x (*, n[0]), W[l] (n[l], n[l−1]), b[l] (n[l]) or None -> z[L] (*, n[L]), and what is kept
    Caches, of each hidden layer, g(z) where that gives g′, else z; the dropout mask r in bits; the
    input of the first layer that needs a gradient.
    Source: the page of equations, rows for columns.

    ``apply(x, g, options, p, W1, b1, ..., WL, bL)[0]``; g a ``manualnn.elementwise.Activation``, p the
    dropout probability.
    """

    @staticmethod
    def forward(x, g, options, p, *params):
        layers = pairs(params)
        a, caches, masks = x, [], []
        for W, b in layers[:-1]:
            z = F.linear(a, W, b)
            a = g.forward(z, *options)
            caches.append(a if g._keeps_output(z, options) else z)
            if p:
                mask = draw(a, p, a.shape)
                a = a * factor(mask, p, a.dtype)
                masks.append(keepable(mask))
        W, b = layers[-1]
        return F.linear(a, W, b), *caches, *masks

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, ctx.g, ctx.options, ctx.p, *params = inputs
        _, *kept = output
        ctx.mark_non_differentiable(*kept)
        ctx.layers, ctx.first = len(params) // 2, first_layer(ctx)
        hidden = ctx.layers - 1
        caches, masks = kept[:hidden], kept[hidden:]
        begin = ctx.first
        # Below the first layer that needs a gradient nothing is kept, not even its parameters.
        tensors = [x if begin == 0 else None, *params[2 * begin :]]
        tensors += caches[max(begin - 1, 0) :] + masks[max(begin - 1, 0) :]
        ctx.save_for_backward(*tensors)
        if forward_mode():
            ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx, dz, *_):
        layers, inputs, slopes, masks = recall(ctx, again=not first_order())
        x_needs, _, _, _, *needs = ctx.needs_input_grad
        grads = [None] * len(needs)
        for l in reversed(range(ctx.first, ctx.layers)):
            W, _ = layers[l]
            if needs[2 * l]:
                grads[2 * l] = rows(dz).T @ rows(inputs[l])
            if needs[2 * l + 1]:
                grads[2 * l + 1] = rows(dz).sum(0)
            if l > ctx.first:
                da = dz @ W
                if ctx.p:
                    da = da * factor(masks[l - 1], ctx.p, da.dtype)
                dz = slopes[l - 1](da)
        return dz @ layers[0][0] if x_needs else None, None, None, None, *grads

    @staticmethod
    def jvp(ctx, x_dot, _g, _options, _p, *params_dot):
        layers, inputs, slopes, masks = recall(ctx, again=False)
        a_dot = x_dot
        for l in range(ctx.layers):
            W_dot, b_dot = params_dot[2 * l : 2 * l + 2]
            z_dot = torch.zeros((), dtype=inputs[l].dtype, device=inputs[l].device)
            if a_dot is not None:
                z_dot = z_dot + a_dot @ layers[l][0].T
            if W_dot is not None:
                z_dot = z_dot + inputs[l] @ W_dot.T
            if b_dot is not None:
                z_dot = z_dot + b_dot
            if l == ctx.layers - 1:
                break
            a_dot = slopes[l](z_dot.expand(*inputs[l].shape[:-1], layers[l][0].shape[0]))
            if ctx.p:
                a_dot = a_dot * factor(masks[l], ctx.p, a_dot.dtype)
        z_dot = z_dot.expand(*inputs[-1].shape[:-1], layers[-1][0].shape[0])
        return z_dot, *(None for _ in range((ctx.layers - 1) * (2 if ctx.p else 1)))


def pairs(params):
    return list(zip(params[::2], params[1::2], strict=True))


def first_layer(ctx):
    """The first layer that needs a gradient; 0 in forward mode, where a tangent may enter at x."""
    x_needs, _, _, _, *needs = ctx.needs_input_grad
    if x_needs or forward_mode() or not any(needs):
        return 0
    return needs.index(True) // 2


def recall(ctx, again):
    """What the loops read: by layer, (W, b), the input a[l−1], da -> dz, and the dropout mask.

    What was kept is an intermediate without its history. ``again`` computes it anew from the saved
    inputs, which do have theirs: otherwise a second derivative would silently miss every path that
    leads through it. What the first layer reads has no history to lose.
    """
    begin, hidden = ctx.first, ctx.layers - 1
    x, *saved = ctx.saved_tensors
    layers = [(None, None)] * begin + pairs(saved[: 2 * (ctx.layers - begin)])
    kept = saved[2 * (ctx.layers - begin) :]
    unseen = [None] * max(begin - 1, 0)
    count = hidden - len(unseen)
    caches, bits = unseen + kept[:count], unseen + kept[count:]

    inputs, slopes, masks = [None] * ctx.layers, [None] * hidden, [None] * hidden
    if begin == 0:
        inputs[0] = x
    for l in range(max(begin - 1, 0), hidden):
        cache = caches[l]
        if again and l >= begin:
            z = F.linear(inputs[l], *layers[l])
            a = ctx.g.apply(z, *ctx.options)
            cache = a if ctx.g._keeps_output(z, ctx.options) else z
        elif ctx.g._keeps_output(cache, ctx.options):
            a = cache
        else:
            a = ctx.g.forward(cache, *ctx.options)
        slopes[l] = partial(ctx.g.da_times_slope, cache, ctx.options)
        if ctx.p:
            mask = masks[l] = bits[l] if bits[l].dtype is torch.bool else unpack(bits[l], a.shape)
            a = a * factor(mask, ctx.p, a.dtype)
        inputs[l + 1] = a
    return layers, inputs, slopes, masks
