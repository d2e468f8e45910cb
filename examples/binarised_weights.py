"""Weights of −1 and 1, trained through a straight-through estimator (Bengio et al. 2013, section 4).

w = sign(v), whose derivative is 0 wherever it has one. Backward pretends that w = v for |v| ≤ 1:
dv = dw if |v| ≤ 1 else 0.
"""

import torch

from manualnn import Activation, functional, nn


class Binarise(Activation):
    kinks = (-1.0, 0.0, 1.0)
    surrogate = "straight-through: the derivative of min(max(v, −1), 1) stands for that of sign(v)"

    @staticmethod
    def g(v):
        return torch.where(v >= 0, 1.0, -1.0).to(v.dtype) + 0 * v  # a NaN stays one

    @staticmethod
    def g_prime(v):
        return v.abs() <= 1


class BinaryLinear(nn.Linear):
    """z = x sign(V)ᵀ + b"""

    def forward(self, input):
        return functional.linear(input, Binarise.apply(self.weight), self.bias)
