"""Wrong in one of a module's modes, or through a number that Python took out of the graph."""

import torch
from catalogue import Entry, enter, normal, normals
from torch import nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

ENTRIES: list[Entry] = []
wrong = enter(ENTRIES)


class Normalise(Function):
    @staticmethod
    def forward(ctx, x, gamma, mean, rstd):
        xhat = (x - mean) * rstd
        ctx.save_for_backward(xhat, gamma, rstd)
        return gamma * xhat

    @staticmethod
    @once_differentiable
    def backward(ctx, dz):
        xhat, gamma, rstd = ctx.saved_tensors
        dxhat = dz * gamma
        dx = rstd * (dxhat - dxhat.mean(0) - xhat * (dxhat * xhat).mean(0))
        return dx, (dz * xhat).sum(0), None, None


# pytorch/pytorch#586: batch norm's backward in evaluation as if the batch had made the statistics.
@wrong(
    "batch_norm_has_its_training_backward_in_evaluation",
    "eval and train",
    normals((6, 3)),
    r"eval",
    module=True,
)
class BatchNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.gamma = nn.Parameter(1 + normal(3) / 10)
        self.register_buffer("running_mean", torch.tensor([0.3, 0.0, -0.2]))
        self.register_buffer("running_variance", torch.tensor([1.2, 0.7, 2.0]))

    def forward(self, x):
        mean, variance = self.running_mean, self.running_variance
        if self.training:
            mean, variance = x.detach().mean(0), x.detach().var(0, correction=0) + 1e-5
        return Normalise.apply(x, self.gamma, mean, variance.rsqrt())


# item() is a Python number: the scale depends on x, and the gradient does not know.
@wrong(
    "a_scale_is_taken_out_of_the_graph",
    "dependence lost through item()",
    normals((4, 3)),
    r"analytic|numeric|central differences",
    r"item|detach|graph",
)
def relative(x):
    return x / x.abs().max().item()


# Left over from an experiment: the error that flows on is half of what it is.
@wrong(
    "a_forgotten_hook_halves_the_gradient",
    "tensor hook",
    normals((4, 3)),
    r"2.* too small|half|factor|hook",
)
def sine_squared(x):
    y = x.sin()
    if y.requires_grad:
        y.register_hook(lambda dy: dy / 2)
    return y.square()


# A weight that is made once and used for ever: it does not follow its parameter.
@wrong(
    "a_weight_is_remembered_from_the_first_call",
    "stale weight of a module",
    normals((4, 3)),
    r"stale|cache|remember|state|call|twice|second|again",
    r"analytic|numeric|central differences",
    module=True,
)
class CosineLinear(nn.Module):
    def __init__(self):
        super().__init__()
        self.v = nn.Parameter(normal(5, 3))
        self.weight = None

    def forward(self, x):
        if self.weight is None:
            self.weight = self.v / self.v.norm(dim=1, keepdim=True)
        return x @ self.weight.to(x.dtype).T


# Embeddings with a greatest norm do so; what a step has learned is written over by a forward.
@wrong(
    "a_parameter_is_rescaled_in_forward",
    "parameter overwritten",
    normals((4, 3)),
    r"overwrit|in place|changed|modified|left as",
    module=True,
)
class UnitLinear(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(3 * normal(5, 3))

    def forward(self, x):
        with torch.no_grad():
            self.weight.div_(self.weight.norm(dim=1, keepdim=True))
        return x @ self.weight.T
