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
    def setup_context(ctx, inputs, z):
        x, _, _, B = inputs
        need_x, need_W, *_ = ctx.needs_input_grad
        ctx.save_for_backward(x if need_W else None, B if need_x else None)
        ctx.save_for_forward(x, B)

    @staticmethod
    def backward(ctx, dz):
        x, B = ctx.saved_tensors
        need_x, need_W, need_b, _ = ctx.needs_input_grad
        rows = dz.reshape(-1, dz.shape[-1])
        dx = dz @ B if need_x else None
        dW = rows.T @ x.reshape(-1, x.shape[-1]) if need_W else None
        db = rows.sum(0) if need_b else None
        return dx, dW, db, None

    @staticmethod
    def jvp(ctx, dx, dW, db, _):
        x, B = ctx.saved_tensors
        terms = [] if dx is None else [dx @ B.T]
        terms += [] if dW is None else [x @ dW.T]
        terms += [] if db is None else [db.expand(*x.shape[:-1], -1)]
        return sum(terms)


def feedback_linear(x, W, b, B):
    """The Function, in the dtypes that autocast gives to a linear layer."""
    return RandomFeedback.apply(*autocast("linear", x, W, b, B))


feedback_linear.surrogate = {
    "x": "feedback alignment: the error flows back through B, not through W"
}


class FeedbackLinear(nn.Linear):
    """torch.nn.Linear with a buffer ``feedback`` in place of W on the way back."""

    def __init__(self, in_features, out_features, **options):
        super().__init__(in_features, out_features, **options)
        self.register_buffer("feedback", torch.randn_like(self.weight) / in_features**0.5)

    def forward(self, input):
        return feedback_linear(input, self.weight, self.bias, self.feedback)
