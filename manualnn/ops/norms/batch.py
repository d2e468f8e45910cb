"""Batch normalisation by the batch's own statistics, by given ones, and by each instance's."""

import math
from typing import Any, NamedTuple

import torch

from manualnn import kernels
from manualnn._torch import (
    batch_norm_backend,
    batch_norm_backward_kernel,
    batch_norm_kernel,
    suggest_memory_format,
    unsafe_view,
)
from manualnn.autograd.blockwise import Elementwise
from manualnn.autograd.examples import Example, Twin, fixed, inputs, normal, weights
from manualnn.autograd.function import Function
from manualnn.autograd.moment import eager, first_order, plain
from manualnn.memory import spare_like
from manualnn.ops.layout import placeholder
from manualnn.ops.norms import formula
from manualnn.ops.norms.formula import Fold, copies, given, over, wide

NATIVE = 0  # PyTorch's number for its own kernel; those of the makers of the device follow


class BatchNorm(Function):
    """xhat = (x − mu) rstd;  y = gamma xhat + beta;  mu = mean(x),  rstd = 1 / √(mean((x − mu)²) + ε)
    dgamma = Σ dy xhat;  dbeta = Σ dy;  dx = rstd gamma (dy − mean(dy) − xhat mean(dy xhat))
    x (N, C, *), gamma, beta (C) or None -> y (N, C, *); mu, rstd (C), all over N and *; a kernel's reserve
    Caches x, mu, rstd if dx or dgamma is needed, gamma if dx is.
    Source: Ioffe and Szegedy 2015, algorithm 1 and section 3; torch.nn.functional.batch_norm

    Moves the running statistics, where given, by momentum towards mu and the unbiased variance.
    """

    twin = Twin("batch_norm", "BatchNorm1d")
    _gamma_beta = normal(3), normal(3)
    examples = (
        Example(
            inputs(normal(4, 3, 2), fixed(None), fixed(None), *_gamma_beta), {"training": True}
        ),
    )

    outputs = 1

    @staticmethod
    def forward(x, gamma, beta, running_mean, running_var, momentum, eps):
        return by_its_statistics(x, gamma, beta, running_mean, running_var, momentum, eps)

    @staticmethod
    def save(needs, output, *inputs):
        *_, eps = inputs
        reads = kernel_reads(needs, output, *inputs)
        return saved(needs, output, *inputs[:2], reads.backend), (eps, reads)

    @staticmethod
    def gradients(needs, dy, x, gamma, mu, rstd, reserve, eps, _):
        return formula.gradients(needs, dy, x, gamma, batch_fold(dy), eps)

    @staticmethod
    def kernel_gradients(needs, dy, x, gamma, mu, rstd, reserve, eps, reads, over=None):
        x = placeholder(dy, *reads.layout) if x is None else x
        return by_kernel(needs, dy, x, gamma, (mu, rstd, reserve), eps, reads, over)

    @staticmethod
    def tangent(step, x, gamma, mu, rstd, reserve, eps, _):
        return formula.tangent(step, x, gamma, batch_fold(x), eps)

    @staticmethod
    def recompute(inputs, outputs):
        *tensors, _, eps = inputs
        return output_again(*tensors, outputs[1:3], backend_of(*inputs), eps)


class RunningNorm(Function):
    """y = gamma (x − mu) rstd + beta;  rstd = 1 / √(var + ε), mu and var given: those of evaluation
    dgamma = Σ dy (x − mu) rstd;  dbeta = Σ dy;  dx = dy gamma rstd
    x (N, C, *); gamma, beta (C) or None; mu, var (C) -> y (N, C, *)
    Caches x and a copy of mu if dgamma is needed; gamma if dx is; a copy of var.
    Source: Ioffe and Szegedy 2015, algorithm 2; torch.nn.functional.batch_norm
    """

    twin = Twin("batch_norm", "BatchNorm1d")
    examples = (
        Example(
            inputs(normal(4, 3, 2), normal(3), weights(3), normal(3), normal(3)),
            label="eval",
            not_variables=("running_mean", "running_var"),
        ),
    )

    @staticmethod
    def forward(x, gamma, beta, mu, var, eps):
        return by_statistics(x, gamma, beta, mu, var, eps)

    @staticmethod
    def save(needs, y, x, gamma, beta, mu, var, eps):
        # Copies: a training step between may move them, and no version counter would tell.
        tensors = (
            x if needs.gamma else None,
            gamma if needs.x else None,
            mu.clone() if needs.gamma else None,
            var.clone() if needs.x or needs.gamma else None,
        )
        x_layout = None if needs.gamma else (x.shape, x.stride())
        return tensors, (eps, x_layout, beta.dtype if needs.beta and beta is not None else None)

    @staticmethod
    def gradients(needs, dy, x, gamma, mu, var, eps, *_):
        dx = dgamma = dbeta = None
        fold = batch_fold(dy)
        shape, dtype = dy.shape, dy.dtype
        dy = wide(dy).reshape(fold.x)
        if needs.beta:
            dbeta = dy.sum(fold.share)
        if needs.x or needs.gamma:
            rstd = torch.rsqrt(wide(var).reshape(fold.gamma) + eps)
        if needs.gamma:
            xhat = (wide(x).reshape(fold.x) - wide(mu).reshape(fold.gamma)) * rstd
            dgamma = (dy * xhat).sum(fold.share)
        if needs.x:
            dx = dy * rstd if gamma is None else dy * (wide(gamma).reshape(fold.gamma) * rstd)
            dx = dx.reshape(shape).to(dtype)
        return dx, dgamma, dbeta

    @staticmethod
    def kernel_gradients(needs, dy, x, gamma, mu, var, eps, x_layout, beta_dtype):
        if var is None:  # dbeta alone
            var = dy.new_ones(dy.shape[1], dtype=beta_dtype)
        x = placeholder(dy, *x_layout) if x is None else x
        mu = var if mu is None else mu
        dy, mask = read_alike(dy, x), list(needs[:3])
        return torch.ops.aten.native_batch_norm_backward(
            dy, x, dense(gamma), mu, var, None, None, False, eps, mask
        )

    @staticmethod
    def tangent(step, x, gamma, mu, var, eps, *_):
        fold = batch_fold(x)
        rstd = torch.rsqrt(wide(var).reshape(fold.gamma) + eps)
        dy = torch.zeros_like(wide(x)).reshape(fold.x)
        if step.x is not None:
            dxhat = wide(step.x).reshape(fold.x) * rstd
            dy = dy + (dxhat if gamma is None else dxhat * wide(gamma).reshape(fold.gamma))
        if step.gamma is not None:
            xhat = (wide(x).reshape(fold.x) - wide(mu).reshape(fold.gamma)) * rstd
            dy = dy + xhat * wide(step.gamma).reshape(fold.gamma)
        if step.beta is not None:
            dy = dy + wide(step.beta).reshape(fold.gamma)
        return dy.reshape(x.shape).to(x.dtype)

    @staticmethod
    def recompute(inputs, output):
        x, gamma, beta, mu, var, eps = inputs
        present = (gamma is not None, beta is not None)

        def make(x, mu, var, *parameters):
            return by_statistics(x, *given(parameters, *present), mu, var, eps)

        return make, (x, *copies(mu, var, gamma, beta))


class InstanceNorm(Function):
    """xhat = (x − mu) rstd;  y = gamma xhat + beta;  mu, rstd of each channel of each example
    dgamma = Σ dy xhat;  dbeta = Σ dy;  dx = rstd gamma (dy − mean(dy) − xhat mean(dy xhat))
    x (N, C, *), gamma, beta (C) or None -> y (N, C, *), and mu, rstd (N C), all over *
    Caches x, mu, rstd if dx or dgamma is needed, gamma if dx is.
    Source: Ulyanov, Vedaldi and Lempitsky 2016, eq. 1; torch.nn.functional.instance_norm

    To the kernel it is a batch of one example with N C channels; running statistics are given so, too.
    """

    twin = Twin("instance_norm", "InstanceNorm2d")
    examples = (
        Example(inputs(normal(2, 3, 2, 2), fixed(None), fixed(None), normal(3), normal(3))),
    )

    outputs = 1

    @staticmethod
    def forward(x, gamma, beta, running_mean, running_var, momentum, eps):
        y, *intermediates = by_its_statistics(
            unrolled(x),
            repeated(gamma, x),
            repeated(beta, x),
            running_mean,
            running_var,
            momentum,
            eps,
        )
        # No view, which nobody might overwrite who comes after: a ReLU in place, say.
        return unsafe_view(y, x.shape), *intermediates

    @staticmethod
    def backend(x, gamma, *rest):
        return NATIVE if x.is_cpu else backend_of(unrolled(x), repeated(gamma, x), *rest)

    @staticmethod
    def save(needs, output, *inputs):
        *_, eps = inputs
        reads = kernel_reads(needs, output, *inputs, backend=InstanceNorm.backend(*inputs))
        return saved(needs, output, *inputs[:2], reads.backend), (eps, reads)

    @staticmethod
    def gradients(needs, dy, x, gamma, mu, rstd, reserve, eps, _):
        return formula.gradients(needs, dy, x, gamma, instance_fold(dy), eps)

    @staticmethod
    def kernel_gradients(needs, dy, x, gamma, mu, rstd, reserve, eps, reads):
        flat = dy.reshape(1, dy.shape[0] * dy.shape[1], *dy.shape[2:])
        x = torch.empty_like(flat) if x is None else unrolled(x)
        statistics = mu, rstd, reserve
        dx, *sums = by_kernel(needs, flat, x, repeated(gamma, dy), statistics, eps, reads)
        dx = dx if dx is None else dx.view(dy.shape)
        return dx, *(d if d is None else d.view(dy.shape[:2]).sum(0) for d in sums)

    @staticmethod
    def tangent(step, x, gamma, mu, rstd, reserve, eps, _):
        return formula.tangent(step, x, gamma, instance_fold(x), eps)

    @staticmethod
    def recompute(inputs, outputs):
        x, gamma, beta, *running, _, eps = inputs
        wider = repeated(gamma, x), repeated(beta, x), *running
        call = InstanceNorm.backend(*inputs), eps
        found = output_again(unrolled(x), *wider, outputs[1:3], *call)
        if found is None:
            return None
        whole, (_, *rest) = found

        def make(x, *rest):
            return whole(unrolled(x), *rest).view(x.shape)

        return make, (x, *rest)


def by_its_statistics(x, gamma, beta, running_mean, running_var, momentum, eps):
    """y, mu, rstd and what a kernel reserves, by the kernel that torch.batch_norm takes, or by ours."""
    if eager() and first_order():
        found = kernels.batch_norm.forward(x, gamma, beta, running_mean, running_var, momentum, eps)
        if found is not None:
            return found
    return batch_norm_kernel(
        x,
        dense(gamma),
        dense(beta),
        running_mean,
        running_var,
        True,
        momentum,
        eps,
        torch.backends.cudnn.enabled,
    )[:4]


def by_statistics(x, gamma, beta, mu, var, eps):
    """gamma (x − mu) / √(var + ε) + beta, by the kernel that torch.batch_norm takes."""
    return batch_norm_kernel(
        x, *map(dense, (gamma, beta, mu, var)), False, 0.0, eps, torch.backends.cudnn.enabled
    )[0]


def dense(parameter):
    """With no gaps in memory: PyTorch's kernels for the CPU read a strided gamma as if there were none."""
    return parameter if parameter is None or parameter.is_contiguous() else parameter.contiguous()


def read_alike(dy, x):
    """dy as it is, or laid out as x, where PyTorch's kernel for the CPU would take one for the other.

    Of an image one pixel high, or wide, or alone, it may take rows of channels for rows of pixels: wrong
    numbers, in silence. Two tensors that it knows apart it reads one by one.
    """
    if dy.stride() == x.stride() or not dy.is_cpu or not plain(dy):
        return dy
    both = _in_some_format(dy) and _in_some_format(x)
    if not both or suggest_memory_format(dy) != suggest_memory_format(x):
        return dy
    return torch.empty_strided(x.shape, x.stride(), dtype=dy.dtype).copy_(dy)


def _in_some_format(t):
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    by_channels = formats.get(t.dim())
    return t.is_contiguous() or (
        by_channels is not None and t.is_contiguous(memory_format=by_channels)
    )


def backend_of(x, gamma, beta, running_mean, running_var, _, eps):
    """Whose kernel that is, in PyTorch's numbers; its own serves backward wherever it is asked to."""
    if not x.is_cuda:
        return NATIVE
    others_refuse = gamma is None or beta is None or (running_mean is None) != (running_var is None)
    if others_refuse or not plain(x):
        return NATIVE
    running = gamma if running_mean is None else running_mean  # it asks whether there is one
    backend: Any = batch_norm_backend(x, gamma, beta, running, running, True, eps)
    return int(backend)


class KernelReads(NamedTuple):
    """What the kernel asks besides: whose it is, and of tensors that were not saved how they lie."""

    backend: int
    layout: tuple | None
    dtype: torch.dtype | None


NATIVE_READS = KernelReads(NATIVE, None, None)


def kernel_reads(needs, output, *inputs, backend=None):
    backend = backend_of(*inputs) if backend is None else backend
    if needs.x or needs.gamma:
        return NATIVE_READS if backend == NATIVE else KernelReads(backend, None, None)
    x, mu = inputs[0], output[1]
    return KernelReads(backend, (x.shape, x.stride()), mu.dtype)


def saved(needs, output, x, gamma, backend):
    _, mu, rstd, reserve = output
    if not (needs.x or needs.gamma):
        return None, None, None, None, None
    others = backend != NATIVE
    return x, gamma if needs.x or others else None, mu, rstd, reserve if others else None


def by_kernel(needs, dy, x, gamma, statistics, eps, reads, over=None):
    mu, rstd, reserve = statistics
    gamma, dy, mask = dense(gamma), read_alike(dy, x), list(needs[:3])
    if mu is None:  # dbeta alone, which depends on nothing but dy
        mu = rstd = dy.new_ones(dy.shape[1], dtype=reads.dtype)
    if reserve is None:
        if eager():
            empty_like = (lambda x: dy) if over is dy else spare_like
            found = kernels.batch_norm.backward(mask, dy, x, gamma, mu, rstd, empty_like)
            if found is not None:
                return found
        # mu and rstd a second time: the kernel reads off the running statistics which dtypes are mixed.
        return torch.ops.aten.native_batch_norm_backward(
            dy, x, gamma, mu, rstd, mu, rstd, True, eps, mask
        )
    return batch_norm_backward_kernel(
        reads.backend, x, dy, gamma, None, None, mu, rstd, True, eps, mask, reserve
    )


def output_again(x, gamma, beta, running_mean, running_var, statistics, backend, eps):
    """How to make y again without its statistics; where no kernel does, by the kernel that did."""
    if not x.numel():
        return None
    for p in (gamma, beta, running_mean, running_var):
        if p is not None and not p.is_contiguous():
            return None  # a copy lies in memory in another way, and another loop would run
    mu, rstd = statistics
    if backend == NATIVE and x.is_cpu and is_dense(x):
        scale = scale_of(gamma, rstd)
        if beta is None:
            return SHIFTED, (x, scale, mu)
        return SHIFTED_BY_BETA, (x, scale, mu, beta.detach().clone())
    present, parameters = (gamma is not None, beta is not None), copies(gamma, beta)
    if backend == NATIVE and not x.is_cpu:

        def make(x, mu, rstd, *parameters):
            return in_one_pass(x, *given(parameters, *present), mu, rstd, eps)

        return make, (x, mu, rstd, *parameters)
    channels, dtype = mu.shape, mu.dtype

    def make_by_statistics(x, *parameters):
        running = x.new_zeros(channels, dtype=dtype), x.new_ones(channels, dtype=dtype)
        return by_its_statistics(x, *given(parameters, *present), *running, 0.0, eps)[0]

    return make_by_statistics, (x, *parameters)


def is_dense(x):
    """Whether PyTorch's kernel for the CPU computes y = x (rstd gamma) + (beta − mu rstd gamma)."""
    return (
        x.is_contiguous()
        or (x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last))
        or (x.dim() == 5 and x.is_contiguous(memory_format=torch.channels_last_3d))
    )


def in_one_pass(x, gamma, beta, mu, rstd, eps):
    """xhat gamma + beta from the statistics, rounded as the kernel that found them rounds."""
    if not x.is_cpu:
        return torch.batch_norm_elemt(x, gamma, beta, mu, rstd, eps)
    return shifted(x, scale_of(gamma, rstd), mu, beta)


def scale_of(gamma, rstd):
    """gamma rstd, without a history"""
    return wide(rstd) if gamma is None else wide(rstd) * wide(gamma.detach())


def shifted(x, scale, mu, beta=None):
    """scale (x − mu) + beta, by the CPU's kernel of evaluation, which starts with gamma / √(var + ε).

    A variance of 1 leaves the scale as it is, to the last bit: in float32 at least, where it multiplies.
    """
    mu, beta = wide(mu), beta if beta is None else wide(beta)
    return torch.native_batch_norm(x, scale, beta, mu, torch.ones_like(mu), False, 0.0, 0.0)[0]


SHIFTED, SHIFTED_BY_BETA = (Elementwise(shifted, by_channel=count) for count in (2, 3))


def batch_fold(x):
    N, C, *places = x.shape
    return Fold((N, C, math.prod(places)), (C, 1), over(0, 2), (0, 2))


def instance_fold(x):
    return batch_fold(x)._replace(mean=over(2))


def unrolled(x):
    """(N, C, *) -> (1, N C, *)"""
    N, C, *places = x.shape
    return x.contiguous().view(1, N * C, *places)


def repeated(parameter, x):
    """(C) -> (N C), once for each example."""
    return parameter if parameter is None else parameter.repeat(x.shape[0])
