"""Right in the first backward; wrong in the second, in forward mode or under vmap."""

import torch
from catalogue import Entry, enter, normals
from torch.autograd import Function

ENTRIES: list[Entry] = []
wrong = enter(ENTRIES)
SECOND = (r"second (backward|derivative|order)|double backward|backward of (the )?backward",)


# pytorch/pytorch#58509 and #104040: the intermediate has no history.
@wrong(
    "an_intermediate_is_kept_without_its_history",
    "second derivative: intermediate saved",
    normals((4, 3)),
    *SECOND,
)
class DoubleExp(Function):
    @staticmethod
    def forward(ctx, x):
        e = torch.exp(x)
        ctx.save_for_backward(e)
        return e.square()

    @staticmethod
    def backward(ctx, dz):
        (e,) = ctx.saved_tensors
        return 2 * e * e * dz


class CubeBackward(Function):
    @staticmethod
    def forward(ctx, x, dz):
        ctx.save_for_backward(x, dz)
        return 3 * x.square() * dz

    @staticmethod
    def backward(ctx, ddx):
        x, dz = ctx.saved_tensors
        return 3 * x * dz * ddx, 3 * x.square() * ddx  # 6 x


# A second Function for the backward, with a backward of its own (activation kernels do so).
@wrong(
    "the_backward_of_the_backward_has_a_wrong_factor",
    "second derivative: wrong formula",
    normals((4, 3)),
    *SECOND,
)
class Cube(Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, dz):
        (x,) = ctx.saved_tensors
        return CubeBackward.apply(x, dz)


# numpy sees numbers only; without once_differentiable the second derivative is lost in silence.
@wrong(
    "numpy_in_backward_loses_the_second_derivative",
    "second derivative: history lost",
    normals((4, 3)),
    *SECOND,
    r"once_differentiable",
)
class NumpySine(Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    def backward(ctx, dz):
        import numpy

        (x,) = ctx.saved_tensors
        return torch.from_numpy(dz.detach().numpy() * numpy.cos(x.detach().numpy()))


# pytorch/pytorch#198017 lists forward-mode rules that are wrong where backward is right.
@wrong(
    "forward_mode_leaves_the_square_out",
    "jvp wrong, backward right",
    normals((4, 3)),
    r"forward.mode|jvp|tangent",
)
class Reciprocal(Function):
    @staticmethod
    def forward(x):
        return 1 / x

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(output)
        ctx.save_for_forward(output)

    @staticmethod
    def backward(ctx, dz):
        (z,) = ctx.saved_tensors
        return -dz * z.square()

    @staticmethod
    def jvp(ctx, x_dot):
        (z,) = ctx.saved_tensors
        return -x_dot * z


# A rule that takes the batch to be in front.
@wrong(
    "the_vmap_rule_takes_the_batch_to_be_in_front",
    "vmap with in_dims other than 0",
    normals((3, 4)),
    r"vmap",
)
class SumOfRows(Function):
    @staticmethod
    def forward(x):
        return x.sum(0)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.rows = len(inputs[0])

    @staticmethod
    def backward(ctx, dz):
        return dz.expand(ctx.rows, *dz.shape)

    @staticmethod
    def vmap(info, in_dims, x):
        return torch.stack([SumOfRows.apply(example) for example in x]), 0


# A rule that goes through both inputs side by side, although one of them may not be batched.
@wrong(
    "the_vmap_rule_takes_every_input_to_be_batched",
    "vmap with an input that is not batched",
    normals((4,), (4,)),
    r"vmap",
)
class Weighted(Function):
    @staticmethod
    def forward(x, w):
        return x * w

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, dz):
        x, w = ctx.saved_tensors
        return dz * w, dz * x

    @staticmethod
    def vmap(info, in_dims, x, w):
        x = x if in_dims[0] is None else x.movedim(in_dims[0], 0)
        w = w if in_dims[1] is None else w.movedim(in_dims[1], 0)
        pairs = zip(x, w, strict=False)
        return torch.stack([Weighted.apply(a, b) for a, b in pairs]), 0


# The input's history is kept, the incoming gradient's is cut.
@wrong(
    "the_incoming_gradient_loses_its_history",
    "second derivative: incoming gradient detached",
    normals((4, 3)),
    *SECOND,
)
class Exp(Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.exp()

    @staticmethod
    def backward(ctx, dz):
        (x,) = ctx.saved_tensors
        return dz.detach() * x.exp()


@wrong(
    "forward_mode_leaves_out_the_second_input",
    "jvp: one tangent left out",
    normals((4, 3), (4, 3)),
    r"forward.mode|jvp|tangent",
)
class Product(Function):
    @staticmethod
    def forward(a, b):
        return a * b

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx, dz):
        a, b = ctx.saved_tensors
        return dz * b, dz * a

    @staticmethod
    def jvp(ctx, a_dot, b_dot):
        a, b = ctx.saved_tensors
        return torch.zeros_like(a) if a_dot is None else a_dot * b


# The values are right under vmap; what flows back through them is nothing.
@wrong(
    "the_vmap_rule_cuts_the_gradient_off",
    "gradient lost under vmap",
    normals((3,)),
    r"vmap",
)
class Squares(Function):
    @staticmethod
    def forward(x):
        return x.square()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, dz):
        (x,) = ctx.saved_tensors
        return 2 * x * dz

    @staticmethod
    def vmap(info, in_dims, x):
        return Squares.apply(x.detach()), in_dims[0]
