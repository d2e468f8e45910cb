"""Normalisation within one example: over a layer, over a group of channels, by the root mean square."""

import math
from typing import NamedTuple

import torch

from manualnn._torch import rms_norm_backward_kernel, rms_norm_kernel, suggest_memory_format
from manualnn.autograd.examples import Example, Twin, fixed, inputs, normal
from manualnn.autograd.function import Function
from manualnn.ops.layout import placeholder
from manualnn.ops.norms import formula
from manualnn.ops.norms.formula import Fold, copies, given, over, wide


class LayerNorm(Function):
    """xhat = (x − mu) rstd;  y = gamma xhat + beta;  mu, rstd of each example over its last dimensions
    dgamma = Σ dy xhat;  dbeta = Σ dy;  dxhat = dy gamma
    dx = rstd (dxhat − mean(dxhat) − xhat mean(dxhat xhat))
    x (*, shape), gamma, beta (shape) or None, len(shape) -> y (*, shape), and mu, rstd (*, 1, ...)
    Caches x, mu, rstd if dx or dgamma is needed, gamma if dx is.
    Source: Ba, Kiros and Hinton 2016, eq. 3; torch.nn.functional.layer_norm
    """

    twin = Twin("layer_norm", "LayerNorm")
    examples = (Example(inputs(normal(4, 3, 2), fixed((3, 2)), normal(3, 2), normal(3, 2))),)

    outputs = 1

    @staticmethod
    def forward(x, gamma, beta, last, eps):
        return torch.native_layer_norm(x, x.shape[x.dim() - last :], gamma, beta, eps)

    @staticmethod
    def save(needs, output, x, gamma, beta, last, eps):
        shape = list(x.shape[x.dim() - last :])  # which a kernel takes sooner than a Size
        return saved(needs, output, x, gamma), (
            shape,
            eps,
            kernel_reads(needs, output, x, gamma, beta),
        )

    @staticmethod
    def gradients(needs, dy, x, gamma, mu, rstd, shape, eps, _):
        fold = layer_fold(dy, shape)
        dx, *sums = formula.gradients(needs, dy, x, gamma, fold, eps)
        return dx, *(d if d is None else d.reshape(shape) for d in sums)

    @staticmethod
    def kernel_gradients(needs, dy, x, gamma, mu, rstd, shape, eps, reads):
        # Of a parameter that it does not multiply by, the kernel reads the shape and the dtype.
        beta = gamma
        if needs.beta and (gamma is None or gamma.dtype != reads.beta_dtype):
            beta = dy.new_empty(shape, dtype=reads.beta_dtype)
        if gamma is None and (needs.gamma or x is None):
            gamma = dy.new_empty(shape, dtype=reads.gamma_dtype or reads.beta_dtype)
        x, mu, rstd = stand_ins(reads, dy, x, mu, rstd)
        return torch.ops.aten.native_layer_norm_backward(
            dy, x, shape, mu, rstd, gamma, beta, list(needs[:3])
        )

    @staticmethod
    def tangent(step, x, gamma, mu, rstd, shape, eps, _):
        return formula.tangent(step, x, gamma, layer_fold(x, shape), eps)

    @staticmethod
    def recompute(inputs, outputs):
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

    twin = Twin("group_norm", "GroupNorm")
    examples = (Example(inputs(normal(2, 3, 2, 2), fixed(3), normal(3), normal(3))),)

    outputs = 1

    @staticmethod
    def forward(x, gamma, beta, groups, eps):
        N, C, *places = x.shape
        x = x if x.is_cpu else packed(x)
        return torch.native_group_norm(x, gamma, beta, N, C, math.prod(places), groups, eps)

    @staticmethod
    def save(needs, output, x, gamma, beta, groups, eps):
        return saved(needs, output, x, gamma), (
            groups,
            eps,
            kernel_reads(needs, output, x, gamma, beta),
        )

    @staticmethod
    def gradients(needs, dy, x, gamma, mu, rstd, groups, eps, _):
        fold = group_fold(dy, groups)
        dx, *sums = formula.gradients(needs, dy, x, gamma, fold, eps)
        return dx, *(d if d is None else d.reshape(dy.shape[1]) for d in sums)

    @staticmethod
    def kernel_gradients(needs, dy, x, gamma, mu, rstd, groups, eps, reads):
        N, C, *places = dy.shape
        x, mu, rstd = stand_ins(reads, dy, x, mu, rstd)
        if not x.is_cpu:
            x, dy = packed(x), packed(dy)
        if gamma is None and (needs.gamma or needs.beta):
            gamma = dy.new_ones(C, dtype=reads.gamma_dtype if needs.gamma else reads.beta_dtype)
        return torch.ops.aten.native_group_norm_backward(
            dy, x, mu, rstd, gamma, N, C, math.prod(places), groups, list(needs[:3])
        )

    @staticmethod
    def tangent(step, x, gamma, mu, rstd, groups, eps, _):
        return formula.tangent(step, x, gamma, group_fold(x, groups), eps)

    @staticmethod
    def recompute(inputs, outputs):
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

    twin = Twin("rms_norm", "RMSNorm")
    examples = (Example(inputs(normal(4, 3, 2), fixed((2,)), normal(2))),)

    outputs = 1

    @staticmethod
    def forward(x, gamma, last, eps):
        shape = x.shape[x.dim() - last :]
        if gamma is not None and gamma.dtype != x.dtype and not x.is_cpu:
            return by_root_mean_square(x, gamma, shape, eps)
        return rms_norm_kernel(x, shape, gamma, eps)

    @staticmethod
    def save(needs, output, x, gamma, last, eps):
        needed = needs.x or needs.gamma
        _, rstd = output
        tensors = x if needed else None, gamma if needs.x else None, rstd if needs.x else None
        return tensors, (list(x.shape[x.dim() - last :]), eps)

    @staticmethod
    def gradients(needs, dy, x, gamma, rstd, shape, eps):
        fold, eps = layer_fold(dy, shape), epsilon(eps, x)
        dx, dgamma, _ = formula.gradients(needs, dy, x, gamma, fold, eps, centred=False)
        return dx, dgamma if dgamma is None else dgamma.reshape(shape)

    @staticmethod
    def kernel_gradients(needs, dy, x, gamma, rstd, shape, eps):
        if rstd is None and needs.gamma:
            rstd = rms_norm_kernel(x, shape, None, eps)[1]
        mixed = gamma is not None and gamma.dtype != x.dtype
        step = one_by_one if x.is_cpu or mixed else in_one_kernel
        return step(dy, x, gamma, rstd, shape, list(needs[:2]))

    @staticmethod
    def tangent(step, x, gamma, rstd, shape, eps):
        return formula.tangent(step, x, gamma, layer_fold(x, shape), epsilon(eps, x), centred=False)

    @staticmethod
    def recompute(inputs, outputs):
        x, gamma, *options = inputs
        return forward_again(RMSNorm, x, (gamma,), options)


def by_root_mean_square(x, gamma, shape, eps):
    """As torch computes where dtypes are mixed: all in float32, rounded once."""
    dims, z = tuple(range(-len(shape), 0)), wide(x)
    rstd = torch.rsqrt(z.pow(2).mean(dims, keepdim=True) + epsilon(eps, x))
    xhat = z * rstd
    return (xhat if gamma is None else xhat * gamma).to(x.dtype), rstd


def in_one_kernel(dy, x, gamma, rstd, shape, needs):
    return rms_norm_backward_kernel(dy, x, shape, rstd, gamma, needs)


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


class KernelReads(NamedTuple):
    """What the kernels ask of tensors that were not saved."""

    x_layout: tuple | None
    statistics: tuple | None
    gamma_dtype: torch.dtype | None
    beta_dtype: torch.dtype | None


def saved(needs, output, x, gamma):
    _, mu, rstd = output
    if not (needs.x or needs.gamma):
        return None, None, None, None
    return x, gamma if needs.x else None, mu, rstd


def kernel_reads(needs, output, x, gamma, beta):
    needed = needs.x or needs.gamma
    return KernelReads(
        None if needed else (x.shape, x.stride()),
        None if needed else (output[1].shape, output[1].dtype),
        gamma.dtype if needs.gamma and gamma is not None else None,
        beta.dtype if needs.beta and beta is not None else None,
    )


def stand_ins(reads, dy, x, mu, rstd):
    """For dbeta alone, which depends on nothing but dy: the kernel wants to see the others all the same."""
    if x is None:
        shape, dtype = reads.statistics
        x, mu = placeholder(dy, *reads.x_layout), dy.new_ones(shape, dtype=dtype)
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
    return x.contiguous(memory_format=suggest_memory_format(x))


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
