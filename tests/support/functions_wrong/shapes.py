"""Wrong for a shape or a layout: sums over the wrong dimensions, batches of one and of none, strides."""

import torch
from catalogue import Entry, enter, given, normal, normals
from torch.autograd import Function

ENTRIES: list[Entry] = []
wrong = enter(ENTRIES)


class Shift(Function):
    """x + b, right; the base of the wrong ones."""

    @staticmethod
    def forward(ctx, x, b):
        return x + b


@wrong(
    "the_bias_gradient_is_summed_over_all_dimensions",
    "summed over all dimensions instead of columns",
    normals((4, 3), (3,)),
    r"sum",
)
class AddA(Shift):
    @staticmethod
    def backward(ctx, dz):
        return dz, dz.sum().expand(dz.shape[-1])


# sum(()) sums everything: right for every batch, wrong for one unbatched vector.
@wrong(
    "an_unbatched_vector_sums_its_bias_gradient",
    "wrong for a vector",
    normals((3,), (3,)),
    r"sum",
    r"vector|1-?d|unbatched|one dimension",
)
class AddB(Shift):
    @staticmethod
    def backward(ctx, dz):
        return dz, dz.sum(tuple(range(dz.ndim - 1))).expand(dz.shape[-1])


# squeeze() without a dimension; deeplearning4j/deeplearning4j#1452 is another fault of a batch of one.
@wrong(
    "a_batch_of_one_loses_its_dimension",
    "wrong for a batch of one",
    normals((4, 3), (3,)),
    r"batch|one row|size 1|other size|another size",
)
class AddC(Shift):
    @staticmethod
    def backward(ctx, dz):
        return dz, dz.squeeze().sum(0).expand(dz.shape[-1])


# Right as long as the test input is square.
@wrong(
    "the_mean_is_divided_by_the_other_dimension",
    "right for square inputs only",
    normals((4, 4)),
    r"size|shape|batch|square|dimension|factor|too (small|large)",
)
class ColumnMeans(Function):
    @staticmethod
    def forward(ctx, x):
        ctx.shape = x.shape
        return x.mean(0)

    @staticmethod
    def backward(ctx, dz):
        return dz.expand(ctx.shape) / ctx.shape[1]


# An amax of nothing: datasets end in an empty batch, experts get no token.
@wrong(
    "an_empty_batch_ends_in_an_error",
    "wrong for an empty batch",
    normals((4, 3)),
    r"empty|batch|zero rows|size 0|no rows|numel",
)
class Sine(Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    def backward(ctx, dz):
        (x,) = ctx.saved_tensors
        scale = dz.abs().amax().clamp(min=1e-30)
        return (dz / scale) * x.cos() * scale


# VeOmni#958: x[..., ::2] is made contiguous in forward and read as if it were in backward.
@wrong(
    "a_saved_input_is_read_as_if_contiguous",
    "input assumed contiguous in backward",
    normals((4, 3)),
    r"contiguous|layout|strid|transpos",
)
class Square(Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.square()

    @staticmethod
    def backward(ctx, dz):
        (x,) = ctx.saved_tensors
        dense = torch.empty(x.shape).stride()
        return 2 * dz * x.as_strided(x.shape, dense)


# Hidden where the layer is square.
@wrong(
    "the_weight_gradient_is_transposed",
    "transposed gradient of a square weight",
    normals((4, 3), (3, 3)),
    r"transpos",
)
class SquareLinear(Function):
    @staticmethod
    def forward(ctx, x, W):
        ctx.save_for_backward(x, W)
        return x @ W.T

    @staticmethod
    def backward(ctx, dz):
        x, W = ctx.saved_tensors
        return dz @ W, x.T @ dz


# The bias lies along the other dimension; hidden where both are equally long.
@wrong(
    "the_bias_of_the_rows_is_summed_over_the_rows",
    "summed over the wrong dimension",
    normals((3, 3), (3, 1)),
    r"sum|dimension|transpos|broadcast",
    r"analytic|numeric|central differences",
)
class AddD(Shift):
    @staticmethod
    def backward(ctx, dz):
        return dz, dz.sum(0).view(-1, 1)


# The loop over a batch returns at its first example.
@wrong(
    "the_weight_gradient_is_of_the_first_example",
    "not summed over the batch",
    normals((2, 4, 3), (5, 3)),
    r"sum|example|batch|slice",
    r"analytic|numeric|central differences",
)
class Linear(Function):
    @staticmethod
    def forward(ctx, x, W):
        ctx.save_for_backward(x, W)
        return x @ W.T

    @staticmethod
    def backward(ctx, dz):
        x, W = ctx.saved_tensors
        return dz @ W, dz[0].mT @ x[0]


# The batch size of the configuration; the last batch is smaller.
@wrong(
    "the_batch_is_taken_to_have_four_rows",
    "batch of another size",
    normals((4, 3)),
    r"batch|size|rows|too (small|large)",
)
class MeanSquare(Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.square().sum() / len(x)

    @staticmethod
    def backward(ctx, dz):
        (x,) = ctx.saved_tensors
        return dz * 2 * x / 4


# empty_like keeps the strides of a transposed input; the kernel writes row after row.
@wrong(
    "the_gradient_is_written_row_after_row_into_a_transposed_buffer",
    "layout of the result assumed",
    normals((4, 3)),
    r"contiguous|layout|strid|transpos",
)
class Exp(Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.exp()

    @staticmethod
    def backward(ctx, dz):
        (x,) = ctx.saved_tensors
        dx = torch.empty_like(x)
        dense = torch.empty(x.shape).stride()
        dx.as_strided(x.shape, dense, 0).copy_(dz * x.exp())
        return dx


# A vector of four numbers at a time, and what is left over at the end is nobody's.
@wrong(
    "the_last_numbers_are_left_over",
    "a tail of the whole, not of a row",
    normals((4, 8)),
    r"odd|number of elements",
)
class SquareByFours(Square):
    @staticmethod
    def backward(ctx, dz):
        (x,) = ctx.saved_tensors
        whole = x.numel() // 4 * 4
        dx = torch.zeros_like(x).flatten()
        dx[:whole] = (2 * x * dz).flatten()[:whole]
        return dx.view(x.shape)


# One block of 1024 threads a row, without a loop over the row.
@wrong(
    "a_row_longer_than_a_block_of_threads",
    "what lies beyond a block is not written",
    normals((4, 8)),
    r"1031|last dimension",
)
class SquareByBlocks(Square):
    @staticmethod
    def backward(ctx, dz):
        (x,) = ctx.saved_tensors
        dx = torch.zeros_like(x)
        dx[..., :1024] = (2 * x * dz)[..., :1024]
        return dx


# The same tail, of a loss: the labels have to grow with the batch, else forward refuses.
@wrong(
    "the_last_scores_are_left_over",
    "a tail of the whole, beside labels",
    given(normal(4, 8), torch.tensor([0, 3, 7, 1])),
    r"odd|number of elements",
)
class CrossEntropyByFours(Function):
    @staticmethod
    def forward(ctx, z, labels):
        one_hot = torch.nn.functional.one_hot(labels, z.shape[-1]).to(z.dtype)
        ctx.save_for_backward(z, one_hot)
        return -(one_hot * z.log_softmax(-1)).sum()

    @staticmethod
    def backward(ctx, dz):
        z, one_hot = ctx.saved_tensors
        kept = torch.arange(z.numel()).view(z.shape) < z.numel() // 4 * 4
        return dz * (z.softmax(-1) - one_hot) * kept, None
