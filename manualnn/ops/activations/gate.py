"""Gated linear unit: one half of the input opens or closes the other."""

import torch

from manualnn.autograd.examples import Example, Twin, inputs, normal
from manualnn.autograd.function import Function

__all__ = ["GLU"]

aten = torch.ops.aten


class GLU(Function):
    """a = u σ(v),  z = (u, v) the two halves along dimension dim
    du = da σ(v);  dv = da u σ(v) (1 − σ(v))
    z (*, 2n, *) -> a (*, n, *)
    Caches z.
    Source: Dauphin et al. 2017, eq. 1; torch.nn.functional.glu
    """

    twin = Twin("glu", "GLU")
    examples = (Example(inputs(normal(4, 6))),)

    @staticmethod
    def forward(z, dim):
        return aten.glu.default(z, dim)

    @staticmethod
    def save(needs, a, z, dim):
        return (z if needs.z else None,), (dim,)

    @staticmethod
    def gradients(needs, da, z, dim):
        du, dv = slopes(z, dim)
        return torch.cat((da * du, da * dv), dim).to(z.dtype)

    @staticmethod
    def kernel_gradients(needs, da, z, dim):
        return aten.glu_backward.default(da, z, dim)

    @staticmethod
    def tangent(step, z, dim):
        du, dv = slopes(z, dim)
        u_dot, v_dot = step.z.chunk(2, dim)
        return (u_dot * du + v_dot * dv).to(z.dtype)

    @staticmethod
    def recompute(inputs, a):
        z, dim = inputs
        return lambda z: GLU.forward(z, dim), (z,)


def slopes(z, dim):
    """∂a/∂u = σ(v) and ∂a/∂v = u σ(v) (1 − σ(v)); in float32 where z is narrower."""
    u, v = (z.float() if z.dtype.itemsize < 4 else z).chunk(2, dim)
    s = torch.sigmoid(v)
    return s, u * s * (1 - s)
