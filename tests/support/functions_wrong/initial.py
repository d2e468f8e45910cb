"""Wrong away from where a module begins, an identity or a positive slope; and in a batch of another size."""

import torch
from catalogue import Entry, enter, normals
from torch import nn
from torch.autograd import Function
from torch.nn.functional import conv1d

ENTRIES: list[Entry] = []
wrong = enter(ENTRIES)


class Linear(Function):
    @staticmethod
    def forward(ctx, x, W):
        ctx.save_for_backward(x, W)
        return x @ W.T

    @staticmethod
    def backward(ctx, dz):
        x, W = ctx.saved_tensors
        return dz @ W.T, dz.T @ x


class Quadratic(Function):
    @staticmethod
    def forward(ctx, x, A):
        ctx.save_for_backward(x, A)
        return (x @ A * x).sum(-1)

    @staticmethod
    def backward(ctx, dz):
        x, A = ctx.saved_tensors
        return 2 * dz[:, None] * (x @ A), x.T @ (dz[:, None] * x)


class Slope(Function):
    @staticmethod
    def forward(ctx, x, slope):
        y = torch.where(x > 0, x, slope * x)
        ctx.save_for_backward(x, y, slope)
        return y

    @staticmethod
    def backward(ctx, dz):
        x, y, slope = ctx.saved_tensors
        return torch.where(y > 0, dz, slope * dz), (dz * x.clamp(max=0)).sum(0)


class Gain(Function):
    @staticmethod
    def forward(ctx, x, w):
        ctx.save_for_backward(x, w)
        return x * w

    @staticmethod
    def backward(ctx, dz):
        x, w = ctx.saved_tensors
        return dz * w.abs(), (dz * x).sum(0)


class Convolution(Function):
    @staticmethod
    def forward(ctx, x, W):
        ctx.save_for_backward(x, W)
        return conv1d(x, W, padding=1)

    @staticmethod
    def backward(ctx, dz):
        x, W = ctx.saved_tensors
        dx = conv1d(dz, W.transpose(0, 1), padding=1)
        return dx, nn.grad.conv1d_weight(x, W.shape, dz, padding=1)


class Begun(nn.Module):
    def __init__(self, function, parameter):
        super().__init__()
        self.function, self.parameter = function, nn.Parameter(parameter)

    def forward(self, x):
        return self.function.apply(x, self.parameter)


OTHER = r"where the parameters are other numbers"


@wrong(
    "the_weight_is_not_transposed_and_is_the_identity_at_first",
    "a matrix that is its own transpose",
    normals((3, 4)),
    OTHER,
    module=True,
)
def linear():
    return Begun(Linear, torch.eye(4))


@wrong(
    "half_of_a_quadratic_form_is_taken_twice",
    "a matrix that is its own transpose",
    normals((3, 4)),
    OTHER,
    module=True,
)
def quadratic():
    A = torch.arange(16.0).cos().view(4, 4)
    return Begun(Quadratic, A + A.T)


def slope():
    return Begun(Slope, torch.full((4,), 0.25))


def gain():
    return Begun(Gain, torch.linspace(0.5, 1.5, 4))


@wrong(
    "the_kernel_is_not_turned_round_and_is_one_1_at_first",
    "a convolution that does nothing",
    normals((2, 2, 5)),
    OTHER,
    module=True,
)
def convolution():
    return Begun(Convolution, nn.init.dirac_(torch.zeros(2, 2, 3)))


@wrong("one_block_of_threads", "more rows than one block", normals((4, 5)), r"batch of 1031")
class Block(Function):
    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, dz):
        dx = torch.zeros_like(dz)
        dx[:128] = 2 * dz[:128]
        return dx


@wrong(
    "the_matrix_of_the_first_example_serves_for_all",
    "a batch of one in two inputs",
    normals((1, 3), (1, 3, 2)),
    r"batch of 3",
)
class OfEach(Function):
    @staticmethod
    def forward(ctx, x, w):
        ctx.save_for_backward(x, w)
        return torch.einsum("bi,bij->bj", x, w)

    @staticmethod
    def backward(ctx, dz):
        x, w = ctx.saved_tensors
        return dz @ w[0].T, torch.einsum("bi,bj->bij", x, dz)
