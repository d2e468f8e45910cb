"""Normalisation within one example: over a layer, over a group of channels, by the root mean square."""

import math

import torch

from manualnn.function import Function, first_order
from manualnn.ops.layout import stand_in
from manualnn.ops.norms.formula import Fold, copies, given, gradients, over, tangent, wide
from manualnn.transforms import forward_mode


class LayerNorm(Function):
    """xhat = (x − mu) rstd;  y = gamma xhat + beta;  mu, rstd of each example over its last dimensions
    dgamma = Σ dy xhat;  dbeta = Σ dy;  dxhat = dy gamma
    dx = rstd (dxhat − mean(dxhat) − xhat mean(dxhat xhat))
    x (*, shape), gamma, beta (shape) or None, len(shape) -> y (*, shape), and mu, rstd (*, 1, ...)
    Caches x, mu, rstd if dx or dgamma is needed, gamma if dx is.
    Source: Ba, Kiros and Hinton 2016, eq. 3; torch.nn.functional.layer_norm
    """

    @staticmethod
    def forward(x, gamma, beta, last, eps):
        return torch.native_layer_norm(x, x.shape[x.dim() - last :], gamma, beta, eps)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.mark_non_differentiable(*output[1:])
        LayerNorm.keep(ctx, inputs, output)

    @staticmethod
    def keep(ctx, inputs, output):
        x, gamma, beta, last, ctx.eps = inputs
        ctx.shape = list(x.shape[x.dim() - last :])  # which a kernel takes sooner than a Size
        keep(ctx, x, gamma, beta, output)

    @staticmethod
    def backward(ctx, dy, *_):
        x, gamma, mu, rstd = ctx.saved_tensors
        needs = list(ctx.needs_input_grad[:3])
        if first_order():
            # Of a parameter that it does not multiply by, the kernel reads the shape and the dtype.
            beta = gamma
            if needs[2] and (gamma is None or gamma.dtype != ctx.beta_dtype):
                beta = dy.new_empty(ctx.shape, dtype=ctx.beta_dtype)
            if gamma is None and (needs[1] or x is None):
                gamma = dy.new_empty(ctx.shape, dtype=ctx.dtype or ctx.beta_dtype)
            x, mu, rstd = stand_ins(ctx, dy, x, mu, rstd)
            grads = torch.ops.aten.native_layer_norm_backward(
                dy, x, ctx.shape, mu, rstd, gamma, beta, needs
            )
        else:
            dx, *sums = gradients(dy, x, gamma, layer_fold(dy, ctx.shape), ctx.eps, needs)
            grads = dx, *(d if d is None else d.reshape(ctx.shape) for d in sums)
        return *grads, None, None

    @staticmethod
    def jvp(ctx, dx, dgamma, dbeta, *_):
        x, gamma = ctx.saved_tensors[:2]
        fold = layer_fold(x, ctx.shape)
        return tangent(x, gamma, (dx, dgamma, dbeta), fold, ctx.eps), None, None

    @staticmethod
    def again(inputs, outputs):
        x, gamma, beta, *options = inputs
        return forward_again(LayerNorm, x, (gamma, beta), options)


class GroupNorm(Function):
    """xhat = (x − mu) rstd;  y = gamma xhat + beta;  mu, rstd of each group of channels of each example
    dgamma = Σ dy xhat;  dbeta = Σ dy;  dxhat = dy gamma
    dx = rstd (dxhat − mean(dxhat) − xhat mean(dxhat xhat))
    x (N, C, *), gamma, beta (C) or None -> y (N, C, *), and mu, rstd (N, groups)
    Caches x, mu, rstd if dx or dgamma is needed, gamma if dx is.
    Source: Wu and He 2018, eqs. 1 to 7; torch.nn.functional.group_norm
    """

    @staticmethod
    def forward(x, gamma, beta, groups, eps):
        N, C, *places = x.shape
        x = x if x.is_cpu else packed(x)
        return torch.native_group_norm(x, gamma, beta, N, C, math.prod(places), groups, eps)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.mark_non_differentiable(*output[1:])
        GroupNorm.keep(ctx, inputs, output)

    @staticmethod
    def keep(ctx, inputs, output):
        x, gamma, beta, ctx.groups, ctx.eps = inputs
        keep(ctx, x, gamma, beta, output)

    @staticmethod
    def backward(ctx, dy, *_):
        x, gamma, mu, rstd = ctx.saved_tensors
        needs = list(ctx.needs_input_grad[:3])
        if first_order():
            N, C, *places = dy.shape
            x, mu, rstd = stand_ins(ctx, dy, x, mu, rstd)
            if not x.is_cpu:
                x, dy = packed(x), packed(dy)
            if gamma is None and (needs[1] or needs[2]):
                gamma = dy.new_ones(C, dtype=ctx.dtype if needs[1] else ctx.beta_dtype)
            grads = torch.ops.aten.native_group_norm_backward(
                dy, x, mu, rstd, gamma, N, C, math.prod(places), ctx.groups, needs
            )
        else:
            dx, *sums = gradients(dy, x, gamma, group_fold(dy, ctx.groups), ctx.eps, needs)
            grads = dx, *(d if d is None else d.reshape(dy.shape[1]) for d in sums)
        return *grads, None, None

    @staticmethod
    def jvp(ctx, dx, dgamma, dbeta, *_):
        x, gamma = ctx.saved_tensors[:2]
        fold = group_fold(x, ctx.groups)
        return tangent(x, gamma, (dx, dgamma, dbeta), fold, ctx.eps), None, None

    @staticmethod
    def again(inputs, outputs):
        x, gamma, beta, *options = inputs
        return forward_again(GroupNorm, x, (gamma, beta), options)


class RMSNorm(Function):
    """xhat = x rstd;  y = gamma xhat;  rstd = 1 / √(mean(x²) + ε) of each example over its last dimensions
    dgamma = Σ dy xhat;  dxhat = dy gamma
    dx = rstd (dxhat − xhat mean(dxhat xhat))
    x (*, shape), gamma (shape) or None, len(shape) -> y (*, shape), and rstd (*, 1, ...)
    Caches x; rstd and gamma if dx is needed.
    Source: Zhang and Sennrich 2019, eq. 4; torch.nn.functional.rms_norm
    """

    @staticmethod
    def forward(x, gamma, last, eps):
        shape = x.shape[x.dim() - last :]
        if gamma is not None and gamma.dtype != x.dtype and not x.is_cpu:
            return by_root_mean_square(x, gamma, shape, eps)
        return torch.ops.aten._fused_rms_norm(x, shape, gamma, eps)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.mark_non_differentiable(output[1])
        RMSNorm.keep(ctx, inputs, output)

    @staticmethod
    def keep(ctx, inputs, output):
        x, gamma, last, ctx.eps = inputs
        ctx.shape, rstd = list(x.shape[x.dim() - last :]), output[1]
        need_x, need_gamma = ctx.needs_input_grad[:2]
        needed = need_x or need_gamma
        ctx.save_for_backward(
            x if needed else None, gamma if need_x else None, rstd if need_x else None
        )
        if forward_mode():
            ctx.save_for_forward(x, gamma)

    @staticmethod
    def backward(ctx, dy, *_):
        x, gamma, rstd = ctx.saved_tensors
        needs = list(ctx.needs_input_grad[:2])
        if first_order():
            if rstd is None and needs[1]:
                rstd = torch.ops.aten._fused_rms_norm(x, ctx.shape, None, ctx.eps)[1]
            mixed = gamma is not None and gamma.dtype != x.dtype
            step = one_by_one if x.is_cpu or mixed else in_one_kernel
            return *step(dy, x, gamma, rstd, ctx.shape, needs), None, None
        fold, eps = layer_fold(dy, ctx.shape), epsilon(ctx.eps, x)
        dx, dgamma, _ = gradients(dy, x, gamma, fold, eps, (*needs, False), centred=False)
        return dx, None if dgamma is None else dgamma.reshape(ctx.shape), None, None

    @staticmethod
    def jvp(ctx, dx, dgamma, *_):
        x, gamma = ctx.saved_tensors[:2]
        fold, eps = layer_fold(x, ctx.shape), epsilon(ctx.eps, x)
        return tangent(x, gamma, (dx, dgamma, None), fold, eps, centred=False), None

    @staticmethod
    def again(inputs, outputs):
        x, gamma, *options = inputs
        return forward_again(RMSNorm, x, (gamma,), options)


def by_root_mean_square(x, gamma, shape, eps):
    """As torch computes where dtypes are mixed: all in float32, rounded once."""
    dims, z = tuple(range(-len(shape), 0)), wide(x)
    rstd = torch.rsqrt(z.pow(2).mean(dims, keepdim=True) + epsilon(eps, x))
    xhat = z * rstd
    return (xhat if gamma is None else xhat * gamma).to(x.dtype), rstd


def in_one_kernel(dy, x, gamma, rstd, shape, needs):
    return torch.ops.aten._fused_rms_norm_backward(dy, x, shape, rstd, gamma, needs)


def one_by_one(dy, x, gamma, rstd, shape, needs):
    """The formula in the steps that torch's autograd takes on the CPU, rounded as they are."""
    need_x, need_gamma = needs
    dims = tuple(range(-len(shape), 0))
    dy, z = wide(dy), wide(x)
    dx = dgamma = None
    if need_gamma:
        dgamma = dy * (z * rstd)
        rows = tuple(range(x.dim() - len(shape)))
        dgamma = dgamma.sum(rows) if rows else dgamma  # a sum over no dimension would sum over all
    if need_x:
        dxhat = dy if gamma is None else dy * gamma
        drstd = (dxhat * z).sum(dims, keepdim=True)
        dmean = drstd * (rstd.pow(3) * -0.5)  # rstd = (mean(x²) + ε) ** −½
        dx = (dxhat * rstd).add_(z * (dmean / math.prod(shape) * 2)).to(x.dtype)
    return dx, dgamma


def epsilon(eps, x):
    return torch.finfo(wide(x).dtype).eps if eps is None else eps


def keep(ctx, x, gamma, beta, output):
    _, mu, rstd = output
    need_x, need_gamma, need_beta = ctx.needs_input_grad[:3]
    needed = need_x or need_gamma
    ctx.layout = None if needed else (x.shape, x.stride(), mu.shape, mu.dtype)
    ctx.dtype = gamma.dtype if need_gamma else None
    ctx.beta_dtype = beta.dtype if need_beta else None
    ctx.save_for_backward(
        x if needed else None,
        gamma if need_x else None,
        mu if needed else None,
        rstd if needed else None,
    )
    if forward_mode():
        ctx.save_for_forward(x, gamma)


def stand_ins(ctx, dy, x, mu, rstd):
    """For dbeta alone, which depends on nothing but dy: the kernel wants to see the others all the same."""
    if x is None:
        *layout, shape, dtype = ctx.layout
        x, mu = stand_in(dy, *layout), dy.new_ones(shape, dtype=dtype)
        rstd = mu
    return x, mu, rstd


def forward_again(op, x, parameters, options):
    if any(p is not None and not p.is_contiguous() for p in parameters):
        return None  # a copy lies in memory in another way, and another loop may run
    present = tuple(p is not None for p in parameters)

    def make(x, *parameters):
        return op.forward(x, *given(parameters, *present), *options)[0]

    return make, (x, *copies(*parameters))


def packed(x):
    """In the memory format that torch.group_norm asks for before it calls a device's kernel."""
    return x.contiguous(memory_format=torch._prims_common.suggest_memory_format(x))


def layer_fold(x, shape):
    rows, size = math.prod(x.shape[: x.dim() - len(shape)]), math.prod(shape)
    return Fold((rows, size), (size,), finite_mean, (0,))


def finite_mean(t):
    """The mean of each row; NaN for ±∞, which PyTorch's kernel makes of squares that overflow."""
    mean = t.mean(1, keepdim=True)
    return mean + 0 * mean


def group_fold(x, groups):
    N, C, *places = x.shape
    shape = (N, groups, C // groups, math.prod(places))
    return Fold(shape, (groups, C // groups, 1), over(2, 3), (0, 3))


def without_statistics(op):
    """forward and what it keeps, without the detour of returning the statistics."""

    def forward(ctx, *inputs):
        output = op.forward(*inputs)
        if forward_mode():
            op.setup_context(ctx, inputs, output)
            return output
        op.keep(ctx, inputs, output)
        return (output[0],)

    return forward


for op in (LayerNorm, GroupNorm, RMSNorm):
    op._set_eager_face(without_statistics(op), op._general_backward)
