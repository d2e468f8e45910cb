"""Convolution of any number of dimensions, and its transpose: a matrix product over unfolded patches."""

from itertools import product

import torch

from manualnn.function import Function
from manualnn.ops.layout import split, stand_in
from manualnn.torchs import F
from manualnn.transforms import forward_mode


class Convolution(Function):
    """z = W · unfold(x) + b;  transposed: z = fold(Wᵀ x) + b
    dx = fold(Wᵀ dz);  dW = dz · unfold(x)ᵀ;  db = Σ dz, over all but the channels
    transposed: dx = W · unfold(dz);  dW = x · unfold(dz)ᵀ
    x (N, C, D…), W (O, C/groups, K…), b (O) or None -> z (N, O, L…); transposed: W (C, O/groups, K…)
    Caches x if dW is needed, W if dx is needed.
    Source: Dumoulin & Visin 2016, sections 2 and 4; torch.nn.functional.conv2d, conv_transpose2d

    PyTorch's kernels compute the products, in backward too, and can be differentiated in every way.
    ``formula`` and ``formula_backward`` below say what they compute.
    ``numbers``: stride, padding, dilation and output_padding, each of as many as there are dimensions D.
    """

    @staticmethod
    def forward(x, W, b, transposed, groups, *numbers):
        return torch.convolution(x, W, b, *geometry(transposed, groups, numbers))

    @staticmethod
    def setup_context(ctx, inputs, z):
        x, W, b, transposed, groups, *numbers = inputs
        ctx.geometry, ctx.numbers = geometry(transposed, groups, numbers), len(numbers)
        ctx.b_shape = None if b is None else list(b.shape)
        need_x, need_W = ctx.needs_input_grad[:2]
        ctx.x_layout = None if need_W else (x.shape, x.stride())
        ctx.W_layout = None if need_x else (W.shape, W.stride())
        ctx.save_for_backward(x if need_W else None, W if need_x else None)
        if forward_mode():
            ctx.save_for_forward(x, W)

    @staticmethod
    def backward(ctx, dz):
        x, W = ctx.saved_tensors
        x = stand_in(dz, *ctx.x_layout) if ctx.x_layout else x
        W = stand_in(dz, *ctx.W_layout) if ctx.W_layout else W
        needs = list(ctx.needs_input_grad[:3])
        grads = torch.ops.aten.convolution_backward(dz, x, W, ctx.b_shape, *ctx.geometry, needs)
        dx, dW, db = (d if need else None for d, need in zip(grads, needs, strict=True))
        return dx, dW, db, None, None, *(None for _ in range(ctx.numbers))

    @staticmethod
    def jvp(ctx, dx, dW, db, *_):
        x, W = ctx.saved_tensors
        terms = []
        if dx is not None:
            terms.append(torch.convolution(dx, W, None, *ctx.geometry))
        if dW is not None:
            terms.append(torch.convolution(x, dW, None, *ctx.geometry))
        if db is not None:
            terms.append(broadcast_bias(db, x, W, *ctx.geometry))
        return sum(terms)


def geometry(transposed, groups, numbers):
    """The arguments of torch.convolution, behind the tensors. torch.func takes single numbers only."""
    stride, padding, dilation, output_padding = split(numbers, 4)
    return stride, padding, dilation, transposed, output_padding, groups


def broadcast_bias(b, x, W, *geometry):
    """b in the shape of z."""
    size = output_size(x.shape[2:], W.shape[2:], *geometry)
    return b.view(1, -1, *(1 for _ in size)).expand(x.shape[0], -1, *size)


def output_size(size, kernel, stride, padding, dilation, transposed, output_padding, _groups):
    """L…, the number of positions at which the kernel is laid on the padded input."""
    places = zip(size, kernel, stride, padding, dilation, output_padding, strict=True)
    if transposed:
        return [(n - 1) * s - 2 * p + d * (k - 1) + 1 + o for n, k, s, p, d, o in places]
    return [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d, _ in places]


# --- The formula ------------------------------------------------------------------------------


def formula(x, W, b, stride, padding, dilation, transposed, output_padding, groups):
    """z, as a matrix product over patches; differentiable."""
    geometry = stride, padding, dilation
    if transposed:
        size = output_size(x.shape[2:], W.shape[2:], *geometry, True, output_padding, groups)
        z = scattered(x, W, size, *geometry, groups)
    else:
        z = gathered(x, W, *geometry, groups)
    return z if b is None else z + b.view(-1, *(1 for _ in stride))


def formula_backward(dz, x, W, stride, padding, dilation, transposed, output_padding, groups):
    """dx, dW and db."""
    geometry = stride, padding, dilation
    if transposed:
        dx = gathered(dz, W, *geometry, groups)
        dW = products(x, dz, W.shape[2:], *geometry, groups)
    else:
        dx = scattered(dz, W, x.shape[2:], *geometry, groups)
        dW = products(dz, x, W.shape[2:], *geometry, groups)
    return dx, dW, dz.transpose(0, 1).flatten(1).sum(1)


def gathered(x, W, stride, padding, dilation, groups):
    """W · unfold(x): (N, C, D…) -> (N, O, L…)"""
    patches = unfold(x, W.shape[2:], stride, padding, dilation)
    z = torch.einsum(
        "ngc...k,gock->ngo...", by_group(patches, 1, groups), by_group(W.flatten(2), 0, groups)
    )
    return z.flatten(1, 2)


def scattered(x, W, size, stride, padding, dilation, groups):
    """fold(Wᵀ x): (N, O, L…) -> (N, C, D…), the adjoint of ``gathered``."""
    patches = torch.einsum(
        "ngo...,gock->ngc...k", by_group(x, 1, groups), by_group(W.flatten(2), 0, groups)
    )
    return fold(patches.flatten(1, 2), size, W.shape[2:], stride, padding, dilation)


def products(dz, x, kernel, stride, padding, dilation, groups):
    """dz · unfold(x)ᵀ: (N, O, L…) and (N, C, D…) -> (O, C/groups, K…)"""
    patches = unfold(x, kernel, stride, padding, dilation)
    dW = torch.einsum(
        "ngol,ngclk->gock",
        by_group(dz.flatten(2), 1, groups),
        by_group(patches.flatten(2, -2), 1, groups),
    )
    return dW.flatten(0, 1).unflatten(-1, kernel)


def by_group(t, dim, groups):
    return t.unflatten(dim, (groups, t.shape[dim] // groups))


def unfold(x, kernel, stride, padding, dilation):
    """The patch under the kernel at each of its positions: (N, C, D…) -> (N, C, L…, ∏K)"""
    x = F.pad(x, [p for p in reversed(padding) for _ in range(2)])
    for dim, (k, s, d) in enumerate(zip(kernel, stride, dilation, strict=True), start=2):
        x = x.unfold(dim, d * (k - 1) + 1, s)[..., ::d]
    return x.flatten(-len(kernel))


def fold(patches, size, kernel, stride, padding, dilation):
    """Each patch added to where it lay, the adjoint of ``unfold``: (N, C, L…, ∏K) -> (N, C, D…)"""
    x = patches.new_zeros(
        *patches.shape[:2], *(n + 2 * p for n, p in zip(size, padding, strict=True))
    )
    patches = patches.unflatten(-1, kernel)
    places = patches.shape[2 : 2 + len(kernel)]
    for position in product(*map(range, kernel)):
        steps = zip(position, places, stride, dilation, strict=True)
        at = tuple(slice(i * d, i * d + s * (l - 1) + 1, s) for i, l, s, d in steps)
        x[(..., *at)] += patches[(..., *position)]
    inside = (slice(p, p + n) for n, p in zip(size, padding, strict=True))
    return x[(..., *inside)]
