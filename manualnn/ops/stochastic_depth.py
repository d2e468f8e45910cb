"""Stochastic depth: leave the branch of a residual block out, at random, while training."""

import torch

from manualnn.function import Function
from manualnn.transforms import forward_mode


class StochasticDepth(Function):
    """y = x ∗ r,  r = 1 / (1 − p) with probability 1 − p, else 0
    dx = dy ∗ r
    x (N, *) -> y (N, *), and r: (N, 1, ...), one for each row, or (1, 1, ...), one for all
    Caches r; not x.
    Source: Huang et al. 2016, eq. 2, scaled while training; torchvision.ops.stochastic_depth
    """

    @staticmethod
    def forward(x, p, by_row):
        survival = 1.0 - p
        ones = (1,) * x.dim()
        shape = (x.shape[0], *ones[1:]) if by_row else ones
        r = torch.empty(shape, dtype=x.dtype, device=x.device).bernoulli_(survival)
        if survival > 0.0:
            r.div_(survival)
        return x * r, r

    @staticmethod
    def setup_context(ctx, inputs, output):
        r = output[1]
        ctx.mark_non_differentiable(r)
        ctx.save_for_backward(r)
        if forward_mode():
            ctx.save_for_forward(r)

    @staticmethod
    def backward(ctx, dy, _):
        (r,) = ctx.saved_tensors
        return dy * r, None, None

    @staticmethod
    def jvp(ctx, dx, *_):
        (r,) = ctx.saved_tensors
        return dx * r, None

    @staticmethod
    def again(inputs, outputs):
        return torch.mul, (inputs[0], outputs[1])
