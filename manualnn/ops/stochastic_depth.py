"""Stochastic depth: leave the branch of a residual block out, at random, while training."""

import torch

from manualnn.autograd.examples import Example, Twin, inputs, normal
from manualnn.autograd.function import Function


class StochasticDepth(Function):
    """y = x ∗ r,  r = 1 / (1 − p) with probability 1 − p, else 0
    dx = dy ∗ r
    x (N, *) -> y (N, *), and r: (N, 1, ...), one for each row, or (1, 1, ...), one for all
    Caches r; not x.
    Source: Huang et al. 2016, eq. 2, scaled while training; torchvision.ops.stochastic_depth
    """

    twin = Twin("stochastic_depth", "StochasticDepth")  # torchvision's
    examples = (
        Example(inputs(normal(4, 6)), {"p": 0.4, "mode": "row"}, has_twin=False, random=True),
    )

    outputs = 1

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
    def save(needs, output, *inputs):
        _, r = output
        return (r,), ()

    @staticmethod
    def gradients(needs, dy, r):
        return dy * r

    @staticmethod
    def tangent(step, r):
        return step.x * r

    @staticmethod
    def recompute(inputs, outputs):
        return torch.mul, (inputs[0], outputs[1])
