"""Rectifiers whose slope for negative inputs is learned (PReLU) or drawn at random (RReLU)."""

from typing import Any

import torch

from manualnn._torch import prelu_backward, prelu_kernel, transforms_active
from manualnn.autograd.examples import Example, Twin, inputs, normal
from manualnn.autograd.function import Function

__all__ = ["PReLU", "RReLU"]

aten = torch.ops.aten


class PReLU(Function):
    """a = z if z > 0 else w z
    dz = da if z > 0 else w da;  dw = Σ da min(z, 0); at the kink dz = w da
    z (N, C, *), w broadcastable to z -> a (N, C, *)
    Caches z and w.
    Source: He et al. 2015, eq. 1, 10; torch.nn.functional.prelu
    """

    twin = Twin("prelu", "PReLU")
    examples = (Example(inputs(normal(4, 6, away=(0.0,)), normal(6)), kinks=(0.0,)),)

    @staticmethod
    def forward(z, w):
        return prelu_kernel(z, w)

    @staticmethod
    def save(needs, a, z, w):
        return (z if needs.z or needs.w else None, w if needs.z else None), (w.shape,)

    @staticmethod
    def gradients(needs, da, z, w, w_shape):
        dz = torch.where(z > 0, da, w * da) if needs.z else None
        dw = torch.where(z > 0, 0, z * da).sum_to_size(w_shape) if needs.w else None
        return dz, dw

    @staticmethod
    def kernel_gradients(needs, da, z, w, w_shape):
        if not (needs.z and needs.w):  # the kernel computes both
            return PReLU.gradients(needs, da, z, w, w_shape)
        dz, dw = prelu_backward(da, z, w)
        return dz, dw.sum_to_size(w_shape)

    @staticmethod
    def tangent(step, z, w, w_shape):
        a_dot: Any = 0
        if step.z is not None:
            a_dot = a_dot + torch.where(z > 0, step.z, w * step.z)
        if step.w is not None:
            a_dot = a_dot + torch.where(z > 0, 0, z * step.w)
        return a_dot

    @staticmethod
    def recompute(inputs, a):
        z, w = inputs
        return PReLU.forward, (z, w.detach().clone())


class RReLU(Function):
    """a = z if z > 0 else s z,  s drawn uniformly from [lower, upper] for each negative z
    dz = da if z > 0 else s da
    z (*) -> a (*), and the slopes (*): 1 where z > 0
    Caches the slopes, which are g′ itself, and not z.
    Source: Xu et al. 2015; torch.nn.functional.rrelu, whose numbers it draws for the same seed
    """

    twin = Twin("rrelu", "RReLU")
    examples = (
        Example(inputs(normal(4, 6, away=(0.0,))), {"training": True}, (0.0,), random=True),
    )

    outputs = 1

    @staticmethod
    def forward(z, lower, upper):
        slopes = torch.empty_like(z, memory_format=torch.contiguous_format)  # as torch draws
        if transforms_active():  # vmap has no rule for torch's kernel
            slopes = torch.where(z > 0, 1, slopes.uniform_(lower, upper))
            return z * slopes, slopes
        return aten.rrelu_with_noise.default(z, slopes, lower, upper, True), slopes

    @staticmethod
    def save(needs, output, *inputs):
        _, slopes = output
        return (slopes,), ()

    @staticmethod
    def gradients(needs, da, slopes):
        return da * slopes

    @staticmethod
    def tangent(step, slopes):
        return step.z * slopes
