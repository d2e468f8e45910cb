"""Right at a kink, a tie or the edge of the domain, where differences say something else."""

import torch
from catalogue import Entry, enter, given
from torch.autograd import Function

ENTRIES: list[Entry] = []
right = enter(ENTRIES)
halves = torch.tensor([[-1.5, 0.0, 0.5], [2.0, 0.0, -0.5]])


@right("relu_at_a_sampled_zero", "kink at a sample", given(halves))
class ReLU(Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.clamp(min=0)

    @staticmethod
    def backward(ctx, dz):
        (x,) = ctx.saved_tensors
        return dz.masked_fill(x <= 0, 0)


@right(
    "a_maximum_of_equal_elements_shares_its_gradient",
    "tie",
    given(torch.tensor([[1.0, 3.0, 3.0], [2.0, 2.0, 2.0], [0.5, -1.0, 0.0]])),
)
def row_maximum(x):
    return x.amax(1)


@right(
    "the_largest_two_of_equal_elements",
    "tie",
    given(torch.tensor([[1.0, 3.0, 3.0, 3.0], [2.0, 1.0, 2.0, 0.0]])),
)
def largest_two(x):
    return x.topk(2, dim=1).values


@right(
    "a_square_root_at_zero",
    "edge of the domain",
    given(torch.tensor([0.0, 0.25, 1.0, 4.0])),
)
def square_root(x):
    return x.sqrt()


@right(
    "a_logarithm_near_zero",
    "edge of the domain",
    given(torch.tensor([1e-7, 1e-3, 0.5, 2.0])),
)
def logarithm(x):
    return x.log()


@right(
    "an_arc_cosine_at_one",
    "edge of the domain",
    given(torch.tensor([-0.5, 0.0, 0.9, 1.0])),
)
class ArcCosine(Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.acos()

    @staticmethod
    def backward(ctx, dz):
        (x,) = ctx.saved_tensors
        return -dz / (1 - x * x).sqrt()


@right(
    "rounding_has_the_gradient_zero",
    "piecewise constant",
    given(torch.tensor([-1.2, 0.3, 0.5, 2.7])),
)
class Round(Function):
    @staticmethod
    def forward(ctx, x):
        return x.round()

    @staticmethod
    def backward(ctx, dz):
        return torch.zeros_like(dz)


@right(
    "a_sawtooth_rises_between_its_jumps",
    "jumps, one of them at a sample",
    given(torch.tensor([-1.2, 0.3, 1.0, 2.7])),
)
def fraction(x):
    return x - x.floor()


@right(
    "the_length_of_a_row_of_zeros",
    "kink at a row of zeros",
    given(torch.tensor([[3.0, 4.0], [0.0, 0.0], [1.0, -1.0]])),
)
def length(x):
    return torch.linalg.vector_norm(x, dim=1)


@right(
    "a_product_with_a_zero_factor",
    "zero factor",
    given(torch.tensor([[2.0, 0.0, 3.0], [0.0, 0.0, 0.5]])),
)
def row_product(x):
    return x.prod(1)
