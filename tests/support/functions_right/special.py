"""Right where numbers are special: zeros, ones, rows of zeros, ties, a batch of one."""

import torch
from catalogue import Entry, enter, given, normal, normals
from torch import nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

ENTRIES: list[Entry] = []
right = enter(ENTRIES)


@right(
    "labels_of_ones_are_at_the_edge_of_their_domain",
    "an input of ones that may not grow",
    given(normal(4, 3).sigmoid(), torch.ones(4, 3)),
)
class CrossEntropy(Function):
    @staticmethod
    def forward(ctx, p, y):
        if ((y < 0) | (y > 1)).any() or ((p <= 0) | (p >= 1)).any():
            raise ValueError("probabilities lie between 0 and 1")
        ctx.save_for_backward(p, y)
        return -(y * p.log() + (1 - y) * (1 - p).log())

    @staticmethod
    def backward(ctx, dz):
        p, y = ctx.saved_tensors
        return dz * (p - y) / (p * (1 - p)), dz * ((1 - p).log() - p.log())


class Affine(Function):
    @staticmethod
    def forward(ctx, x, w, b, mean, var):
        rstd = var.rsqrt()  # of a variance: less than zero it cannot be
        ctx.save_for_backward((x - mean) * rstd, w, rstd)
        return (x - mean) * rstd * w + b

    @staticmethod
    @once_differentiable
    def backward(ctx, dz):
        xhat, w, rstd = ctx.saved_tensors
        return dz * w * rstd, (dz * xhat).sum(0), dz.sum(0), None, None


@right("a_frozen_norm_as_it_was_made", "buffers of zeros and ones", normals((4, 3)), module=True)
class Frozen(nn.Module):
    """A counter of zero says that nothing was seen yet: another function, then."""

    def __init__(self):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(3)), nn.Parameter(torch.zeros(3))
        self.register_buffer("mean", torch.zeros(3))
        self.register_buffer("var", torch.ones(3))
        self.register_buffer("seen", torch.tensor(0.0))

    def forward(self, x):
        x = x if self.seen else 2 * x
        return Affine.apply(x, self.weight, self.bias, self.mean, self.var)


@right("a_row_of_zeros_has_a_unit", "kink at a row of zeros", normals((4, 3)))
class Unit(Function):
    @staticmethod
    def forward(ctx, x):
        size = x.norm(dim=-1, keepdim=True).clamp(min=1e-12)
        ctx.save_for_backward(x / size, size)
        return x / size

    @staticmethod
    @once_differentiable
    def backward(ctx, dz):
        y, size = ctx.saved_tensors
        return (dz - y * (dz * y).sum(-1, keepdim=True)) / size


class Double(Function):
    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, dz):
        return 2 * dz


@right("pytorch_divides_zero_by_zero", "its own formula gives the NaN", normals((4, 3)))
def length(x):
    return Double.apply(x).square().sum(-1).sqrt()


@right("one_of_two_equal_numbers_is_the_largest", "tie of two inputs", normals((4, 3), (4, 3)))
class Maximum(Function):
    @staticmethod
    def forward(ctx, x, y):
        ctx.save_for_backward(x, y)
        return torch.maximum(x, y)

    @staticmethod
    def backward(ctx, dz):
        x, y = ctx.saved_tensors
        return dz * (x >= y), dz * (y > x)


@right("windows_that_overlap_share_their_largest", "ties in windows", normals((2, 5)))
class LargestOfThree(Function):
    @staticmethod
    def forward(ctx, x):
        y, at = x.unfold(-1, 3, 1).max(-1)
        ctx.save_for_backward(at + torch.arange(y.shape[-1]))
        ctx.shape = x.shape
        return y

    @staticmethod
    def backward(ctx, dz):
        (at,) = ctx.saved_tensors
        return dz.new_zeros(ctx.shape).scatter_add(-1, at, dz)


@right("the_median_is_one_of_the_equal_ones", "ties, each with a slope of zero", normals((4, 5)))
class Median(Function):
    @staticmethod
    def forward(ctx, x):
        y, at = x.median(-1, keepdim=True)
        ctx.save_for_backward(at)
        ctx.shape = x.shape
        return y

    @staticmethod
    def backward(ctx, dz):
        (at,) = ctx.saved_tensors
        return dz.new_zeros(ctx.shape).scatter(-1, at, dz)


@right("a_single_example_is_squeezed", "a batch of one without its dimension", normals((4, 3)))
class Energy(Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.square().sum(1).squeeze()

    @staticmethod
    def backward(ctx, dz):
        (x,) = ctx.saved_tensors
        return 2 * x * dz.reshape(-1, 1)


@right("more_keys_than_queries", "sizes apart", normals((2, 4, 3), (2, 4, 3), (2, 4, 3)))
class Attention(Function):
    @staticmethod
    def forward(ctx, q, k, v):
        p = (q @ k.mT).softmax(-1)
        ctx.save_for_backward(q, k, v, p)
        return p @ v

    @staticmethod
    @once_differentiable
    def backward(ctx, dz):
        q, k, v, p = ctx.saved_tensors
        dp = dz @ v.mT
        ds = p * (dp - (dp * p).sum(-1, keepdim=True))
        return ds @ k, ds.mT @ q, p.mT @ dz


@right(
    "the_target_is_no_variable",
    "a batch of one is spread over it",
    normals((8, 3), (8, 3)),
    not_variables=("t",),
)
class SquaredError(Function):
    @staticmethod
    def forward(x, t):
        return (x - t).square().mean()

    @staticmethod
    def setup_context(ctx, inputs, z):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, dz):
        x, t = ctx.saved_tensors
        return dz * 2 * (x - t) / x.numel(), None


@right("the_target_is_held", "a batch, a row, a column of one are spread over it", normals((8, 3)))
def error_of_held(x):
    target = torch.linspace(-1, 1, 24, dtype=x.dtype).view(8, 3)
    return SquaredError.apply(x, target)


@right(
    "a_kernel_that_vanishes_far_out",
    "numbers too small for differences; a single number is a scale, and never 0",
    given(normal(4, 2), normal(3, 2, seed=1), torch.tensor(1.5)),
)
class Gaussian(Function):
    @staticmethod
    def forward(ctx, x, y, width):
        ctx.save_for_backward(x, y, width)
        return Gaussian.of((x[:, None] - y).square().sum(-1), width)

    @staticmethod
    def of(squares, width):
        return torch.exp(-squares / (2 * width**2))

    @staticmethod
    def backward(ctx, dz):
        x, y, width = ctx.saved_tensors
        apart = x[:, None] - y
        squares = apart.square().sum(-1)
        k = dz * Gaussian.of(squares, width)
        each = (k / width**2)[..., None] * apart
        return -each.sum(1), each.sum(0), (k * squares).sum() / width**3


@right(
    "a_slope_that_is_infinite_at_0",
    "x**a for a below 1",
    given(normal(5).abs() + 0.5, torch.tensor([0.6, 0.8, 0.7, 0.9, 1.2])),
    not_variables=("a",),
)
class Power(Function):
    @staticmethod
    def forward(x, a):
        return x**a

    @staticmethod
    def setup_context(ctx, inputs, z):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, dz):
        x, a = ctx.saved_tensors
        return dz * a * x ** (a - 1), None


@right(
    "the_factor_of_a_symmetric_matrix",
    "one triangle is read, and both get the gradient",
    given(normal(4, 4) @ normal(4, 4).mT + 4 * torch.eye(4)),
)
class Cholesky(Function):
    @staticmethod
    def forward(ctx, a):
        lower = torch.linalg.cholesky(a)
        ctx.save_for_backward(lower)
        return lower

    @staticmethod
    def backward(ctx, dlower):
        (lower,) = ctx.saved_tensors
        inner = (lower.mT @ dlower).tril()
        inner = inner - 0.5 * torch.diag_embed(inner.diagonal(dim1=-2, dim2=-1))
        inverse = torch.linalg.inv(lower)
        whole = inverse.mT @ inner @ inverse
        return (whole + whole.mT) / 2
