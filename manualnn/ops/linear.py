"""The fully connected layer: a matrix product and a shift."""

import math

import torch

from manualnn.function import Function, eager, first_order
from manualnn.torchs import F
from manualnn.transforms import forward_mode


class Linear(Function):
    """z = x Wᵀ + b
    dx = dz W;  dW = dzᵀ x;  db = Σ dz, over all but the last dimension
    x (*, i), W (o, i), b (o) or None -> z (*, o)
    Caches x if dW is needed, W if dx is needed.
    Source: the page of equations, rows for columns; torch.nn.functional.linear
    """

    @staticmethod
    def forward(x, W, b):
        return product(x, W, b)

    @staticmethod
    def setup_context(ctx, inputs, z):
        x, W, b = inputs
        if b is not None and b.dim() != 1:  # broadcast: a bias of its own for each row, say
            ctx.b_shape = b.shape
        ctx.columns, ctx.each = (False, False), False
        if eager():
            by_columns = x.dim() == 2 and x.stride() == (1, x.shape[0]) and not x.is_contiguous()
            ctx.columns = by_columns, not W.is_contiguous()
            # Of a strided x and a frozen W torch makes no copy, but a product for each matrix of x.
            ctx.each = x.dim() > 2 and not W.requires_grad and not x.is_contiguous()
        need_x, need_W, _ = ctx.needs_input_grad
        # As torch, whose views of W, and of x as a matrix, show the numbers of forward when .data is set to
        # another tensor: networks whose weights are binary in forward alone do so. The history is theirs.
        W_seen = W.detach() if need_x and eager() else None
        x_seen = x.detach() if need_W and eager() and x.dim() != 2 and x.grad_fn is None else None
        ctx.save_for_backward(x if need_W else None, W if need_x else None, x_seen, W_seen)
        if forward_mode():
            ctx.save_for_forward(x, W)

    @staticmethod
    def backward(ctx, dz):
        x, W, x_seen, W_seen = ctx.saved_tensors
        x, W = as_seen(x, x_seen), as_seen(W, W_seen)
        need_x, need_W, need_b = ctx.needs_input_grad
        x_columns, W_columns = ctx.columns
        dx = dW = db = None
        if need_x:
            dx = input_gradient(dz, W, x_columns, ctx.each)
        if need_W:
            dW = weight_gradient(dz, x, W_columns)
        if need_b and not hasattr(ctx, "b_shape"):
            db = rows(dz).sum(0)
        elif need_b:
            db = (dz if dz.dim() > 1 else rows(dz)).sum_to_size(ctx.b_shape)
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


def as_seen(t, seen):
    """t with the numbers that forward saw; where it is differentiated again, its history is that of t."""
    if seen is None:
        return t
    if first_order():
        return seen
    return t if torch._C._is_alias_of(t, seen) else Seen.apply(t, seen)


class Seen(torch.autograd.Function):
    """The numbers of the second, differentiated as the first."""

    @staticmethod
    def forward(ctx, t, seen):
        return seen.view_as(seen)

    @staticmethod
    def backward(ctx, dt):
        return dt, None


def product(x, W, b):
    """x Wᵀ + b, of its own: where torch gives out a view, nobody could write over a Function's output."""
    z = F.linear(x, W, b)
    if x.dim() == 2 or torch.jit.is_tracing():
        return z
    return torch.ops.aten._unsafe_view.default(z, z.shape)


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
