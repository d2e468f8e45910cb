"""Right for the integers of their kind, and not for any: orders, masks of padding, one of each row."""

import torch
from catalogue import Entry, enter, given, normal
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn.functional import one_hot

ENTRIES: list[Entry] = []
right = enter(ENTRIES)
PADDING = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0]]).bool()


@right("a_mask_of_padding_is_kept_as_lengths", "it ends each row", given(normal(3, 4), PADDING))
@right(
    "a_mask_of_padding_that_hides_nothing",
    "it may end each row",
    given(normal(3, 4), torch.ones(3, 4, dtype=torch.bool)),
)
class MeanOfEach(Function):
    @staticmethod
    def forward(ctx, x, visible):
        lengths = visible.sum(-1)
        ctx.save_for_backward(lengths)
        ctx.length = x.shape[1]
        return (x * visible).sum(1) / lengths

    @staticmethod
    def backward(ctx, dz):
        (lengths,) = ctx.saved_tensors
        return (dz / lengths)[:, None] * (torch.arange(ctx.length) < lengths[:, None]), None


@right(
    "one_of_each_row_is_true",
    "p - y is the gradient of no other y",
    given(normal(4, 5), one_hot(torch.tensor([0, 2, 1, 4]), 5).bool()),
)
class CrossEntropy(Function):
    @staticmethod
    def forward(ctx, z, y):
        ctx.save_for_backward(z.softmax(-1) - y.to(z))
        return -(z.log_softmax(-1) * y).sum(-1)

    @staticmethod
    @once_differentiable
    def backward(ctx, dz):
        return dz[:, None] * ctx.saved_tensors[0], None


@right(
    "who_is_my_neighbour_has_me_as_one",
    "a matrix that is its own transpose",
    given(normal(3, 4), torch.tensor([[0, 1, 1], [1, 0, 0], [1, 0, 0]])),
)
class Neighbours(Function):
    @staticmethod
    def forward(ctx, x, near):
        ctx.save_for_backward(near)
        return near.to(x) @ x

    @staticmethod
    def backward(ctx, dz):
        return ctx.saved_tensors[0].to(dz) @ dz, None


LARGEST = normal(3, 5).topk(2, -1).indices


@right("the_largest_are_given_back", "no two of a row", given(normal(3, 5), LARGEST))
class Largest(Function):
    @staticmethod
    def forward(ctx, x, at):
        ctx.save_for_backward(at)
        ctx.shape = x.shape
        return x.gather(1, at)

    @staticmethod
    def backward(ctx, dz):
        return dz.new_zeros(ctx.shape).scatter(1, ctx.saved_tensors[0], dz), None


@right(
    "what_is_masked_has_no_weight",
    "-1e9 is enough as long as something is left of a row",
    given(normal(3, 4), torch.tensor([[1, 0, 1, 1], [1, 1, 0, 0], [0, 1, 1, 1]]).bool()),
)
class Attention(Function):
    @staticmethod
    def forward(ctx, scores, visible):
        p = scores.masked_fill(~visible, -1e9).softmax(-1)
        ctx.save_for_backward(p)
        return p

    @staticmethod
    @once_differentiable
    def backward(ctx, dz):
        (p,) = ctx.saved_tensors
        return p * (dz - (dz * p).sum(-1, keepdim=True)), None


@right(
    "labels_of_1_and_minus_1",
    "0 is none of them",
    given(normal(5), torch.tensor([1, -1, 1, 1, -1])),
)
@right("labels_that_are_all_minus_1", "nor is 1 known", given(normal(5), -torch.ones(5).long()))
class Pairs(Function):
    @staticmethod
    def forward(ctx, x, y):
        ctx.save_for_backward(x, y)
        return torch.where(y == 1, 1 - x, (x - 0.1).clamp(min=0))

    @staticmethod
    def backward(ctx, dz):
        x, y = ctx.saved_tensors
        return torch.where(y == -1, (x > 0.1) * dz, -dz), None


@right(
    "the_rows_of_each_segment_stand_together",
    "right as long as they rise",
    given(normal(3, 4), torch.tensor([0, 1, 2])),
)
@right(
    "segments_of_several_rows",
    "right as long as they rise",
    given(normal(6, 2), torch.tensor([0, 0, 1, 1, 1, 2])),
)
class Segments(Function):
    @staticmethod
    def forward(ctx, x, at):
        ctx.save_for_backward(at)
        return x.new_zeros(int(at.max()) + 1, *x.shape[1:]).index_add(0, at, x)

    @staticmethod
    def backward(ctx, dz):
        return dz.repeat_interleave(torch.bincount(ctx.saved_tensors[0]), 0), None


@right(
    "offsets_end_where_the_batch_ends",
    "a batch of another size has others",
    given(normal(7, 2), torch.tensor([0, 2, 5, 7])),
)
class SumsBetweenOffsets(Function):
    @staticmethod
    def forward(ctx, x, at):
        ctx.save_for_backward(at)
        sums = torch.cat((x.new_zeros(1, *x.shape[1:]), x.cumsum(0)))
        return sums[at[1:]] - sums[at[:-1]]

    @staticmethod
    def backward(ctx, dz):
        return dz.repeat_interleave(ctx.saved_tensors[0].diff(), 0), None


ORDER = torch.tensor([2, 5, 0, 3, 1, 4])


@right(
    "an_order_is_given_with_its_inverse",
    "one is made of the other",
    given(normal(6, 3), ORDER, ORDER.argsort()),
)
class Permuted(Function):
    @staticmethod
    def forward(ctx, x, order, inverse):
        ctx.save_for_backward(inverse)
        return x[order]

    @staticmethod
    def backward(ctx, dz):
        return dz[ctx.saved_tensors[0]], None, None


@right(
    "each_row_has_a_place_of_its_own",
    "written, not added: PyTorch's own",
    given(normal(5, 3), torch.tensor([0, 1, 2, 4, 5])),
)
def padded(h, at):
    rows = h.new_zeros(8, h.shape[1])
    rows[at] = h
    return rows.view(2, 4, -1)


@right(
    "a_triangle_is_filled",
    "two tables that belong together",
    given(normal(6), *torch.tril_indices(3, 3)),
)
def triangle(v, row, column):
    return v.new_zeros(3, 3).index_put((row, column), v)


# What integers point at is not there in a batch of one, or of none.
@right(
    "rows_are_added_where_integers_say",
    "an empty base has no such rows",
    given(normal(6, 3), torch.tensor([4, 1, 1, 3]), normal(4, 3, seed=1)),
)
class IndexAdd(Function):
    @staticmethod
    def forward(ctx, base, at, rows):
        ctx.save_for_backward(at)
        return base.index_add(0, at, rows)

    @staticmethod
    def backward(ctx, dz):
        return dz, None, dz[ctx.saved_tensors[0]]


@right(
    "a_ring_is_written_to",
    "in a ring of one each row is written over the one before",
    given(normal(6, 2), normal(3, 2, seed=1), torch.tensor(4)),
)
class Ring(Function):
    @staticmethod
    def forward(ctx, ring, rows, start):
        ctx.at = (start + torch.arange(len(rows))) % len(ring)
        return ring.index_copy(0, ctx.at, rows)

    @staticmethod
    def backward(ctx, dz):
        return dz.index_fill(0, ctx.at, 0), dz[ctx.at], None


@right(
    "rows_take_the_place_of_masked_ones",
    "as many as the mask has",
    given(normal(6, 3), torch.tensor([0, 1, 0, 1, 1, 0]).bool(), normal(3, 3, seed=1)),
)
class Inserted(Function):
    @staticmethod
    def forward(ctx, x, mask, rows):
        ctx.save_for_backward(mask)
        return x.masked_scatter(mask[:, None].expand_as(x), rows)

    @staticmethod
    def backward(ctx, dz):
        (mask,) = ctx.saved_tensors
        return dz.masked_fill(mask[:, None], 0), None, dz[mask]
