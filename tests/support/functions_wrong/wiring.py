"""Wrong in which gradient goes where: outputs left out, inputs that get none or another's."""

import torch
from catalogue import Entry, enter, given, normal, normals
from torch import nn
from torch.autograd import Function

ENTRIES: list[Entry] = []
wrong = enter(ENTRIES)
NONE = r"\bNone\b", r"no gradient", r"(without|not given|no) a? ?gradient", r"missing", r"dropped"


# Common in layers with an auxiliary output (a mixture's balance, an attention's log-sum-exp).
@wrong(
    "the_gradient_of_the_second_output_is_left_out",
    "one output's gradient used of two",
    normals((4, 3)),
    r"output",
)
class SineAndCosine(Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.sin(), x.cos()

    @staticmethod
    def backward(ctx, d_sin, d_cos):
        (x,) = ctx.saved_tensors
        return d_sin * x.cos()


# Attention kernels return the log-sum-exp beside the output; it has a gradient too.
@wrong(
    "the_second_output_is_declared_not_differentiable",
    "second output cancelled",
    normals((4, 3)),
    r"output",
    r"not differentiable|mark_non_differentiable|non.differentiable",
)
class SoftmaxAndLogSum(Function):
    @staticmethod
    def forward(ctx, x):
        y, total = x.softmax(1), x.logsumexp(1)
        ctx.save_for_backward(y)
        ctx.mark_non_differentiable(total)
        return y, total

    @staticmethod
    def backward(ctx, dy, _):
        (y,) = ctx.saved_tensors
        return y * (dy - (y * dy).sum(1, keepdim=True))


# set_materialize_grads(False) hands None for an output that the loss does not read.
@wrong(
    "an_output_that_is_not_used_ends_in_an_error",
    "gradient None of an unused output not met",
    normals((4, 3)),
    r"\bNone\b|NoneType",
    r"output.*(alone|unused|not used)|(alone|unused|one) .*output",
)
class SumAndProduct(Function):
    @staticmethod
    def forward(ctx, x):
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x)
        return x.sum(1), x.square()

    @staticmethod
    def backward(ctx, d_sum, d_square):
        (x,) = ctx.saved_tensors
        return d_sum[:, None].expand_as(x) + 2 * x * d_square


# The last gradient is often forgotten when a bias is added later.
@wrong(
    "the_bias_gets_none", "None for an input that needs it", normals((4, 3), (5, 3), (5,)), *NONE
)
class Linear(Function):
    @staticmethod
    def forward(ctx, x, W, b):
        ctx.save_for_backward(x, W)
        return x @ W.T + b

    @staticmethod
    def backward(ctx, dz):
        x, W = ctx.saved_tensors
        return dz @ W, dz.T @ x, None


class MeanOf(Function):
    @staticmethod
    def forward(ctx, tensors):
        return sum(tensors) / len(tensors)

    @staticmethod
    def backward(ctx, dz):
        return [dz / 2, dz / 2]


# pytorch/pytorch#55509: apply does not look into a list.
@wrong(
    "tensors_in_a_list_are_not_seen",
    "list of tensors given to apply",
    given([normal(4, 3), normal(4, 3, seed=1)]),
    *NONE,
    r"list",
)
def mean_of(tensors):
    return MeanOf.apply(tensors)


# A scale that is meant to be learned, read as a constant.
@wrong(
    "a_keyword_argument_is_cut_off",
    "keyword tensor detached",
    given(normal(4, 3), scale=normal(3, seed=1)),
    *NONE,
    r"scale",
)
def with_gain(x, *, scale):
    return x * scale.detach()


class SortedProduct(Function):
    @staticmethod
    def forward(ctx, query, key):
        ctx.save_for_backward(query, key)
        return query.sin() * key

    @staticmethod
    def backward(ctx, dz):
        query, key = ctx.saved_tensors
        gradients = {"query": dz * query.cos() * key, "key": dz * query.sin()}
        return tuple(gradients[name] for name in sorted(gradients))


# The names are sorted in one place and in the order of insertion in the other.
@wrong(
    "two_tensors_of_a_dict_get_each_others_gradient",
    "gradients in the wrong order",
    given({"query": normal(4, 3), "key": normal(4, 3, seed=1)}),
    r"order|swap|exchang|each other|other input|another input",
    r"analytic|numeric|central differences",
)
def attend(batch):
    return SortedProduct.apply(batch["query"], batch["key"])


# Frozen layers: what the gain's gradient reads is kept only where x's is asked for (apex#1517 is a neighbour).
@wrong(
    "the_gain_gets_nothing_when_the_input_is_frozen",
    "subset of needed gradients",
    normals((4, 3), (4, 3)),
    r"alone|subset|needs|frozen|only",
)
class Product(Function):
    @staticmethod
    def forward(ctx, x, gain):
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(x, gain)
        return x * gain

    @staticmethod
    def backward(ctx, dz):
        if not ctx.saved_tensors:
            return None, None
        x, gain = ctx.saved_tensors
        return dz * gain, dz * x


# A backward kernel that returns the needed gradients only; they move up where one is not needed.
@wrong(
    "gradients_move_up_where_one_is_not_needed",
    "gradients shifted by a frozen input",
    normals((4, 3), (4, 3), (4, 3)),
    r"alone|subset|needs|frozen|only",
)
class TripleProduct(Function):
    @staticmethod
    def forward(ctx, a, b, c):
        ctx.save_for_backward(a, b, c)
        return a * b * c

    @staticmethod
    def backward(ctx, dz):
        a, b, c = ctx.saved_tensors
        all_three = dz * b * c, dz * a * c, dz * a * b
        needed = [g for g, needs in zip(all_three, ctx.needs_input_grad, strict=True) if needs]
        return *needed, *[None] * (3 - len(needed))


# Fused accumulation (Megatron-LM's adds to weight.main_grad), taken to be seen by autograd.grad too.
@wrong(
    "the_weight_gradient_goes_straight_into_grad",
    "gradient written to .grad in place of returned",
    normals((4, 3), (5, 3)),
    *NONE,
    r"\.grad\b",
)
class FusedLinear(Function):
    @staticmethod
    def forward(ctx, x, W):
        ctx.save_for_backward(x, W)
        return x @ W.T

    @staticmethod
    def backward(ctx, dz):
        x, W = ctx.saved_tensors
        dW = dz.T @ x
        W.grad = dW if W.grad is None else W.grad + dW
        return dz @ W, None


# d2l-ai/d2l-en#2600: a custom layer that reads weight.data.
@wrong(
    "a_module_reads_its_weight_through_data",
    "parameter cut off",
    normals((4, 3)),
    *NONE,
    r"weight",
    module=True,
)
class DataLinear(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight, self.bias = nn.Parameter(normal(5, 3)), nn.Parameter(torch.zeros(5))

    def forward(self, x):
        return x @ self.weight.data.T + self.bias
