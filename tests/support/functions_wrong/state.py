"""Wrong through what is kept: overwritten, shared between calls, drawn again."""

import torch
from catalogue import Entry, enter, normals
from torch.autograd import Function
from torch.autograd.function import once_differentiable

ENTRIES: list[Entry] = []
wrong = enter(ENTRIES)


# linkedin/Liger-Kernel#254: the gradients are written over the inputs, to save memory.
@wrong(
    "backward_writes_its_gradients_over_the_inputs",
    "saved inputs overwritten in backward",
    normals((4, 3), (4, 3)),
    r"overwrit|in place",
    r"inputs? .*(changed|modified|left)",
    r"twice|second time",
)
class SwiGLU(Function):
    @staticmethod
    def forward(ctx, a, b):
        ctx.save_for_backward(a, b)
        return torch.nn.functional.silu(a) * b

    @staticmethod
    def backward(ctx, dz):
        a, b = ctx.saved_tensors
        s = a.sigmoid()
        da, db = dz * b * s * (1 + a * (1 - s)), dz * a * s
        return a.copy_(da), b.copy_(db)


# Losses whose gradient is made in forward and scaled where it lies (warp-transducer: self.grads.mul_).
@wrong(
    "the_kept_gradient_is_scaled_where_it_lies",
    "second backward through a kept graph differs",
    normals((4, 3)),
    r"twice|second|again|repeat",
    r"overwrit|in place",
    r"state|retain",
)
class Energy(Function):
    @staticmethod
    def forward(ctx, x):
        ctx.dx = 2 * x
        return x.square().sum()

    @staticmethod
    @once_differentiable
    def backward(ctx, dz):
        return ctx.dx.mul_(dz)


# pytorch/pytorch#30454: written in place without mark_dirty.
@wrong(
    "forward_centres_its_input_where_it_lies",
    "input overwritten in forward",
    normals((5,)),
    r"overwrit|in place|mark_dirty",
    r"inputs? .*(changed|modified|left)",
)
class CentredSquares(Function):
    @staticmethod
    def forward(ctx, x):
        x -= x.mean()
        ctx.save_for_backward(x.clone())
        return x.square()

    @staticmethod
    @once_differentiable
    def backward(ctx, dz):
        (centred,) = ctx.saved_tensors
        dx = 2 * centred * dz
        return dx - dx.mean()


# Kept on the class instead of on ctx: a layer that is used twice before backward reads the last call's.
@wrong(
    "a_call_reads_what_the_next_call_kept",
    "state shared between calls",
    normals((4, 3)),
    r"call|share|state|stale|global|between|twice|stored|interleav",
)
class Sine(Function):
    @staticmethod
    def forward(ctx, x):
        Sine.x = x.detach().clone()
        return x.sin()

    @staticmethod
    @once_differentiable
    def backward(ctx, dz):
        return dz * Sine.x.cos()


# Kernels that draw the mask again must draw the same one; facebookresearch/xformers#173 is a neighbour.
@wrong(
    "dropout_draws_another_mask_in_backward",
    "random mask drawn again in backward",
    normals((6, 5)),
    r"random|mask|draw|seed|determin",
    r"twice|second time|repeat",
)
class Dropout(Function):
    @staticmethod
    def forward(ctx, x):
        return 2 * x * (torch.rand_like(x) < 0.5)

    @staticmethod
    def backward(ctx, dz):
        return 2 * dz * (torch.rand_like(dz) < 0.5)


TABLES: dict = {}


# A table "that depends on the shape only", which holds the derivative at the first batch's values.
@wrong(
    "the_derivative_is_remembered_from_the_first_call",
    "stale cache keyed by the shape",
    normals((4, 3)),
    r"call|stale|cache|remember|state|stored|global|earlier|other values|another",
    r"analytic|numeric|central differences",
)
class SineByTable(Function):
    @staticmethod
    def forward(ctx, x):
        ctx.key = tuple(x.shape), x.dtype
        TABLES.setdefault(ctx.key, x.detach().cos())
        return x.sin()

    @staticmethod
    @once_differentiable
    def backward(ctx, dz):
        return dz * TABLES[ctx.key]


# Tensors on ctx escape the check of versions: the next layer's in-place operation changes them unseen.
@wrong(
    "the_output_is_kept_where_its_changes_are_not_seen",
    "output kept as an attribute of ctx",
    normals((4, 3)),
    r"in place|save_for_backward|version|overwrit|changed|modified",
)
class Sigmoid(Function):
    @staticmethod
    def forward(ctx, x):
        ctx.a = x.sigmoid()
        return ctx.a

    @staticmethod
    def backward(ctx, da):
        return da * ctx.a * (1 - ctx.a)


@wrong(
    "noise_in_backward", "drawn in backward alone", normals((4, 3)), "backward draws random numbers"
)
class Noise(Function):
    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, dz):
        return 2 * dz * (1 + 1e-3 * torch.randn_like(dz))
