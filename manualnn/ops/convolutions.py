"""Convolution of any number of dimensions, and its transpose: a matrix product over unfolded patches."""

from itertools import product

import torch

from manualnn._torch import F
from manualnn.autograd.examples import SIGNALS, Example, Twin, inputs, normal
from manualnn.autograd.function import Function
from manualnn.ops.layout import layout_of, placeholder

convolution_backward = torch.ops.aten.convolution_backward.default


class Convolution(Function):
    """z = W · unfold(x) + b;  transposed: z = fold(Wᵀ x) + b
    dx = fold(Wᵀ dz);  dW = dz · unfold(x)ᵀ;  db = Σ dz, over all but the channels
    transposed: dx = W · unfold(dz);  dW = x · unfold(dz)ᵀ
    x (N, C, D…), W (O, C/groups, K…), b (O) or None -> z (N, O, L…); transposed: W (C, O/groups, K…)
    Caches x if dW is needed, W if dx is needed.
    Source: Dumoulin & Visin 2016, sections 2 and 4; torch.nn.functional.conv2d, conv_transpose2d

    PyTorch's kernels compute the products, in backward too, and can be differentiated in every way.
    ``numbers``: stride, padding, dilation and output_padding, each of as many as there are dimensions D.
    """

    twin = Twin("conv2d", "Conv2d", others=("ConvTranspose2d",))
    examples = tuple(
        Example(inputs(x, normal(2, 2, *kernel), normal(2)), options, function=f"{name}{dims}d")
        for dims, x, kernel in SIGNALS
        for name, options in (("conv", {}), ("conv_transpose", {"stride": 2}))
    )

    @staticmethod
    def forward(x, W, b, transposed, groups, *numbers):
        return torch.convolution(x, W, b, *geometry(transposed, groups, numbers))

    @staticmethod
    def save(needs, z, x, W, b, transposed, groups, *numbers):
        x_layout, W_layout = layout_of(x, needs.W), layout_of(W, needs.x)
        b_shape = None if b is None else list(b.shape)
        options = x_layout, W_layout, b_shape, geometry(transposed, groups, numbers)
        return (x if needs.W else None, W if needs.x else None), options

    @staticmethod
    def gradients(needs, dz, x, W, x_layout, W_layout, b_shape, geometry):
        stride, padding, dilation, transposed, _, groups = geometry
        windows = stride, padding, dilation, groups
        size, kernel = x_layout[0][2:], W_layout[0][2:]
        dx = dW = db = None
        if needs.x:
            dx = gathered(dz, W, *windows) if transposed else scattered(dz, W, size, *windows)
        if needs.W:
            dW = (
                products(x, dz, kernel, *windows)
                if transposed
                else products(dz, x, kernel, *windows)
            )
        if needs.b:
            db = dz.transpose(0, 1).flatten(1).sum(1)
        return dx, dW, db

    kernel_has_derivatives = True

    @staticmethod
    def kernel_gradients(needs, dz, x, W, x_layout, W_layout, b_shape, geometry):
        x = placeholder(dz, *x_layout) if x is None else x
        W = placeholder(dz, *W_layout) if W is None else W
        mask = [needs.x, needs.W, needs.b]
        dx, dW, db = convolution_backward(dz, x, W, b_shape, *geometry, mask)
        return dx if needs.x else None, dW if needs.W else None, db if needs.b else None

    @staticmethod
    def tangent(step, x, W, x_layout, W_layout, b_shape, geometry):
        terms = []
        if step.x is not None:
            terms.append(torch.convolution(step.x, W, None, *geometry))
        if step.W is not None:
            terms.append(torch.convolution(x, step.W, None, *geometry))
        if step.b is not None:
            terms.append(broadcast_bias(step.b, x, W, *geometry))
        return sum(terms)


def geometry(transposed, groups, numbers):
    """The arguments of torch.convolution, behind the tensors. torch.func takes single numbers only."""
    n = len(numbers) // 4  # in each call of a layer, so without ``split``, which makes a list
    stride, padding, dilation = numbers[:n], numbers[n : 2 * n], numbers[2 * n : 3 * n]
    return stride, padding, dilation, transposed, numbers[3 * n :], groups


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


# --- The matrix products over patches -----------------------------------------------------------


def formula(x, W, b, stride, padding, dilation, transposed, output_padding, groups):
    """z, as a matrix product over patches; differentiable."""
    windows = stride, padding, dilation, groups
    if transposed:
        places = stride, padding, dilation, True, output_padding, groups
        z = scattered(x, W, output_size(x.shape[2:], W.shape[2:], *places), *windows)
    else:
        z = gathered(x, W, *windows)
    return z if b is None else z + b.view(-1, *(1 for _ in stride))


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
