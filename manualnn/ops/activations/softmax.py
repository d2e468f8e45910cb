"""Softmax and its logarithm: activations that look at a whole row at once."""

import torch

from manualnn.function import Function, first_order
from manualnn.transforms import forward_mode


class Softmax(Function):
    """a_i = exp(z_i − max z) / Σ_j exp(z_j − max z)
    dz_i = a_i (da_i − Σ_j da_j a_j)
    z (*) -> a (*), the sum along dimension dim
    Caches a.
    Source: Bridle 1990; torch.nn.functional.softmax
    """

    @staticmethod
    def forward(z, dim):
        return torch.softmax(z, dim)

    @staticmethod
    def setup_context(ctx, inputs, a):
        _, ctx.dim = inputs
        _keep(ctx, a)

    @staticmethod
    def backward(ctx, da):
        (a,) = ctx.saved_tensors
        if first_order():
            return torch._softmax_backward_data(da, a, ctx.dim, a.dtype), None
        return softmax_jacobian_product(da, a, ctx.dim), None

    @staticmethod
    def jvp(ctx, dz, _):
        # The Jacobian diag(a) − a aᵀ is symmetric: forward and backward are the same product.
        (a,) = ctx.saved_tensors
        return softmax_jacobian_product(dz, a, ctx.dim)


class LogSoftmax(Function):
    """a_i = z_i − max z − log Σ_j exp(z_j − max z)
    dz_i = da_i − exp(a_i) Σ_j da_j
    z (*) -> a (*), the sum along dimension dim
    Caches a.
    Source: torch.nn.functional.log_softmax
    """

    @staticmethod
    def forward(z, dim):
        return torch.log_softmax(z, dim)

    @staticmethod
    def setup_context(ctx, inputs, a):
        _, ctx.dim = inputs
        _keep(ctx, a)

    @staticmethod
    def backward(ctx, da):
        (a,) = ctx.saved_tensors
        if first_order():
            return torch._log_softmax_backward_data(da, a, ctx.dim, a.dtype), None
        return log_softmax_vjp(da, a, ctx.dim), None

    @staticmethod
    def jvp(ctx, dz, _):
        (a,) = ctx.saved_tensors
        return dz - (a.exp() * dz).sum(ctx.dim, keepdim=True)


def softmax_jacobian_product(da, a, dim):
    return a * (da - (da * a).sum(dim, keepdim=True))


def log_softmax_vjp(da, a, dim):
    return da - a.exp() * da.sum(dim, keepdim=True)


def _keep(ctx, a):
    if ctx.needs_input_grad[0]:
        ctx.save_for_backward(a)
    if forward_mode():
        ctx.save_for_forward(a)
