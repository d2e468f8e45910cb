"""A layer that does nothing forward and reverses the gradient (Ganin & Lempitsky 2015, section 3).

a = z;  dz = −λ da. What comes before it learns to make what comes after it fail.
"""

import torch

from manualnn import Function


class GradientReversal(Function):
    surrogate = (
        "the gradient is multiplied by −λ: what comes before is to make what comes after fail"
    )

    @staticmethod
    def forward(z, strength):
        return z.clone()

    @staticmethod
    def setup_context(ctx, inputs, a):
        _, ctx.strength = inputs

    @staticmethod
    def backward(ctx, da):
        return -ctx.strength * da, None

    @staticmethod
    def jvp(ctx, dz, _):
        return -ctx.strength * dz

    @staticmethod
    def example_inputs():
        return torch.randn(4, 3), 0.5
