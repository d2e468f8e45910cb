"""The L-layer network as one autograd node: the forward loop and the backward loop, written out.

Layer by layer autograd pays for a node an operation. Here the whole network is one: it remembers one
tensor a hidden layer (and a bit an element for dropout), and makes the rest again.
"""

import torch
from torch import mm

from manualnn.function import Function, any_autocast, first_order
from manualnn.ops.dropout import as_bools, draw, dropped, keepable
from manualnn.ops.linear import input_gradient, product, rows, weight_gradient
from manualnn.torchs import F
from manualnn.transforms import forward_mode


class Network(Function):
    """a[0] = x;  z[l] = a[l−1] W[l]ᵀ + b[l];  a[l] = g(z[l]) ∗ r[l];  the last layer is z[L] alone
    dz[L] = dL/dz[L];  dW[l] = dz[l]ᵀ a[l−1];  db[l] = Σ dz[l];  da[l−1] = dz[l] W[l]
    dz[l−1] = da[l−1] ∗ r[l−1] ∗ g′(z[l−1])
    x (*, n[0]), W[l] (n[l], n[l−1]), b[l] (n[l]) or None -> z[L] (*, n[L]), and what is kept
    Caches, of each hidden layer, g(z) where that gives g′, else z; the dropout mask r in bits; the
    input of the first layer that needs a gradient.
    Source: the page of equations, rows for columns.

    ``apply(x, g, options, p, W1, b1, ..., WL, bL)[0]``; g a ``manualnn.Activation``, p the
    dropout probability.
    """

    @staticmethod
    def forward(x, g, options, p, *params):
        z, caches, masks = propagate(x, g, options, p, params)
        return z, *caches, *masks

    @staticmethod
    def setup_context(ctx, inputs, output):
        kept = output[1:]
        ctx.mark_non_differentiable(*kept)
        ctx.returned, hidden = len(kept), len(inputs) // 2 - 3
        remember(ctx, inputs, kept[:hidden], kept[hidden:])

    @staticmethod
    def backward(ctx, dz, *_):
        params, inputs, caches, masks = recall(ctx, again=not first_order())
        g, options, p, needs = ctx.g, ctx.options, ctx.p, ctx.needs_input_grad
        grads = [None] * len(needs)
        for l in range(ctx.layers - 1, ctx.first - 1, -1):
            if needs[4 + 2 * l]:
                grads[4 + 2 * l] = weight_gradient(dz, inputs[l])
            if needs[5 + 2 * l]:
                grads[5 + 2 * l] = rows(dz).sum(0)
            if l > ctx.first:
                da = input_gradient(dz, params[2 * l])
                if p:
                    da = dropped(da, masks[l - 1], p)
                dz = g.da_times_slope(caches[l - 1], options, da)
        if needs[0]:
            grads[0] = input_gradient(dz, params[0])
        return tuple(grads)

    @staticmethod
    def jvp(ctx, x_dot, _g, _options, _p, *params_dot):
        params, inputs, caches, masks = recall(ctx, again=True)
        a_dot, hidden = x_dot, ctx.layers - 1
        for l in range(ctx.layers):
            W, W_dot, b_dot = params[2 * l], *params_dot[2 * l : 2 * l + 2]
            z_dot = torch.zeros((), dtype=W.dtype, device=W.device)
            if a_dot is not None:
                z_dot = z_dot + a_dot @ W.T
            if W_dot is not None:
                z_dot = z_dot + inputs[l] @ W_dot.T
            if b_dot is not None:
                z_dot = z_dot + b_dot
            a_dot = z_dot.expand(*inputs[l].shape[:-1], W.shape[0])
            if l < hidden:
                a_dot = ctx.g.da_times_slope(caches[l], ctx.options, a_dot)
                if ctx.p:
                    a_dot = dropped(a_dot, masks[l], ctx.p)
        return a_dot, *(None for _ in range(ctx.returned))


def propagate(x, g, options, p, params):
    """The forward loop: z[L], and by hidden layer what is cached and the mask as it is kept."""
    a, caches, masks, last = x, [], [], len(params) - 2
    for l in range(0, last, 2):
        z = F.linear(a, params[l], params[l + 1])
        a = g.forward(z, *options)
        caches.append(a if g._keeps_output(z, options) else z)
        if p:
            mask = draw(a, p, None)
            a = dropped(a, mask, p)
            masks.append(keepable(mask))
    return product(a, params[last], params[last + 1]), caches, masks


def remember(ctx, inputs, caches, masks):
    x, ctx.g, ctx.options, ctx.p, *params = inputs
    ctx.layers, ctx.first = len(params) // 2, first_layer(ctx)
    if ctx.first == 0:
        tensors = (x, *params, *caches, *masks)
    else:
        # Below the first layer that needs a gradient nothing is kept, not even its parameters.
        below = ctx.first - 1
        tensors = (None, *params[2 * ctx.first :], *caches[below:], *masks[below:])
    ctx.save_for_backward(*tensors)
    if forward_mode():
        ctx.save_for_forward(*tensors)


def _eager_forward(ctx, *inputs):
    """Without the detour of returning what is kept."""
    x, g, options, p, *params = inputs
    ctx.returned = 0
    ctx.simple = (
        not (p or g.g_prime or g.kernel_prime_a is None)
        and x.dim() == 2
        and all(ctx.needs_input_grad[4:])
    )
    z, caches, masks = propagate(x, g, options, p, params)
    remember(ctx, inputs, caches, masks)
    return (z,)


def first_layer(ctx):
    """The first layer that needs a gradient; 0 in forward mode, where a tangent may enter at x."""
    x_needs, _, _, _, *needs = ctx.needs_input_grad
    if x_needs or forward_mode() or not any(needs):
        return 0
    return needs.index(True) // 2


def recall(ctx, again):
    """What the loops read: all parameters, and by layer the input a[l−1], z or a, and the mask.

    What was kept is an intermediate without its history. ``again`` computes it anew from the saved
    inputs, which do have theirs: otherwise a second derivative would silently miss every path that
    leads through it. What the first layer reads has no history to lose.
    """
    g, options, begin, hidden = ctx.g, ctx.options, ctx.first, ctx.layers - 1
    below = max(begin - 1, 0)
    x, *saved = ctx.saved_tensors
    kept = 2 * (ctx.layers - begin)
    params = [None] * (2 * begin) + saved[:kept]
    caches = [None] * below + saved[kept : kept + hidden - below]
    masks = [None] * below + saved[kept + hidden - below :]
    inputs = [x] + [None] * hidden
    for l in range(below, hidden):
        cache = caches[l]
        if again and l >= begin:
            z = F.linear(inputs[l], params[2 * l], params[2 * l + 1])
            a = g.apply(z, *options)
            cache = caches[l] = a if g._keeps_output(z, options) else z
        else:
            a = cache if g._keeps_output(cache, options) else g.forward(cache, *options)
        if ctx.p:
            masks[l] = as_bools(masks[l], a.shape)
            a = dropped(a, masks[l], ctx.p)
        inputs[l + 1] = a
    return params, inputs, caches, masks


def _eager_backward(ctx, dz):
    """The same loop with nothing to decide: all is needed, no dropout, g′ from the output."""
    if not ctx.simple or not first_order() or any_autocast():
        return Network._general_backward(ctx, dz)
    x, *saved = ctx.saved_tensors
    last, g_prime, options = 2 * ctx.layers - 2, ctx.g.kernel_prime_a, ctx.options
    grads, outer = [], x.shape[0] == 1
    for l in range(last, -1, -2):
        a = saved.pop() if l else x
        # da, dW, db: in other orders the allocator gives memory back and asks for it again each time.
        da = mm(dz, saved[l]) if l else None
        dW = dz.t() * a if outer else mm(dz.t(), a)
        grads += (dz.sum(0), dW)
        if l:
            dz = g_prime(da, a, *options)
    dx = mm(dz, saved[0]) if ctx.needs_input_grad[0] else None
    return dx, None, None, None, *reversed(grads)


Network._set_eager_face(_eager_forward, _eager_backward)
