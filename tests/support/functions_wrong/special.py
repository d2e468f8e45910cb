"""Wrong where numbers are special: a bias of zeros, a weight of ones, a row of zeros, a tie, a batch of one.

Special numbers also hide what is wrong elsewhere: a term with a bias is not seen where the bias is zero.
"""

import math

import torch
from catalogue import Entry, enter, given, normal, normals
from torch import nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

ENTRIES: list[Entry] = []
wrong = enter(ENTRIES)


@wrong(
    "a_batch_of_one_has_no_rows",
    "squeeze without a dimension, and backward raises",
    normals((4, 3), (3, 1)),
    r"batch of one .*IndexError",
)
class Score(Function):
    @staticmethod
    def forward(ctx, x, w):
        ctx.save_for_backward(x, w)
        return (x @ w).squeeze()

    @staticmethod
    def backward(ctx, dz):
        x, w = ctx.saved_tensors
        return dz[:, None] @ w.T, x.T @ dz[:, None]


@wrong(
    "the_incoming_gradient_of_a_single_example_is_dropped",
    "squeeze without a dimension, and backward is silent",
    normals((4, 3)),
    r"batch of one .*dx is wrong there",
)
class Energy(Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.square().sum(1).squeeze()

    @staticmethod
    def backward(ctx, dz):
        (x,) = ctx.saved_tensors
        return 2 * x * (dz[:, None] if dz.dim() else 1)


class TanhOfTheSum(Function):
    @staticmethod
    def forward(ctx, x, b):
        ctx.save_for_backward(x)
        return torch.tanh(x + b)

    @staticmethod
    def backward(ctx, dz):
        (x,) = ctx.saved_tensors
        dx = dz * (1 - torch.tanh(x).square())
        return dx, dx.sum(0)


@wrong(
    "the_bias_is_forgotten_and_is_zero_at_first",
    "a parameter of zeros",
    normals((4, 3)),
    r"bias is not 0 throughout",
    module=True,
)
class Biased(nn.Module):
    def __init__(self):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(3))

    def forward(self, x):
        return TanhOfTheSum.apply(x, self.bias)


@wrong(
    "the_way_through_the_forget_gate_is_missing",
    "a state of zeros, given as an input",
    given(normal(4, 3), torch.zeros(4, 3)),
    r"dz is wrong where c is not 0",
)
class Cell(Function):
    @staticmethod
    def forward(ctx, z, c):
        ctx.save_for_backward(z, c)
        return z.sigmoid() * c + z.tanh()

    @staticmethod
    def backward(ctx, dh):
        z, _ = ctx.saved_tensors
        return dh * (1 - z.tanh().square()), dh * z.sigmoid()


@wrong(
    "the_weight_is_forgotten_and_is_one_at_first",
    "a parameter of ones",
    given(normal(4, 3), torch.ones(3)),
    r"w is not 1 throughout: a factor",
)
class Scale(Function):
    @staticmethod
    def forward(ctx, x, w):
        ctx.save_for_backward(x)
        return x * w

    @staticmethod
    def backward(ctx, dz):
        (x,) = ctx.saved_tensors
        return dz, (dz * x).reshape(-1, x.shape[-1]).sum(0)


class Normalise(Function):
    @staticmethod
    def forward(ctx, x, mean, var, training):
        if training:
            mean, var = x.mean(0), x.var(0, unbiased=False)
        rstd = (var + 1e-5).rsqrt()
        xhat = (x - mean) * rstd
        ctx.save_for_backward(xhat, rstd)
        ctx.training = training
        return xhat

    @staticmethod
    @once_differentiable
    def backward(ctx, dz):
        xhat, rstd = ctx.saved_tensors
        dx = rstd * (dz - dz.mean(0) - xhat * (dz * xhat).mean(0))
        return (dx if ctx.training else dz / math.sqrt(1 + 1e-5)), None, None, None


@wrong(
    "the_running_variance_is_forgotten_and_is_one_at_first",
    "a buffer of ones, of the other mode",
    normals((6, 3)),
    r"evaluation.*running_var is not 1",
    module=True,
)
class Statistics(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(3))
        self.register_buffer("running_var", torch.ones(3))

    def forward(self, x):
        if self.training:
            with torch.no_grad():
                self.running_mean.lerp_(x.mean(0), 0.1)
                self.running_var.lerp_(x.var(0), 0.1)
        return Normalise.apply(x, self.running_mean, self.running_var, self.training)


@wrong(
    "a_row_of_padding_becomes_nan",
    "0 / 0 at a row of zeros",
    normals((4, 3)),
    r"NaN where a whole row is 0",
)
class Unit(Function):
    @staticmethod
    def forward(ctx, x):
        size = x.norm(dim=-1, keepdim=True)
        ctx.save_for_backward(x, size)
        return x / (size + 1e-3)

    @staticmethod
    @once_differentiable
    def backward(ctx, dz):
        x, size = ctx.saved_tensors
        n = size + 1e-3
        return dz / n - x * (dz * x).sum(-1, keepdim=True) / (n * n * size)


@wrong(
    "the_distance_of_a_point_to_itself",
    "0 / 0 at two equal inputs",
    normals((4, 3), (4, 3)),
    r"NaN where x and y are the same tensor",
)
class Distance(Function):
    @staticmethod
    def forward(ctx, x, y):
        d = (x - y).norm(dim=-1)
        ctx.save_for_backward(x, y, d)
        return d

    @staticmethod
    def backward(ctx, dz):
        x, y, d = ctx.saved_tensors
        dx = (dz / d)[..., None] * (x - y)
        return dx, -dx


@wrong(
    "both_of_two_equal_numbers_are_the_largest",
    "a tie of two inputs counts twice",
    normals((4, 3), (4, 3)),
    r"same tensor: at a tie",
)
class Maximum(Function):
    @staticmethod
    def forward(ctx, x, y):
        ctx.save_for_backward(x, y)
        return torch.maximum(x, y)

    @staticmethod
    def backward(ctx, dz):
        x, y = ctx.saved_tensors
        return dz * (x >= y), dz * (y >= x)


@wrong(
    "each_of_the_largest_gets_the_whole_gradient",
    "a tie in a window counts as often as it has numbers",
    normals((2, 3, 4)),
    r"neighbours are equal: moved together",
)
class LargestOfTwo(Function):
    @staticmethod
    def forward(ctx, x):
        pairs = x.unflatten(-1, (-1, 2))
        y = pairs.amax(-1, keepdim=True)
        ctx.save_for_backward(pairs == y)
        return y.squeeze(-1)

    @staticmethod
    def backward(ctx, dz):
        (largest,) = ctx.saved_tensors
        return (largest * dz.unsqueeze(-1)).flatten(-2)


@wrong(
    "one_block_of_a_sequence",
    "a middle dimension that is long",
    normals((2, 4, 3)),
    r"dimension 1 is 67 long",
)
class Sequence(Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx, dz):
        (x,) = ctx.saved_tensors
        dx = torch.zeros_like(x)
        dx[:, :16] = (2 * x * dz)[:, :16]
        return dx


@wrong(
    "the_mask_begins_at_the_other_corner",
    "as many queries as keys",
    normals((2, 4, 3), (2, 4, 3), (2, 4, 3)),
    r"dimension 1 of q is shorter",
)
class Causal(Function):
    @staticmethod
    def forward(ctx, q, k, v):
        ctx.save_for_backward(q, k, v)
        return weights(q, k, k.shape[-2] - q.shape[-2]) @ v

    @staticmethod
    @once_differentiable
    def backward(ctx, dz):
        q, k, v = ctx.saved_tensors
        p = weights(q, k, 0)
        dp = dz @ v.mT
        ds = p * (dp - (dp * p).sum(-1, keepdim=True))
        return ds @ k, ds.mT @ q, p.mT @ dz


def weights(q, k, diagonal):
    seen = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool).tril(diagonal)
    return (q @ k.mT).masked_fill(~seen, -math.inf).softmax(-1)
