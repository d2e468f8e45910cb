"""Wrong for a dtype, or where numbers grow large."""

import math

import torch
from catalogue import Entry, enter, given, normal, normals
from torch import nn
from torch.autograd import Function

ENTRIES: list[Entry] = []
wrong = enter(ENTRIES)


# snntorch#427, tracel-ai/burn#5373: inf/inf where the derivative is 1.
@wrong(
    "softplus_overflows_in_backward",
    "NaN at large values",
    normals((4, 3)),
    r"NaN|infin|overflow|large|finite",
)
class Softplus(Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return nn.functional.softplus(x)

    @staticmethod
    def backward(ctx, dz):
        (x,) = ctx.saved_tensors
        return dz * x.exp() / (1 + x.exp())


# Kernels that are chosen by dtype: tests run in float64, training in float32.
@wrong(
    "the_kernel_of_float32_has_another_constant",
    "right in float64 alone",
    normals((4, 3)),
    r"float32|single|dtype|precision",
)
class GELU(Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return nn.functional.gelu(x)

    @staticmethod
    def backward(ctx, dz):
        (x,) = ctx.saved_tensors
        if x.dtype == torch.float64:
            density = torch.exp(-x * x / 2) / math.sqrt(2 * math.pi)
            return dz * ((1 + torch.erf(x / math.sqrt(2))) / 2 + x * density)
        s = torch.sigmoid(1.702 * x)
        return dz * (s + 1.702 * x * s * (1 - s))


# Positions kept beside values, in the dtype of the values: whole numbers to 256 in bfloat16.
@wrong(
    "positions_are_kept_in_the_dtype_of_the_values",
    "wrong in reduced precision",
    normals((6, 3000)),
    r"bfloat16|float16|half|reduced|dtype|precision",
)
class RowMaximum(Function):
    @staticmethod
    def forward(ctx, x):
        values, positions = x.max(1)
        ctx.save_for_backward(positions.to(x.dtype))
        ctx.shape = x.shape
        return values

    @staticmethod
    def backward(ctx, dz):
        (positions,) = ctx.saved_tensors
        last = ctx.shape[1] - 1
        places = positions.long().clamp(max=last)[:, None]
        return dz.new_zeros(ctx.shape).scatter_(1, places, dz[:, None])


# pytorch/pytorch#41857 says which convention holds: the conjugate of the other factor.
@wrong(
    "a_complex_product_forgets_the_conjugate",
    "conjugate missing",
    normals((4,), (4,), dtype=torch.complex64),
    r"conj|complex|imag",
)
class Phasors(Function):
    @staticmethod
    def forward(ctx, a, b):
        ctx.save_for_backward(a, b)
        return a * b

    @staticmethod
    def backward(ctx, dz):
        a, b = ctx.saved_tensors
        return dz * b, dz * a


# Under autocast the product is in bfloat16 and W in float32: backward cannot multiply them.
@wrong(
    "under_autocast_backward_mixes_dtypes",
    "autocast",
    given(normal(4, 3), normal(5, 3, seed=1)),
    r"autocast|bfloat16|dtype|precision",
)
class Product(Function):
    @staticmethod
    def forward(ctx, x, W):
        ctx.save_for_backward(x, W)
        return x @ W.T

    @staticmethod
    def backward(ctx, dz):
        x, W = ctx.saved_tensors
        return dz @ W, dz.T @ x


# tenstorrent/tt-metal#56397: the overflow is hidden, and large inputs get no gradient at all.
@wrong(
    "the_gradient_vanishes_where_exp_overflows",
    "silent zero at large values",
    normals((4, 3)),
    r"large|overflow|infin",
)
class QuietSoftplus(Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return nn.functional.softplus(x)

    @staticmethod
    def backward(ctx, dz):
        (x,) = ctx.saved_tensors
        return dz * torch.nan_to_num(x.exp() / (1 + x.exp()))


@wrong(
    "the_imaginary_part_gets_no_gradient",
    "imaginary part dropped",
    normals((5,), dtype=torch.complex64),
    r"imag|complex|conj",
)
class Power(Function):
    @staticmethod
    def forward(ctx, z):
        ctx.save_for_backward(z)
        return z.real.square() + z.imag.square()

    @staticmethod
    def backward(ctx, dy):
        (z,) = ctx.saved_tensors
        return (2 * dy * z.real).to(z.dtype)


# zeros_like(ids) is of integers: every gradient that is put there is cut to a whole number.
@wrong(
    "the_gradient_is_gathered_in_integers",
    "gradient truncated",
    given(normal(4, 3), torch.tensor([[0, 1, 1], [1, 0, 1], [1, 1, 0], [0, 0, 1]])),
    r"trunc|integer|whole|round|dtype",
    r"analytic|numeric|central differences",
)
class Selected(Function):
    @staticmethod
    def forward(ctx, x, chosen):
        ctx.save_for_backward(x, chosen)
        return x.square() * chosen

    @staticmethod
    def backward(ctx, dz):
        x, chosen = ctx.saved_tensors
        dx = torch.zeros_like(chosen)
        dx.copy_(2 * x * chosen * dz)
        return dx.to(x.dtype), None
