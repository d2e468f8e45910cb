"""A linear layer whose error flows back through fixed random weights (Lillicrap et al. 2016).

z = x Wᵀ + b;  dx = dz B in place of dz W;  dW = dzᵀ x;  db = Σ dz. B (o, i) is never changed, and W
learns to agree with it.
"""

import torch

from manualnn import Function, autocast, nn


class RandomFeedback(Function):
    """x (*, i), W (o, i), b (o), B (o, i) -> z (*, o). Caches x if dW is needed, B if dx is needed."""

    @staticmethod
    def forward(x, W, b, B):
        return torch.nn.functional.linear(x, W, b)

    @staticmethod
    def save(needs, z, x, W, b, B):
        return (x if needs.W else None, B if needs.x else None), ()

    @staticmethod
    def gradients(needs, dz, x, B):
        rows = dz.reshape(-1, dz.shape[-1])
        dx = dz @ B if needs.x else None
        dW = rows.T @ x.reshape(-1, x.shape[-1]) if needs.W else None
        db = rows.sum(0) if needs.b else None
        return dx, dW, db

    @staticmethod
    def tangent(step, x, B):
        terms = [] if step.x is None else [step.x @ B.T]
        terms += [] if step.W is None else [x @ step.W.T]
        terms += [] if step.b is None else [step.b.expand(*x.shape[:-1], -1)]
        return sum(terms)


def feedback_linear(x, W, b, B):
    """The Function, in the dtypes that autocast gives to a linear layer."""
    return RandomFeedback.apply(*autocast("linear", x, W, b, B))


feedback_linear.surrogate = {  # type: ignore[attr-defined]  # of a function
    "x": "feedback alignment: the error flows back through B, not through W"
}


class FeedbackLinear(nn.Linear):
    """torch.nn.Linear with a buffer ``feedback`` in place of W on the way back."""

    def __init__(self, in_features, out_features, **options):
        super().__init__(in_features, out_features, **options)
        self.register_buffer("feedback", torch.randn_like(self.weight) / in_features**0.5)

    def forward(self, input):
        return feedback_linear(input, self.weight, self.bias, self.feedback)
