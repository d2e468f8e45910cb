"""Batch normalisation by the statistics of a batch that lies in several processes."""

import torch
from torch import distributed

from manualnn.autograd.function import Function
from manualnn.ops.norms import formula
from manualnn.ops.norms.batch import batch_fold, in_one_pass
from manualnn.ops.norms.formula import copies, given, wide


class SyncBatchNorm(Function):
    """BatchNorm; mu and rstd are those of all processes' x together, mean() is over all their examples
    dgamma = Σ dy xhat;  dbeta = Σ dy, of this process: who trains in several adds them up for all layers
    dx = rstd gamma (dy − mean(dy) − xhat mean(dy xhat))
    x (N, C, *), gamma, beta (C) or None -> y (N, C, *); mu, rstd (C); counts, N times places by process
    Caches x, mu, rstd, counts if dx or dgamma is needed, gamma if dx is.
    Source: Ioffe and Szegedy 2015, algorithm 1; torch.nn.SyncBatchNorm

    On any device and backend. Every process must take part in forward and in backward, and in a second
    backward, too: also one whose batch is empty.
    """

    outputs = 1

    @staticmethod
    def forward(x, gamma, beta, running_mean, running_var, momentum, eps, group):
        found = statistics_on_cpu if x.is_cpu else statistics_by_kernels
        mu, rstd, counts = found(x, running_mean, running_var, momentum, eps, group)
        y = in_one_pass(x, gamma, beta, mu, rstd, eps) if x.numel() else torch.empty_like(x)
        return y, mu, rstd, counts

    @staticmethod
    def save(needs, output, x, gamma, *rest):
        *_, eps, group = rest
        _, mu, rstd, counts = output
        if not (needs.x or needs.gamma):
            return (None, None, None, None, None), (eps, group)
        return (x, gamma if needs.x else None, mu, rstd, counts), (eps, group)

    @staticmethod
    def gradients(needs, dy, x, gamma, mu, rstd, counts, eps, group):
        fold = batch_fold(dy) if x is None else fold_of_all(dy, counts, group)
        return formula.gradients(needs, dy, x, gamma, fold, eps)

    @staticmethod
    def kernel_gradients(needs, dy, x, gamma, mu, rstd, counts, eps, group):
        if x is None:  # dbeta alone, which no other process needs
            return SyncBatchNorm.gradients(needs, dy, x, gamma, mu, rstd, counts, eps, group)
        found = gradients_on_cpu if x.is_cpu else gradients_by_kernels
        return found(needs, dy, x, gamma, mu, rstd, counts, group)

    @staticmethod
    def tangent(step, x, gamma, mu, rstd, counts, eps, group):
        return formula.tangent(step, x, gamma, fold_of_all(x, counts, group), eps)

    @staticmethod
    def recompute(inputs, outputs):
        x, gamma, beta, *_, eps, _ = inputs
        if not x.numel():
            return None
        present = (gamma is not None, beta is not None)

        def make(x, mu, rstd, *parameters):
            return in_one_pass(x, *given(parameters, *present), mu, rstd, eps)

        return make, (x, *outputs[1:3], *copies(gamma, beta))


class Total(Function):
    """y = Σ x over all processes, the same in each
    dx = Σ dy over all processes
    """

    @staticmethod
    def forward(x, group):
        y = x.clone()
        distributed.all_reduce(y, group=group)
        return y

    @staticmethod
    def save(needs, y, x, group):
        return (), (group,)

    @staticmethod
    def gradients(needs, dy, group):
        return Total.apply(dy, group)

    @staticmethod
    def tangent(step, group):
        return Total.apply(step.x, group)


def fold_of_all(x, counts, group):
    m = counts.sum().to(wide(x).dtype)

    def mean(t):
        return Total.apply(t.sum((0, 2), keepdim=True), group) / m

    return batch_fold(x)._replace(mean=mean)


def gathered(mine, group):
    """(k) -> (processes, k)"""
    parts = [torch.empty_like(mine) for _ in range(distributed.get_world_size(group))]
    distributed.all_gather(parts, mine, group)
    return torch.stack(parts)


def statistics_on_cpu(x, running_mean, running_var, momentum, eps, group):
    """mu = Σ m_i mu_i / m;  var = Σ m_i (var_i + (mu_i − mu)²) / m, process i having m_i of m numbers"""
    z = wide(x).reshape(batch_fold(x).x)
    C = z.shape[1]
    count = z.new_full((1,), z.shape[0] * z.shape[2], dtype=torch.float64)
    if z.numel():
        local = torch.var_mean(z.double(), (0, 2), correction=0)
    else:
        local = count.new_zeros(C), count.new_zeros(C)
    var, mu, counts = gathered(torch.cat((*local, count)), group).split((C, C, 1), 1)
    m = counts.sum()
    mean = (counts * mu).sum(0) / m
    var = (counts * (var + (mu - mean).square())).sum(0) / m
    if running_mean is not None:
        running_mean.lerp_(mean.to(running_mean.dtype), momentum)
    if running_var is not None:
        running_var.lerp_((var * (m / (m - 1))).to(running_var.dtype), momentum)
    return mean.to(z.dtype), torch.rsqrt(var + eps).to(z.dtype), counts.flatten()


def gradients_on_cpu(needs, dy, x, gamma, mu, rstd, counts, group):
    fold, dx = batch_fold(dy), None
    d = wide(dy).reshape(fold.x)
    xhat = (wide(x).reshape(fold.x) - mu.view(fold.gamma)) * rstd.view(fold.gamma)
    sums = torch.stack((d.sum(fold.share), (d * xhat).sum(fold.share)))
    if needs.x:
        mean_dy, mean_dy_xhat = (Total.apply(sums, group) / counts.sum().to(d.dtype)).unsqueeze(-1)
        scale = rstd if gamma is None else rstd * wide(gamma)
        dx = scale.view(fold.gamma) * (d - mean_dy - xhat * mean_dy_xhat)
        dx = torch.empty_like(x).copy_(dx.view(x.shape))
    return dx, sums[1] if needs.gamma else None, sums[0] if needs.beta else None


def statistics_by_kernels(x, running_mean, running_var, momentum, eps, group):
    """As torch.nn.SyncBatchNorm, by the same kernels."""
    x, C = dense(x), x.shape[1]
    if x.numel():
        mu, rstd = torch.batch_norm_stats(x, eps)
        mine = torch.cat((mu, rstd, mu.new_full((1,), x.numel() // C)))
    else:
        mine = wide(x).new_zeros(2 * C + 1)
    mu, rstd, counts = gathered(mine, group).split((C, C, 1), 1)
    some = counts.squeeze(-1) >= 1
    mu, rstd, counts = mu[some], rstd[some], counts[some].view(-1)
    dtype = counts.dtype if running_mean is None else running_mean.dtype
    mu, rstd = torch.batch_norm_gather_stats_with_counts(
        x, mu, rstd, running_mean, running_var, momentum, eps, counts.to(dtype)
    )
    return mu, rstd, counts.to(torch.int32)


def gradients_by_kernels(needs, dy, x, gamma, mu, rstd, counts, group):
    mask = list(needs[:3])
    dy, x = dense(dy), dense(x)
    if x.numel():
        sum_dy, sum_dy_xmu, *sums = torch.batch_norm_backward_reduce(dy, x, mu, rstd, gamma, *mask)
    else:
        sum_dy = sum_dy_xmu = torch.zeros_like(mu)
        sums = [sum_dy, sum_dy]
    dx = None
    if needs.x:
        sum_dy, sum_dy_xmu = Total.apply(torch.stack((sum_dy, sum_dy_xmu)), group)
        if x.numel():
            gamma = gamma if gamma is None else gamma.to(mu.dtype)
            dx = torch.batch_norm_backward_elemt(dy, x, mu, rstd, gamma, sum_dy, sum_dy_xmu, counts)
        else:
            dx = torch.zeros_like(x)
    return dx, *sums


def dense(x):
    """As the kernels of a device read it."""
    last = (torch.channels_last, torch.channels_last_3d)
    return x if any(x.is_contiguous(memory_format=f) for f in last) else x.contiguous()
