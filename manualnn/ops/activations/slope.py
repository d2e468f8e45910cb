"""Rectifiers whose slope for negative inputs is learned (PReLU) or drawn at random (RReLU)."""

import torch

from manualnn.function import Function, first_order
from manualnn.transforms import forward_mode, transforms_active

aten = torch.ops.aten


class PReLU(Function):
    """a = z if z > 0 else w z
    dz = da if z > 0 else w da;  dw = Σ da min(z, 0); at the kink dz = w da
    z (N, C, *), w broadcastable to z -> a (N, C, *)
    Caches z and w.
    Source: He et al. 2015, eq. 1, 10; torch.nn.functional.prelu
    """

    @staticmethod
    def forward(z, w):
        return aten._prelu_kernel.default(z, w)

    @staticmethod
    def setup_context(ctx, inputs, a):
        z, w = inputs
        ctx.w_shape = w.shape
        need_z, need_w = ctx.needs_input_grad
        ctx.save_for_backward(z if need_z or need_w else None, w if need_z else None)
        if forward_mode():
            ctx.save_for_forward(z, w)

    @staticmethod
    def backward(ctx, da):
        z, w = ctx.saved_tensors
        need_z, need_w = ctx.needs_input_grad
        dz = dw = None
        if need_z and need_w and first_order():
            dz, dw = aten._prelu_kernel_backward.default(da, z, w)
            return dz, dw.sum_to_size(ctx.w_shape)
        if need_z:
            dz = torch.where(z > 0, da, w * da)
        if need_w:
            dw = torch.where(z > 0, 0, z * da).sum_to_size(ctx.w_shape)
        return dz, dw

    @staticmethod
    def jvp(ctx, dz, dw):
        z, w = ctx.saved_tensors
        da = 0
        if dz is not None:
            da = da + torch.where(z > 0, dz, w * dz)
        if dw is not None:
            da = da + torch.where(z > 0, 0, z * dw)
        return da

    @staticmethod
    def again(inputs, a):
        z, w = inputs
        return PReLU.forward, (z, w.detach().clone())


class RReLU(Function):
    """a = z if z > 0 else s z,  s drawn uniformly from [lower, upper] for each negative z
    dz = da if z > 0 else s da
    z (*) -> a (*), and the slopes (*): 1 where z > 0
    Caches the slopes, which are g′ itself, and not z.
    Source: Xu et al. 2015; torch.nn.functional.rrelu, whose numbers it draws for the same seed
    """

    @staticmethod
    def forward(z, lower, upper):
        slopes = torch.empty_like(z, memory_format=torch.contiguous_format)  # as torch draws
        if transforms_active():  # vmap has no rule for torch's kernel
            slopes = torch.where(z > 0, 1, slopes.uniform_(lower, upper))
            return z * slopes, slopes
        return aten.rrelu_with_noise.default(z, slopes, lower, upper, True), slopes

    @staticmethod
    def setup_context(ctx, inputs, output):
        _, slopes = output
        ctx.mark_non_differentiable(slopes)
        ctx.save_for_backward(slopes)
        if forward_mode():
            ctx.save_for_forward(slopes)

    @staticmethod
    def backward(ctx, da, _):
        (slopes,) = ctx.saved_tensors
        return da * slopes, None, None

    @staticmethod
    def jvp(ctx, dz, *_):
        (slopes,) = ctx.saved_tensors
        return dz * slopes, None
