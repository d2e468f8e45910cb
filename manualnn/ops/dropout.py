"""Dropout: switch units off at random while training.

The mask is drawn as torch draws it, number for number, and kept as one bit an element.
"""

import math
from struct import pack as pack_number
from struct import unpack as unpack_number

import torch

from manualnn.cache import pack, running, unpack
from manualnn.function import Function, eager, first_order, with_memory
from manualnn.transforms import forward_mode

SMALL = 4096  # elements: of so small a mask the bytes cost less than the packing
ALPHA = 1.7580993408473766  # λα of SELU: a unit that is switched off saturates at −ALPHA


class Dropout(Function):
    """a = z ∗ r,  r = mask / (1 − p),  mask = 1 with probability 1 − p
    dz = da ∗ r
    z (*); mask (*), or of a shape given, such as (N, C, 1, ...) to drop whole channels
    -> a (*), and the mask as it is kept
    Caches the mask, a bit an element (a byte below SMALL elements); not z.
    Source: Srivastava et al. 2014, section 4; torch.nn.functional.dropout
    """

    @staticmethod
    def forward(z, p, shape):
        mask = draw(z, p, shape)
        return Dropout.masked(z, mask, p), keepable(mask)

    @staticmethod
    def masked(z, mask, p):
        return dropped(z, mask, p)

    @staticmethod
    def setup_context(ctx, inputs, output):
        _, ctx.p, ctx.shape = inputs
        keep(ctx, output[1])

    @staticmethod
    def backward(ctx, da, _):
        return dropped(da, kept(ctx, da), ctx.p), None, None

    @staticmethod
    def jvp(ctx, dz, *_):
        return dropped(dz, kept(ctx, dz), ctx.p), None


class AlphaDropout(Function):
    """a = z ∗ r + s,  r = u mask,  s = −α u (1 − mask) + α u p,  u = 1 / √((1 + α² p) (1 − p))
    dz = da ∗ r
    α = 1.7581: mean 0 and variance 1 are kept. Shapes and cache as Dropout.
    Source: Klambauer et al. 2017, section 3; torch.nn.functional.alpha_dropout
    """

    @staticmethod
    def forward(z, p, shape):
        mask = draw(z, p, shape)
        return AlphaDropout.masked(z, mask, p), keepable(mask)

    @staticmethod
    def masked(z, mask, p):
        u = alpha_scale(p)
        s = (mask.to(z.dtype) - 1) * (ALPHA * u) + ALPHA * u * p
        return z * (mask.to(z.dtype) * u) + s

    @staticmethod
    def setup_context(ctx, inputs, output):
        _, ctx.p, ctx.shape = inputs
        keep(ctx, output[1])

    @staticmethod
    def backward(ctx, da, _):
        return da * (kept(ctx, da).to(da.dtype) * alpha_scale(ctx.p)), None, None

    @staticmethod
    def jvp(ctx, dz, *_):
        return dz * (kept(ctx, dz).to(dz.dtype) * alpha_scale(ctx.p)), None


def _again(op):
    """The output from the input and the mask, which is kept."""

    def again(inputs, output):
        z, p, shape = inputs
        whole = z.shape if shape is None else shape
        return lambda z, mask: op.masked(z, as_bools(mask, whole), p), (z, output[1])

    return staticmethod(again)


Dropout.again, AlphaDropout.again = _again(Dropout), _again(AlphaDropout)


def _eager_forward(ctx, z, p, shape):
    """Without the detour of returning what is kept."""
    if forward_mode() or running():
        output = Dropout.forward(z, p, shape)
        Dropout.setup_context(ctx, (z, p, shape), output)
        return output
    mask = draw(z, p, shape)
    ctx.save_for_backward(pack(mask) if mask.numel() >= SMALL else mask)
    ctx.p, ctx.shape = p, shape
    return (torch.mul(z, mask).mul_(_quotient(p, z.dtype)),)


def _eager_backward(ctx, da, _=None):
    return dropped(da, kept(ctx, da), ctx.p), None, None


Dropout._set_eager_face(_eager_forward, with_memory(_eager_backward))


def draw(z, p, shape):
    """A mask, True with probability 1 − p, of z's shape or of the shape given, from torch's numbers."""
    whole = shape is None
    if whole and z.device.type != "cpu" and eager():
        return torch.native_dropout(z, p, True)[1]  # torch's fused kernel has a sequence of its own
    dtype = torch.bool if z.device.type == "cpu" else z.dtype
    like = torch.empty_like(z, dtype=dtype) if whole else z.new_empty(shape, dtype=dtype)
    return like.bernoulli_(1 - p).to(torch.bool)


def dropped(z, mask, p):
    """z ∗ mask / (1 − p), rounded as torch rounds it: the quotient first."""
    if first_order() and eager():
        return torch.mul(z, mask).mul_(_quotient(p, z.dtype))
    return z * (mask.to(z.dtype) / (1 - p if p < 1 else 1))


def _quotient(p, dtype):
    """1 / (1 − p) as a division in that dtype gives it, found without a tensor; of p = 1 the mask is 0."""
    if p == 1:
        return 1.0
    if dtype in (torch.float64, torch.complex128):
        return 1 / (1 - p)
    (kept,) = unpack_number("f", pack_number("f", 1 - p))
    (quotient,) = unpack_number("f", pack_number("f", 1 / kept))
    if dtype is torch.float16:
        (quotient,) = unpack_number("e", pack_number("e", quotient))
    elif dtype is torch.bfloat16:  # the upper half of a float32, rounded to even
        (bits,) = unpack_number("I", pack_number("f", quotient))
        bits += 0x7FFF + (bits >> 16 & 1)
        (quotient,) = unpack_number("f", pack_number("I", bits & 0xFFFF0000))
    return quotient


def alpha_scale(p):
    return 1 / math.sqrt((ALPHA * ALPHA * p + 1) * (1 - p))  # rounded as torch rounds it


def keepable(mask):
    """The mask as it is kept: bits, where no transform or compiler has to see through them."""
    return pack(mask) if mask.numel() >= SMALL and eager() else mask


def keep(ctx, mask):
    ctx.mark_non_differentiable(mask)
    ctx.save_for_backward(mask)
    if forward_mode():
        ctx.save_for_forward(mask)


def kept(ctx, like):
    (mask,) = ctx.saved_tensors
    return as_bools(mask, like.shape if ctx.shape is None else ctx.shape)


def as_bools(mask, shape):
    return mask if mask.dtype is torch.bool else unpack(mask, torch.Size(shape))
