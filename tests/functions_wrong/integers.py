"""Wrong for other integers than those given: a mask that hides nothing, lengths that are all the same."""

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
