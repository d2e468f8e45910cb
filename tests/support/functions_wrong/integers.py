"""Wrong for other integers than those given: a mask that hides nothing, lengths that are all the same."""

import math

import torch
from catalogue import Entry, enter, given, normal
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn.functional import nll_loss, one_hot

ENTRIES: list[Entry] = []
wrong = enter(ENTRIES)


@wrong(
    "a_mask_that_hides_nothing_is_forgotten",
    "a mask of all True",
    given(normal(3, 4), torch.ones(3, 4, dtype=torch.bool)),
    r"dx is wrong for another mask",
)
class Hidden(Function):
    @staticmethod
    def forward(ctx, x, visible):
        return x.masked_fill(~visible, 0.0)

    @staticmethod
    def backward(ctx, dz):
        return dz, None


class InOrder(Function):
    @staticmethod
    def forward(ctx, x, order):
        ctx.save_for_backward(order)
        return x[order]

    @staticmethod
    def backward(ctx, dz):
        return dz[ctx.saved_tensors[0]], None


@wrong(
    "the_first_length_serves_for_all",
    "lengths that are all the same",
    given(normal(3, 4), torch.tensor([4, 4, 4])),
    r"other integers",
)
class MeanOfEach(Function):
    @staticmethod
    def forward(ctx, x, lengths):
        ctx.save_for_backward(x, lengths)
        return x.sum(1) / lengths

    @staticmethod
    def backward(ctx, dz):
        x, lengths = ctx.saved_tensors
        return (dz / lengths[0])[:, None].expand_as(x), None


@wrong(
    "a_class_that_no_label_names",
    "another formula for one class",
    given(normal(4, 5), torch.tensor([0, 2, 1, 3])),
    r"other integers",
)
class Weighted(Function):
    @staticmethod
    def forward(ctx, z, labels):
        log_p = z.log_softmax(-1)
        ctx.save_for_backward(log_p, labels)
        return -log_p.gather(1, labels[:, None])[:, 0] * (1 + (labels == 4))

    @staticmethod
    @once_differentiable
    def backward(ctx, dz):
        log_p, labels = ctx.saved_tensors
        return (log_p.exp() - one_hot(labels, 5)) * dz[:, None], None


@wrong(
    "the_factor_of_what_is_there_is_forgotten",
    "targets that are all 0",
    given(normal(3, 4), torch.zeros(3, 4, dtype=torch.long)),
    r"other integers",
)
class Rare(Function):
    @staticmethod
    def forward(ctx, x, y):
        ctx.save_for_backward(x, y)
        return (1 + 2 * y) * (x - y).square()

    @staticmethod
    def backward(ctx, dz):
        x, y = ctx.saved_tensors
        return 2 * dz * (x - y), None


@wrong(
    "ignored_labels_count_in_the_mean",
    "no label is ignored",
    given(normal(4, 5), torch.tensor([0, 2, 1, 4])),
    r"label is -100",
)
class MeanOfLabels(Function):
    @staticmethod
    def forward(ctx, z, labels):
        log_p = z.log_softmax(-1)
        ctx.save_for_backward(log_p, labels)
        return nll_loss(log_p, labels)

    @staticmethod
    @once_differentiable
    def backward(ctx, dz):
        log_p, labels = ctx.saved_tensors
        d = log_p.exp() - one_hot(labels.clamp(min=0), log_p.shape[-1])
        return d * (labels != -100)[:, None] * dz / len(labels), None


@wrong(
    "ids_that_come_once_in_a_table",
    "written over, and not added",
    given(normal(5, 3), torch.tensor([[0, 1], [2, 3]])),
    r"two of the integers are the same",
)
class Looked(Function):
    @staticmethod
    def forward(ctx, table, ids):
        ctx.save_for_backward(ids)
        ctx.shape = table.shape
        return table[ids]

    @staticmethod
    def backward(ctx, dz):
        dtable = dz.new_zeros(ctx.shape)
        dtable[ctx.saved_tensors[0]] = dz
        return dtable, None


@wrong(
    "what_is_gathered_is_written_over",
    "no index twice in a row",
    given(normal(3, 4), torch.tensor([[0, 1], [2, 3], [1, 0]])),
    r"integers in a row are the same",
)
class Gathered(Function):
    @staticmethod
    def forward(ctx, x, at):
        ctx.save_for_backward(at)
        ctx.shape = x.shape
        return x.gather(1, at)

    @staticmethod
    def backward(ctx, dz):
        return dz.new_zeros(ctx.shape).scatter(1, ctx.saved_tensors[0], dz), None


@wrong(
    "a_row_that_is_masked_throughout_becomes_nan",
    "0 / 0 in backward alone",
    given(normal(3, 4), torch.tensor([[1, 0, 1, 1], [0, 1, 0, 1], [0, 1, 1, 1]]).bool()),
    r"NaN where a row is masked throughout",
)
class MeanOfVisible(Function):
    @staticmethod
    def forward(ctx, x, visible):
        count = visible.sum(-1, keepdim=True)
        ctx.save_for_backward(visible, count)
        return x * visible / count.clamp(min=1)

    @staticmethod
    def backward(ctx, dz):
        visible, count = ctx.saved_tensors
        return dz * visible / count, None


@wrong(
    "causal_whatever_mask_is_given",
    "the mask was a triangle",
    given(*(normal(2, 5, 4, seed=k) for k in range(3)), torch.ones(5, 5).bool().tril()),
    r"wrong for another mask",
)
class CausalAttention(Function):
    @staticmethod
    def forward(ctx, q, k, v, mask):
        ctx.save_for_backward(q, k, v)
        return (q @ k.mT / 2).masked_fill(~mask, -math.inf).softmax(-1) @ v

    @staticmethod
    def backward(ctx, dz):
        q, k, v = ctx.saved_tensors
        scores = q @ k.mT / 2
        mask = torch.ones(scores.shape[-2:]).bool().tril()
        p = scores.masked_fill(~mask, -math.inf).softmax(-1)
        dp = dz @ v.mT
        ds = p * (dp - (dp * p).sum(-1, keepdim=True))
        return ds @ k / 2, ds.mT @ q / 2, p.mT @ dz, None


@wrong(
    "where_the_slice_begins_is_forgotten",
    "it began at 0",
    given(normal(2, 6), torch.tensor(0)),
    r"wrong for another number",
)
class Begun(Function):
    @staticmethod
    def forward(ctx, x, start):
        ctx.shape = x.shape
        return x[:, start : start + 3].clone()

    @staticmethod
    def backward(ctx, dz):
        dx = dz.new_zeros(ctx.shape)
        dx[:, : dz.shape[1]] = dz
        return dx, None


@wrong(
    "positions_are_counted_anew",
    "they were 0 to n - 1",
    given(normal(2, 5, 4), torch.arange(5)),
    r"positions that begin elsewhere",
)
class Rotated(Function):
    @staticmethod
    def forward(ctx, x, positions):
        return turned(x, positions, 1)

    @staticmethod
    def backward(ctx, dz):
        return turned(dz, torch.arange(dz.shape[-2]), -1), None


def turned(x, positions, way):
    angles = positions[:, None].to(x) * 100.0 ** -torch.arange(2, dtype=x.dtype)
    a, b = x.chunk(2, -1)
    cos, sin = angles.cos(), way * angles.sin()
    return torch.cat((a * cos - b * sin, a * sin + b * cos), -1)


@wrong(
    "the_mask_of_a_loss_is_forgotten",
    "nothing was masked, beside labels",
    given(normal(2, 3, 5), torch.tensor([[1, 4, 2], [0, 3, 1]]), torch.ones(2, 3).bool()),
    r"wrong for another mask",
)
class MaskedLoss(Function):
    @staticmethod
    def forward(ctx, z, labels, mask):
        ctx.save_for_backward(z, labels, mask)
        found = z.log_softmax(-1).gather(-1, labels[..., None])[..., 0]
        return -(found * mask).sum() / mask.sum()

    @staticmethod
    def backward(ctx, dz):
        z, labels, mask = ctx.saved_tensors
        return dz * (z.softmax(-1) - one_hot(labels, z.shape[-1]).to(z)) / mask.sum(), None, None


@wrong(
    "the_lengths_of_a_loss_are_forgotten",
    "all were whole, beside labels",
    given(normal(2, 3, 5), torch.tensor([[1, 4, 2], [0, 3, 1]]), torch.tensor([3, 3])),
    r"wrong for other integers",
)
class LossOfLengths(Function):
    @staticmethod
    def forward(ctx, p, labels, lengths):
        ctx.save_for_backward(labels, lengths)
        ctx.shape = p.shape
        seen = torch.arange(labels.shape[1]) < lengths[:, None]
        return -(p.gather(2, labels[..., None])[..., 0] * seen).sum(1) / lengths

    @staticmethod
    def backward(ctx, dz):
        labels, lengths = ctx.saved_tensors
        each = -(dz / lengths)[:, None].expand(labels.shape)
        return dz.new_zeros(ctx.shape).scatter(2, labels[..., None], each[..., None]), None, None
