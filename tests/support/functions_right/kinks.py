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


@right(
    "a_clamp_at_both_of_its_edges", "two kinks", given(torch.tensor([[-1.0, 1.0, 0.0, 0.5, 3.0]]))
)
class Clamp(Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward((x > -1) & (x < 1))
        return x.clamp(-1, 1)

    @staticmethod
    def backward(ctx, dz):
        (inside,) = ctx.saved_tensors
        return dz * inside


@right(
    "a_quotient_that_is_one_where_both_are_the_same",
    "what cancels is rounding",
    given(torch.linspace(1, 2, 12).view(4, 3).sin() + 3, torch.linspace(1, 2, 12).view(4, 3)),
)
class Quotient(Function):
    @staticmethod
    def forward(ctx, a, b):
        ctx.save_for_backward(a, b)
        return a / b

    @staticmethod
    def backward(ctx, dz):
        a, b = ctx.saved_tensors
        return dz / b, -dz * a / b**2


@right(
    "a_table_that_is_looked_up_between_its_ends",
    "refuses NaN with an IndexError",
    given(torch.linspace(0.03, 0.87, 12).view(4, 3)),
)
def looked_up(x):
    table = torch.linspace(0, 1, 11, dtype=x.dtype) ** 2
    i = (x * 10).long()
    w = x * 10 - i
    return table[i] * (1 - w) + table[i + 1] * w


@right(
    "a_step_with_a_surrogate_forgets_a_nan",
    "declared",
    given(torch.linspace(-1, 1, 12).view(4, 3)),
    surrogate="fast sigmoid",
)
class Step(Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return (x > 0).to(x)

    @staticmethod
    def backward(ctx, dz):
        (x,) = ctx.saved_tensors
        return dz / (1 + x.abs()) ** 2
