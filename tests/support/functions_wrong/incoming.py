"""Wrong in what they make of the incoming gradient."""

import torch
from catalogue import Entry, enter, normals
from torch.autograd import Function

ENTRIES: list[Entry] = []
wrong = enter(ENTRIES)


# pytorch/pytorch#81417 asks for a check of it; ReLU layers that zero the gradient where it lies.
@wrong(
    "the_incoming_gradient_is_overwritten",
    "incoming gradient overwritten in place",
    normals((4, 3)),
    r"overwrit",
    r"in place",
    r"incoming gradient.*(changed|modified)",
)
class ReLU(Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.clamp(min=0)

    @staticmethod
    def backward(ctx, dz):
        (x,) = ctx.saved_tensors
        dz[x < 0] = 0
        return dz


# Fused losses that make the gradient in forward (NVIDIA/TransformerEngine#2139 is a neighbour).
@wrong(
    "a_loss_ignores_the_incoming_gradient",
    "incoming gradient ignored",
    normals((4, 3), (4, 3)),
    r"incoming gradient",
)
class SquaredError(Function):
    @staticmethod
    def forward(ctx, x, target):
        ctx.save_for_backward(2 * (x - target) / x.numel())
        return (x - target).square().mean()

    @staticmethod
    def backward(ctx, dz):
        (dx,) = ctx.saved_tensors
        return dx, -dx


# HawkAaron/warp-transducer#23 and NVIDIA/TransformerEngine#2139: right for a scalar loss alone.
@wrong(
    "losses_of_all_rows_are_weighed_by_the_first",
    "incoming gradient assumed to be one number",
    normals((4, 3)),
    r"incoming gradient",
    r"one (number|element|value|output)|first (row|element|output)|scalar|uniform",
)
class RowEnergy(Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.square().sum(1)

    @staticmethod
    def backward(ctx, dz):
        (x,) = ctx.saved_tensors
        return 2 * x * dz.flatten()[0]


# Dao-AILab/flash-attention#355, FlagGems#1084, unsloth#10617: rows read at the layout of the output.
@wrong(
    "the_incoming_gradient_is_read_at_the_layout_of_the_output",
    "incoming gradient assumed contiguous",
    normals((4, 3)),
    r"contiguous|layout|strid|transpos",
)
class Sine(Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    def backward(ctx, dz):
        (x,) = ctx.saved_tensors
        rows, columns = x.shape
        return x.cos() * dz.as_strided((rows, columns), (columns, 1), dz.storage_offset())


# Dao-AILab/quack#88, NVIDIA/apex#1601: sum() hands out an expanded gradient, and view refuses.
@wrong(
    "the_incoming_gradient_is_viewed_in_another_shape",
    "view of a gradient that is not contiguous",
    normals((2, 4, 3), (3,)),
    r"contiguous|layout|strid|expand|view",
)
class Gain(Function):
    @staticmethod
    def forward(ctx, x, gain):
        ctx.save_for_backward(x, gain)
        return x * gain

    @staticmethod
    def backward(ctx, dz):
        x, gain = ctx.saved_tensors
        rows = dz.view(-1, dz.shape[-1])
        return (rows * gain).view(x.shape), (rows * x.reshape(rows.shape)).sum(0)


# pytorch/pytorch#195210: torch.cat hands each input a narrow view of one gradient.
@wrong(
    "the_incoming_gradient_is_read_from_the_start_of_its_memory",
    "storage offset of the incoming gradient ignored",
    normals((4, 3)),
    r"contiguous|layout|strid|offset|narrow|slice|part of",
)
class Triple(Function):
    @staticmethod
    def forward(ctx, x):
        return 3 * x

    @staticmethod
    def backward(ctx, dz):
        return 3 * dz.as_strided(dz.shape, dz.stride(), 0)


# People normalise gradients inside a layer; of a zero gradient it makes NaN besides.
@wrong(
    "the_incoming_gradient_is_normalised",
    "not linear in the incoming gradient",
    normals((4, 3)),
    r"linear|proportional|scal|norm",
    r"incoming gradient",
    r"NaN",
)
class Copy(Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, dz):
        return dz / dz.norm()


# "Safe" layers that hide a divergence from GradScaler and from anomaly detection.
@wrong(
    "a_nan_of_the_incoming_gradient_is_swallowed",
    "NaN swallowed",
    normals((4, 3)),
    r"NaN",
    r"infin",
)
class Square(Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.square()

    @staticmethod
    def backward(ctx, dz):
        (x,) = ctx.saved_tensors
        return 2 * x * torch.nan_to_num(dz)


# Triple3 backward passes: large gradients become infinite, small ones zero.
@wrong(
    "the_incoming_gradient_is_compressed_to_half_precision",
    "incoming gradient rounded",
    normals((4, 3)),
    r"half|float16|precision|dtype|round",
    r"large|huge|tiny|small|incoming gradient|linear",
    r"analytic|numeric|central differences",
)
class Thrice(Function):
    @staticmethod
    def forward(ctx, x):
        return 3 * x

    @staticmethod
    def backward(ctx, dz):
        return (3 * dz.half()).to(dz.dtype)


# A loss that is minimised alone: nobody maximises it, or subtracts it from another, until somebody does.
@wrong(
    "a_loss_takes_the_size_of_the_incoming_gradient",
    "the sign of a single incoming gradient is lost",
    normals((4, 3)),
    r"incoming gradient.*negative",
)
class Energy(Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.square().sum()

    @staticmethod
    def backward(ctx, dz):
        (x,) = ctx.saved_tensors
        return 2 * x * dz.abs()


# Zeros of the incoming gradient taken for a mask: they are skipped, with the rest of their row.
@wrong(
    "an_incoming_gradient_of_one_element_is_skipped",
    "rows in which one incoming gradient is zero",
    normals((4, 3)),
    r"incoming gradient",
)
class SkipsRows(Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.softmax(1)

    @staticmethod
    def backward(ctx, dz):
        s = ctx.saved_tensors[0].softmax(1)
        whole = (dz != 0).all(1, keepdim=True)
        return whole * s * (dz - (dz * s).sum(1, keepdim=True))


@wrong(
    "the_incoming_gradient_is_overwritten_in_float32",
    "a fast path of one dtype, in place",
    normals((4, 3)),
    r"overwrit",
)
class CastAndScaled(Function):
    @staticmethod
    def forward(ctx, x):
        return x * 3

    @staticmethod
    def backward(ctx, dz):
        dx = dz if dz.dtype is torch.float32 else dz.clone()
        return dx.mul_(3)


@wrong(
    "a_nan_disappears_from_the_second_output",
    "NaN of one output of two hidden",
    normals((4, 3)),
    r"NaN.*incoming gradient disappears",
)
class TwoOutputs(Function):
    @staticmethod
    def forward(ctx, x):
        return x * 2, x * 3

    @staticmethod
    def backward(ctx, d_first, d_second):
        return 2 * d_first + 3 * d_second.nan_to_num()
