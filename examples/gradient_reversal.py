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
    def save(needs, a, z, strength):
        return (), (strength,)

    @staticmethod
    def gradients(needs, da, strength):
        return -strength * da

    @staticmethod
    def tangent(step, strength):
        return -strength * step.z

    @staticmethod
    def example_inputs():
        return torch.randn(4, 3), 0.5
