"""Gated linear unit: one half of the input opens or closes the other."""

import torch

from manualnn.function import Function, first_order
from manualnn.transforms import forward_mode

aten = torch.ops.aten


class GLU(Function):
    """a = u σ(v),  z = (u, v) the two halves along dimension dim
    du = da σ(v);  dv = da u σ(v) (1 − σ(v))
    z (*, 2n, *) -> a (*, n, *)
    Caches z.
    Source: Dauphin et al. 2017, eq. 1; torch.nn.functional.glu
    """

    @staticmethod
    def forward(z, dim):
        return aten.glu.default(z, dim)

    @staticmethod
    def setup_context(ctx, inputs, a):
        z, ctx.dim = inputs
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(z)
        if forward_mode():
            ctx.save_for_forward(z)

    @staticmethod
    def backward(ctx, da):
        (z,) = ctx.saved_tensors
        if first_order():
            return aten.glu_backward.default(da, z, ctx.dim), None
        du, dv = slopes(z, ctx.dim)
        return torch.cat((da * du, da * dv), ctx.dim).to(z.dtype), None

    @staticmethod
    def jvp(ctx, dz, _):
        (z,) = ctx.saved_tensors
        du, dv = slopes(z, ctx.dim)
        u_dot, v_dot = dz.chunk(2, ctx.dim)
        return (u_dot * du + v_dot * dv).to(z.dtype)

    @staticmethod
    def again(inputs, a):
        z, dim = inputs
        return lambda z: GLU.forward(z, dim), (z,)


def slopes(z, dim):
    """∂a/∂u = σ(v) and ∂a/∂v = u σ(v) (1 − σ(v)); in float32 where z is narrower."""
    u, v = (z.float() if z.dtype.itemsize < 4 else z).chunk(2, dim)
    s = torch.sigmoid(v)
    return s, u * s * (1 - s)
