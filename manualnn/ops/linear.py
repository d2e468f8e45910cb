"""The fully connected layer: a matrix product and a shift."""

import math

import torch
from torch.nn import functional as F

from manualnn.function import Function, eager, forward_mode


class Linear(Function):
    """z = x Wᵀ + b
    dx = dz W;  dW = dzᵀ x;  db = Σ dz, over all but the last dimension
    x (*, i), W (o, i), b (o) or None -> z (*, o)
    Caches x if dW is needed, W if dx is needed.
    Source: the page of equations, rows for columns; torch.nn.functional.linear
    """

    @staticmethod
    def forward(x, W, b):
        if as_rows(x, W):
            z = torch.ops.aten._unsafe_view(torch.mm(rows(x), W.t()), (*x.shape[:-1], W.shape[0]))
            return z if b is None else z + b
        return F.linear(x, W, b)

    @staticmethod
    def setup_context(ctx, inputs, z):
        x, W, b = inputs
        # Broadcast: a bias of its own for each row, say. Or added after the product, not with it.
        if b is not None and (b.dim() > 1 or as_rows(x, W)):
            ctx.b_shape = b.shape
        need_x, need_W, _ = ctx.needs_input_grad
        ctx.save_for_backward(x if need_W else None, W if need_x else None)
        if forward_mode():
            ctx.save_for_forward(x, W)

    @staticmethod
    def backward(ctx, dz):
        x, W = ctx.saved_tensors
        need_x, need_W, need_b = ctx.needs_input_grad
        dx = dW = db = None
        if need_x:
            dx = input_gradient(dz, W)
        if need_W:
            dW = weight_gradient(dz, x)
        if need_b:
            wide_bias = hasattr(ctx, "b_shape")
            db = dz.sum_to_size(ctx.b_shape) if wide_bias else rows(dz).sum(0)
        return dx, dW, db

    @staticmethod
    def jvp(ctx, dx, dW, db):
        x, W = ctx.saved_tensors
        terms = []
        if dx is not None:
            terms.append(dx @ W.T)
        if dW is not None:
            terms.append(x @ dW.T)
        if db is not None:
            terms.append(db.expand(*x.shape[:-1], -1))
        return sum(terms)


def as_rows(x, W):
    """Whether torch gathers the rows of a strided x first; inside a Function it no longer sees why."""
    return x.dim() > 2 and W.requires_grad and eager() and not x.is_contiguous()


def input_gradient(dz, W):
    """dx = dz W, of complex numbers dz W̄"""
    W = W.conj() if W.is_complex() else W
    return torch.mm(dz, W) if dz.dim() == 2 else dz @ W


def weight_gradient(dz, x):
    """dW = dzᵀ x, of complex numbers dzᵀ x̄"""
    dz, x = rows(dz), rows(x.conj() if x.is_complex() else x)
    # Of a single example an outer product, which is a multiplication and costs half a matrix product.
    return dz.t() * x if dz.shape[0] == 1 else torch.mm(dz.t(), x)


def rows(t):
    """All leading dimensions as one: (*, n) -> (m, n). A sum over no dimension would sum over all."""
    return t if t.dim() == 2 else t.reshape(math.prod(t.shape[:-1]), t.shape[-1])
