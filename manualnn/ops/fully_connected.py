"""The fully connected layer: a matrix product and a shift."""

import math

import torch

from manualnn._torch import F, unsafe_view
from manualnn.autograd.examples import Example, Twin, inputs, normal
from manualnn.autograd.function import Function


class Linear(Function):
    """z = x Wᵀ + b
    dx = dz W;  dW = dzᵀ x;  db = Σ dz, over all but the last dimension
    x (*, i), W (o, i), b (o) or None -> z (*, o)
    Caches x if dW is needed, W if dx is needed.
    Source: the page of equations, rows for columns; torch.nn.functional.linear
    """

    twin = Twin("linear", "Linear")
    examples = (
        Example(inputs(normal(4, 3), normal(5, 3), normal(5))),
        Example(inputs(normal(2, 4, 3), normal(5, 3)), label="(2, 4, 3), no bias"),
    )

    @staticmethod
    def forward(x, W, b):
        return product(x, W, b)

    @staticmethod
    def save(needs, z, x, W, b):
        b_shape = None if b is None else b.shape  # that of a bias of its own for each row, say
        return (x if needs.W else None, W if needs.x else None), (b_shape,)

    @staticmethod
    def gradients(needs, dz, x, W, b_shape):
        dx = dz @ W.conj() if needs.x else None
        dW = rows(dz).T @ rows(x).conj() if needs.W else None
        db = to_bias(dz, b_shape) if needs.b else None
        return dx, dW, db

    @staticmethod
    def tangent(step, x, W, b_shape):
        terms = []
        if step.x is not None:
            terms.append(step.x @ W.T)
        if step.W is not None:
            terms.append(x @ step.W.T)
        if step.b is not None:
            terms.append(step.b.expand(*x.shape[:-1], -1))
        return sum(terms)

    # --- The same products in the order of torch's own, so that they round alike ---

    kernel_has_derivatives = True

    @staticmethod
    def seen(needs, x, W, b):
        # As torch, whose views of W, and of x as a matrix, show the numbers of forward when .data is set to
        # another tensor: networks whose weights are binary in forward alone do so.
        viewed = needs.W and x.dim() != 2 and x.grad_fn is None
        return x.detach() if viewed else None, W.detach() if needs.x else None

    @staticmethod
    def layout(needs, z, x, W, b):
        by_columns = x.dim() == 2 and x.stride() == (1, x.shape[0]) and not x.is_contiguous()
        # Of a strided x and a frozen W torch makes no copy, but a product for each matrix of x.
        each = x.dim() > 2 and not W.requires_grad and not x.is_contiguous()
        return by_columns, not W.is_contiguous(), each

    @staticmethod
    def kernel_gradients(needs, dz, x, W, b_shape, x_columns, W_columns, each):
        dx = input_gradient(dz, W, x_columns, each) if needs.x else None
        dW = weight_gradient(dz, x, W_columns) if needs.W else None
        db = to_bias(dz, b_shape) if needs.b else None
        return dx, dW, db


def product(x, W, b):
    """x Wᵀ + b, of its own: where torch gives out a view, nobody could write over a Function's output."""
    z = F.linear(x, W, b)
    if x.dim() == 2 or torch.jit.is_tracing():
        return z
    return unsafe_view(z, z.shape)


def to_bias(dz, b_shape):
    """db = Σ dz, over what the bias was broadcast along."""
    if len(b_shape) == 1:
        return rows(dz).sum(0)
    return (dz if dz.dim() > 1 else rows(dz)).sum_to_size(b_shape)


def input_gradient(dz, W, columns=False, each=False):
    """dx = dz W, of complex numbers dz W̄; by columns, as of such an x, dxᵀ = Wᵀ dzᵀ;
    or a product for each matrix of dz."""
    W = W.conj() if W.is_complex() else W
    if each:
        dx = torch.bmm(dz.flatten(0, -3), W.expand(math.prod(dz.shape[:-2]), -1, -1))
    elif columns:
        dx = W.t().mm(rows(dz).t()).t()
    else:
        dx = torch.mm(rows(dz), W)
    return dx.reshape(*dz.shape[:-1], W.shape[1])


def weight_gradient(dz, x, columns=False):
    """dW = dzᵀ x, of complex numbers dzᵀ x̄; by columns, as of a strided W, dWᵀ = xᵀ dz"""
    dz, x = rows(dz), rows(x.conj() if x.is_complex() else x)
    # Of a single example an outer product, which is a multiplication and costs half a matrix product.
    if dz.shape[0] == 1:
        return (x.t() * dz).t() if columns else dz.t() * x
    if columns:
        return x.t().mm(dz).t()
    return torch.mm(dz.t(), x)


def rows(t):
    """All leading dimensions as one: (*, n) -> (m, n). A sum over no dimension would sum over all."""
    return t if t.dim() == 2 else t.reshape(math.prod(t.shape[:-1]), t.shape[-1])
