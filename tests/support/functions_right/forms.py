"""Right, in a form that is unusual: in place, views, lists, dicts, numpy, options, several outputs."""

import numpy
import torch
from catalogue import Entry, enter, given, normal, normals
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

ENTRIES: list[Entry] = []
right = enter(ENTRIES)


@right("an_exponential_in_place", "in-place Function, marked dirty", normals((4, 3)))
class ExpInPlace(Function):
    @staticmethod
    def forward(ctx, x):
        x.exp_()
        ctx.mark_dirty(x)
        ctx.save_for_backward(x)
        return x

    @staticmethod
    def backward(ctx, dz):
        (z,) = ctx.saved_tensors
        return dz * z


@right("operations_in_place_on_a_copy", "in place on a clone", normals((4, 3)))
def doubled_columns(x):
    y = x.clone()
    y[:, 0].mul_(2)
    y.add_(1)
    return y.square()


@right("every_second_column_is_read", "elements not read", normals((4, 6)))
class EverySecond(Function):
    @staticmethod
    def forward(x):
        return x[:, ::2].exp()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.shape = inputs[0].shape
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx, dz):
        (z,) = ctx.saved_tensors
        dx = dz.new_zeros(ctx.shape)
        dx[:, ::2] = dz * z
        return dx


@right(
    "a_gather_reads_some_elements",
    "elements not read; integer input",
    given(normal(3, 5), torch.tensor([[0, 4], [1, 1], [3, 0]])),
)
def gathered(x, positions):
    return x.gather(1, positions).tanh()


@right(
    "an_embedding_of_ids_that_leave_rows_unused",
    "token ids",
    given(torch.tensor([[1, 3], [3, 0]]), normal(7, 4)),
)
class Embedding(Function):
    @staticmethod
    def forward(ctx, ids, table):
        ctx.save_for_backward(ids)
        ctx.rows = len(table)
        return table[ids]

    @staticmethod
    def backward(ctx, dz):
        (ids,) = ctx.saved_tensors
        table = dz.new_zeros(ctx.rows, dz.shape[-1])
        table.index_put_((ids,), dz, accumulate=True)
        return None, table


@right(
    "a_boolean_mask_hides_elements",
    "bool input",
    given(normal(3, 4), torch.tensor([True, False, True, True])),
)
def masked_softmax(scores, visible):
    return scores.masked_fill(~visible, float("-inf")).softmax(-1)


@right(
    "a_gain_without_its_bias", "optional input None", given(normal(4, 3), normal(3, seed=1), None)
)
class Gain(Function):
    @staticmethod
    def forward(ctx, x, gain, b):
        ctx.save_for_backward(x, gain)
        return x * gain if b is None else x * gain + b

    @staticmethod
    def backward(ctx, dz):
        x, gain = ctx.saved_tensors
        return dz * gain, (dz * x).sum(0), dz.sum(0) if ctx.needs_input_grad[2] else None


@right("the_output_is_a_view_of_the_input", "output a view", normals((4, 3)))
class Transpose(Function):
    @staticmethod
    def forward(ctx, x):
        return x.T

    @staticmethod
    def backward(ctx, dz):
        return dz.T


@right("the_input_is_returned_as_it_is", "output the input itself", normals((4, 3)))
class Identity(Function):
    @staticmethod
    def forward(ctx, x):
        return x

    @staticmethod
    def backward(ctx, dz):
        return dz


@right("the_positions_of_a_maximum_come_with_it", "second output of integers", normals((3, 5)))
class MaximumAndPosition(Function):
    @staticmethod
    def forward(ctx, x):
        values, positions = x.max(1)
        ctx.save_for_backward(positions)
        ctx.mark_non_differentiable(positions)
        ctx.columns = x.shape[1]
        return values, positions

    @staticmethod
    def backward(ctx, dz, _):
        (positions,) = ctx.saved_tensors
        dx = dz.new_zeros(len(dz), ctx.columns)
        return dx.scatter(1, positions[:, None], dz[:, None])


@right("a_list_of_tensors", "list input", given([normal(2, 3), normal(4, 3, seed=1)]))
def stacked(tensors):
    return torch.cat(tensors).sigmoid()


@right(
    "a_dict_and_keyword_arguments",
    "dict and keyword tensors; dict output",
    given(
        {"query": normal(3, 4), "key": normal(5, 4, seed=1)}, scale=torch.tensor(0.5), causal=False
    ),
)
def attention_scores(batch, *, scale, causal):
    scores = batch["query"] @ batch["key"].T * scale
    return {"weights": (scores.tril() if causal else scores).softmax(-1)}


@right("it_can_be_differentiated_once", "once_differentiable", normals((4, 3)))
class Once(Function):
    @staticmethod
    def forward(ctx, x):
        e = x.exp()
        ctx.save_for_backward(e)
        return e.square()

    @staticmethod
    @once_differentiable
    def backward(ctx, dz):
        (e,) = ctx.saved_tensors
        return 2 * e * e * dz


@right("numpy_computes_both_ways", "numpy with a backward of its own", normals((4, 3)))
class NumpySine(Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return torch.from_numpy(numpy.asarray(numpy.sin(x.detach().numpy())))

    @staticmethod
    @once_differentiable
    def backward(ctx, dz):
        (x,) = ctx.saved_tensors
        return torch.from_numpy(numpy.asarray(dz.numpy() * numpy.cos(x.detach().numpy())))


@right(
    "a_gradient_left_for_autograd_to_sum",
    "one gradient for both, not summed",
    normals((4, 3), (3,)),
)
class Add(Function):
    @staticmethod
    def forward(ctx, x, b):
        return x + b

    @staticmethod
    def backward(ctx, dz):
        return dz, dz  # autograd sums it to b's shape


@right("gradients_of_unused_outputs_are_met_as_none", "materialize_grads off", normals((4, 3)))
class SumAndSquare(Function):
    @staticmethod
    def forward(ctx, x):
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x)
        return x.sum(1), x.square()

    @staticmethod
    def backward(ctx, d_sum, d_square):
        (x,) = ctx.saved_tensors
        dx = torch.zeros_like(x)
        if d_sum is not None:
            dx = dx + d_sum[:, None]
        if d_square is not None:
            dx = dx + 2 * x * d_square
        return dx


def block(x, W):
    return torch.tanh(x @ W).square()


@right("a_checkpoint_inside", "checkpoint", normals((4, 3), (3, 5)))
def checkpointed(x, W):
    return checkpoint(block, x, W, use_reentrant=False)


@right("an_argument_that_is_not_used", "input of no influence", normals((4, 3), (2,)))
def first_of_two(x, unused):
    return x.exp()


@right("a_gradient_that_is_an_expanded_view", "gradient with stride 0", normals((4, 3)))
class Total(Function):
    @staticmethod
    def forward(ctx, x):
        ctx.shape = x.shape
        return x.sum()

    @staticmethod
    def backward(ctx, dz):
        return dz.expand(ctx.shape)


@right("a_vmap_rule_that_moves_the_batch", "vmap rule", normals((3, 4)))
class SumOfRows(Function):
    @staticmethod
    def forward(x):
        return x.sum(-2)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.shape = inputs[0].shape

    @staticmethod
    def backward(ctx, dz):
        return dz.unsqueeze(-2).expand(ctx.shape)

    @staticmethod
    def vmap(info, in_dims, x):
        return SumOfRows.apply(x.movedim(in_dims[0], 0)), 0


@right(
    "an_order_that_has_each_index_once",
    "right as long as no index repeats",
    given(torch.linspace(-1, 1, 12).view(4, 3).sin(), torch.tensor([2, 0, 3, 1])),
)
class InOrder(Function):
    @staticmethod
    def forward(ctx, x, order):
        ctx.save_for_backward(order)
        return x[order]

    @staticmethod
    def backward(ctx, dz):
        (order,) = ctx.saved_tensors
        dx = torch.zeros_like(dz)
        dx[order] = dz
        return dx, None


def _squared(x, t):
    return (x - t).square().mean()


@right(
    "integers_that_are_a_target",
    "one of two inputs changes its shape",
    given(torch.linspace(-1, 1, 5), torch.tensor([0, 1, 4, 2, 0])),
)
class OfTarget(Function):
    @staticmethod
    def forward(ctx, x, t):
        ctx.save_for_backward(x, t)
        return _squared(x, t)

    @staticmethod
    def backward(ctx, dz):
        x, t = ctx.saved_tensors
        return 2 * dz * (x - t) / x.numel(), None


@right(
    "rows_that_are_written_over_others",
    "an index twice writes one place twice",
    given(
        torch.linspace(-1, 1, 12).view(6, 2),
        torch.tensor([4, 0]),
        torch.linspace(1, 2, 4).view(2, 2),
    ),
)
class Overwrite(Function):
    @staticmethod
    def forward(ctx, x, places, rows):
        ctx.save_for_backward(places)
        return x.index_copy(0, places, rows)

    @staticmethod
    def backward(ctx, dz):
        (places,) = ctx.saved_tensors
        return dz.index_fill(0, places, 0), None, dz[places]


@right(
    "rows_that_are_kept",
    "unique by contract, as they rise",
    given(torch.linspace(-1, 1, 18).view(6, 3).sin(), torch.tensor([0, 2, 5])),
)
class Kept(Function):
    @staticmethod
    def forward(ctx, x, keep):
        ctx.save_for_backward(keep)
        ctx.shape = x.shape
        return x[keep]

    @staticmethod
    def backward(ctx, dz):
        (keep,) = ctx.saved_tensors
        dx = dz.new_zeros(ctx.shape)
        dx[keep] = dz
        return dx, None


@right(
    "a_parameter_without_elements", "nothing to differ in", given(torch.ones(3, 4), torch.zeros(0))
)
def with_nothing(x, w):
    return x.sin().sum(-1) + w.sum()


@right("a_squeeze_on_purpose", "the operation itself", normals((3, 4)))
def squeezed(x):
    return x.squeeze() * 2


@right("one_output_is_detached", "an output without a gradient", normals((3, 4)))
def beside_its_double(x):
    return x * 2, x.detach() * 3


@right("a_constant_beside", "an output of a dtype of its own", normals((3, 4)))
def beside_a_constant(x):
    return x * 2, torch.ones(3)


ROTATION = torch.linalg.qr(torch.arange(16.0, dtype=torch.float64).cos().view(4, 4)).Q


@right("a_matrix_of_float64_outside", "it takes float64 alone", normals((3, 4)))
def rotated(x):
    return x @ ROTATION


@right(
    "a_loss_whose_gradient_is_made_in_forward",
    "labels are as long as the batch",
    given(normal(4, 6), torch.tensor([0, 1, 2, 5])),
)
class CrossEntropy(Function):
    @staticmethod
    def forward(ctx, z, labels):
        log_p, rows = z.log_softmax(-1), torch.arange(len(labels))
        dz = log_p.exp()
        dz[rows, labels] -= 1
        ctx.save_for_backward(dz / len(labels))
        return -log_p.gather(1, labels[:, None]).mean()

    @staticmethod
    @once_differentiable
    def backward(ctx, dz):
        return dz * ctx.saved_tensors[0], None


@right(
    "a_loss_of_every_pixel",
    "labels have all sizes of the input but one",
    given(normal(2, 3, 4, 2), torch.arange(16).view(2, 4, 2) % 3),
)
class PixelCrossEntropy(Function):
    @staticmethod
    def forward(ctx, z, labels):
        log_p, at = z.log_softmax(1), labels[:, None]
        dz = log_p.exp().scatter_add(1, at, -torch.ones_like(log_p))
        ctx.save_for_backward(dz / labels.numel())
        return -log_p.gather(1, at).mean()

    @staticmethod
    @once_differentiable
    def backward(ctx, dz):
        return dz * ctx.saved_tensors[0], None


@right(
    "a_complex_square_once",
    "once_differentiable and complex",
    given(torch.complex(normal(3, 4), normal(3, 4, seed=1))),
)
class ComplexSquare(Function):
    @staticmethod
    def forward(ctx, z):
        ctx.save_for_backward(z)
        return z * z

    @staticmethod
    @once_differentiable
    def backward(ctx, dz):
        return 2 * ctx.saved_tensors[0].conj() * dz


@right("once_beside_a_path_of_autograd", "once_differentiable inside", normals((4, 3)))
def once_inside(x):
    return Once.apply(2 * x) + x.square()


@right("a_reentrant_checkpoint", "torch.autograd.grad is refused", normals((4, 3), (3, 5)))
def reentrant(x, W):
    return checkpoint(block, x, W, use_reentrant=True)


@right(
    "a_table_with_a_padding_row_beside_a_function",
    "PyTorch means another gradient, in other shapes too",
    given(normal(4, 3), normal(6, 3, seed=1), torch.tensor([0, 1, 1, 2])),
)
def with_padding(x, table, ids):
    return Transpose.apply(x).T + torch.nn.functional.embedding(ids, table, padding_idx=1)
