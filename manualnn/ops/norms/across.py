"""Batch normalisation by the statistics of a batch that lies in several processes."""

import torch
from torch import distributed

from manualnn.function import Function, first_order
from manualnn.ops.norms.batch import batch_fold, in_one_pass
from manualnn.ops.norms.formula import copies, given, gradients, tangent, wide
from manualnn.transforms import forward_mode


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

    @staticmethod
    def forward(x, gamma, beta, running_mean, running_var, momentum, eps, group):
        found = statistics_on_cpu if x.is_cpu else statistics_by_kernels
        mu, rstd, counts = found(x, running_mean, running_var, momentum, eps, group)
        y = in_one_pass(x, gamma, beta, mu, rstd, eps) if x.numel() else torch.empty_like(x)
        return y, mu, rstd, counts

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, gamma, *_, ctx.eps, ctx.group = inputs
        _, mu, rstd, counts = output
        ctx.mark_non_differentiable(mu, rstd, counts)
        need_x, need_gamma, _ = ctx.needs_input_grad[:3]
        needed = need_x or need_gamma
        kept = (x, gamma if need_x else None, mu, rstd, counts)
        ctx.save_for_backward(*(kept if needed else (None,) * 5))
        if forward_mode():
            ctx.save_for_forward(x, gamma, mu, rstd, counts)

    @staticmethod
    def backward(ctx, dy, *_):
        x, gamma, mu, rstd, counts = ctx.saved_tensors
        needs = ctx.needs_input_grad[:3]
        if x is None:
            fold = batch_fold(dy)
            grads = None, None, wide(dy).reshape(fold.x).sum(fold.share)
        elif not first_order():
            fold = fold_of_all(dy, counts, ctx.group)
            grads = gradients(dy, x, gamma, fold, ctx.eps, needs)
        elif x.is_cpu:
            grads = gradients_on_cpu(dy, x, gamma, mu, rstd, counts, ctx.group, needs)
        else:
            grads = gradients_by_kernels(dy, x, gamma, mu, rstd, counts, ctx.group, needs)
        return *grads, None, None, None, None, None

    @staticmethod
    def jvp(ctx, dx, dgamma, dbeta, *_):
        x, gamma, *_, counts = ctx.saved_tensors
        fold = fold_of_all(x, counts, ctx.group)
        return tangent(x, gamma, (dx, dgamma, dbeta), fold, ctx.eps), None, None, None

    @staticmethod
    def again(inputs, outputs):
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
    def setup_context(ctx, inputs, y):
        _, ctx.group = inputs

    @staticmethod
    def backward(ctx, dy):
        return Total.apply(dy, ctx.group), None

    @staticmethod
    def jvp(ctx, dx, _):
        return Total.apply(dx, ctx.group)


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


def gradients_on_cpu(dy, x, gamma, mu, rstd, counts, group, needs):
    need_x, need_gamma, need_beta = needs
    fold, dx = batch_fold(dy), None
    d = wide(dy).reshape(fold.x)
    xhat = (wide(x).reshape(fold.x) - mu.view(fold.gamma)) * rstd.view(fold.gamma)
    sums = torch.stack((d.sum(fold.share), (d * xhat).sum(fold.share)))
    if need_x:
        mean_dy, mean_dy_xhat = (Total.apply(sums, group) / counts.sum().to(d.dtype)).unsqueeze(-1)
        scale = rstd if gamma is None else rstd * wide(gamma)
        dx = scale.view(fold.gamma) * (d - mean_dy - xhat * mean_dy_xhat)
        dx = torch.empty_like(x).copy_(dx.view(x.shape))
    return dx, sums[1] if need_gamma else None, sums[0] if need_beta else None


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


def gradients_by_kernels(dy, x, gamma, mu, rstd, counts, group, needs):
    dy, x = dense(dy), dense(x)
    if x.numel():
        sum_dy, sum_dy_xmu, *sums = torch.batch_norm_backward_reduce(dy, x, mu, rstd, gamma, *needs)
    else:
        sum_dy = sum_dy_xmu = torch.zeros_like(mu)
        sums = sum_dy, sum_dy
    dx = None
    if needs[0]:
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
