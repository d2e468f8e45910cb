"""Right for the parameters that there may be, and not for any: positive ones, symmetric ones."""

import torch
from catalogue import Entry, enter, given, normal, normals
from torch import nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

ENTRIES: list[Entry] = []
right = enter(ENTRIES)


@right(
    "a_matrix_of_precision",
    "symmetric by contract",
    given(normal(3, 4), torch.diag(torch.linspace(0.5, 2, 4))),
)
class Density(Function):
    @staticmethod
    def forward(ctx, x, precision):
        ctx.save_for_backward(x, precision)
        return -0.5 * (x @ precision * x).sum(-1)

    @staticmethod
    def backward(ctx, dz):
        x, precision = ctx.saved_tensors
        return -dz[:, None] * (x @ precision), -0.5 * x.T @ (dz[:, None] * x)


class Normal(Function):
    @staticmethod
    def forward(ctx, x, sigma):
        ctx.save_for_backward(x, sigma)
        return -0.5 * (x / sigma).square() - sigma.log()

    @staticmethod
    @once_differentiable
    def backward(ctx, dz):
        x, sigma = ctx.saved_tensors
        size = sigma.abs()
        return -dz * x / size.square(), (dz * (x.square() / size**3 - 1 / size)).sum(0)


@right("a_deviation_is_positive", "its logarithm is taken", normals((3, 4)), module=True)
class Noise(nn.Module):
    def __init__(self):
        super().__init__()
        self.sigma = nn.Parameter(torch.linspace(0.5, 1.5, 4))

    def forward(self, x):
        return Normal.apply(x, self.sigma)


class Sort(Function):
    @staticmethod
    def forward(ctx, x):
        y, order = x.sort(0)
        ctx.save_for_backward(order)
        return y

    @staticmethod
    def backward(ctx, dz):
        return torch.zeros_like(dz).scatter(0, ctx.saved_tensors[0], dz)


@right("a_sort_of_many_rows", "a kink wherever two of them are equal", normals((4, 5)))
def sorted_rows(x):
    return Sort.apply(x)


@right(
    "one_weight_for_all_channels",
    "a leading 1 is no batch of one",
    normals((1, 4, 3), (1, 4, 1)),
    names=("x", "w"),
)
class OfChannels(Function):
    @staticmethod
    def forward(ctx, x, w):
        ctx.save_for_backward(x, w)
        return x * w

    @staticmethod
    def backward(ctx, dz):
        x, w = ctx.saved_tensors
        return dz * w, (dz * x).sum((0, 2), keepdim=True)
