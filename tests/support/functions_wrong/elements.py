"""Wrong in some elements only, or at some values only."""

import torch
from catalogue import Entry, enter, given, normal, normals
from torch.autograd import Function

ENTRIES: list[Entry] = []
wrong = enter(ENTRIES)
ANY = (r"analytic|numeric|central differences|direction",)


# A grid of size // block in place of ceil(size / block).
@wrong(
    "the_last_block_is_never_written",
    "last block left out",
    normals((200,)),
    r"block|last|tail|zero",
    *ANY,
)
class Sine(Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    def backward(ctx, dz):
        (x,) = ctx.saved_tensors
        dx = torch.zeros_like(x)
        for i in range(len(x) // 64):
            block = slice(64 * i, 64 * (i + 1))
            dx[block] = dz[block] * x[block].cos()
        return dx


# Two threads write one element: it counts twice, among four thousand.
@wrong(
    "one_element_of_four_thousand_counts_twice",
    "one element",
    normals((64, 64)),
    r"one element|1 of",
    *ANY,
)
class Square(Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.square()

    @staticmethod
    def backward(ctx, dz):
        (x,) = ctx.saved_tensors
        counts = torch.ones(x.shape, dtype=x.dtype)
        if x.numel() > 1234:
            counts.view(-1)[1234] = 2
        return 2 * x * dz * counts


# Assigned in place of added: of a repeated id the last gradient wins.
@wrong(
    "a_repeated_id_keeps_its_last_gradient_only",
    "assigned instead of added",
    given(normal(6, 3), torch.tensor([0, 2, 2, 5, 2])),
    r"repeat|duplicat|twice|sum|add",
    *ANY,
)
class Lookup(Function):
    @staticmethod
    def forward(ctx, table, ids):
        ctx.save_for_backward(ids)
        ctx.rows = len(table)
        return table[ids]

    @staticmethod
    def backward(ctx, dz):
        (ids,) = ctx.saved_tensors
        table = dz.new_zeros(ctx.rows, dz.shape[1])
        table[ids] = dz
        return table, None


# Every element that equals the maximum gets the whole gradient, as after ReLU.
@wrong(
    "equal_maxima_get_the_whole_gradient_each",
    "ties",
    given(torch.tensor([[0.0, 0.0, 0.0], [1.0, 2.0, 2.0], [3.0, 1.0, 0.0]])),
    r"tie|equal|kink|jump",
    *ANY,
)
class RowMaximum(Function):
    @staticmethod
    def forward(ctx, x):
        y = x.amax(1)
        ctx.save_for_backward(x, y)
        return y

    @staticmethod
    def backward(ctx, dy):
        x, y = ctx.saved_tensors
        return dy[:, None] * (x == y[:, None])


# |x| of a row of zeros: 0/0, where zero is a subgradient. Padding makes such rows.
@wrong(
    "the_length_of_a_row_of_zeros_gives_nan",
    "NaN at zero",
    given(torch.tensor([[3.0, 4.0], [0.0, 0.0], [1.0, -1.0]])),
    r"NaN|infin|finite|0/0",
)
class Length(Function):
    @staticmethod
    def forward(ctx, x):
        y = x.square().sum(1).sqrt()
        ctx.save_for_backward(x, y)
        return y

    @staticmethod
    def backward(ctx, dy):
        x, y = ctx.saved_tensors
        return dy[:, None] * x / y[:, None]


# torch.where hides the NaN of the other branch in forward, not in backward.
@wrong(
    "the_branch_that_where_leaves_out_gives_nan",
    "NaN of a branch not taken",
    given(torch.tensor([-1.0, 0.0, 0.5])),
    r"NaN|infin|finite|0/0",
)
def sinc(x):
    return torch.where(x == 0, 1.0, x.sin() / x)


# Padding is left out of the loss, and gets a gradient all the same.
@wrong(
    "rows_that_the_loss_ignores_get_a_gradient",
    "ignored rows",
    given(normal(5, 3), torch.tensor([0, -100, 2, 1, -100])),
    r"flat|ignore|row|zero|constant",
    *ANY,
)
class PaddedLoss(Function):
    @staticmethod
    def forward(ctx, x, target):
        ctx.save_for_backward(x, target)
        return torch.nn.functional.cross_entropy(x, target, reduction="sum")

    @staticmethod
    def backward(ctx, dz):
        x, target = ctx.saved_tensors
        dx = x.softmax(1)
        kept = (target >= 0).to(x.dtype)[:, None]
        one_hot = torch.nn.functional.one_hot(target.clamp(min=0), x.shape[1])
        return dz * (dx - one_hot * kept), None


# The product over the other factors as y/x: 0/0 at a zero.
@wrong(
    "the_gradient_of_a_product_divides_by_a_zero_factor",
    "NaN at zero",
    given(torch.tensor([[2.0, 0.0, 3.0], [1.0, -1.0, 0.5]])),
    r"NaN|infin|finite|0/0|zero",
)
class RowProduct(Function):
    @staticmethod
    def forward(ctx, x):
        y = x.prod(1)
        ctx.save_for_backward(x, y)
        return y

    @staticmethod
    def backward(ctx, dy):
        x, y = ctx.saved_tensors
        return (dy * y)[:, None] / x
