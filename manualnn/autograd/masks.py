"""Random masks: drawn as torch draws them, number for number, applied, and saved as one bit an element."""

from struct import pack as pack_number
from struct import unpack as unpack_number

import torch

from manualnn.autograd.bits import pack, unpack
from manualnn.autograd.moment import eager, first_order
from manualnn.kernels import masks

SMALL = 4096  # elements: of so small a mask the bytes cost less than the packing


def draw(z, p, shape=None):
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


def drop(z, mask, p):
    """What ``dropped`` gives, and the mask as it is saved."""
    found = in_one_pass(z, mask, _quotient(p, z.dtype))
    return (dropped(z, mask, p), keepable(mask)) if found is None else found


def drop_again(z, kept, shape, p):
    """What ``dropped`` gives, by a mask as it is saved."""
    found = again_in_one_pass(z, kept, _quotient(p, z.dtype))
    return dropped(z, as_bools(kept, shape), p) if found is None else found


def in_one_pass(z, mask, q, on=None, off=None):
    """z q where the mask is True, else z · 0, then ``on`` or ``off`` added; and the mask as it is saved.

    None where no kernel of ours serves.
    """
    if not (first_order() and eager()) or mask.numel() < SMALL:
        return None
    return masks.and_pack(z, mask, masks.Masking(q, on, off))


def again_in_one_pass(z, kept, q, on=None, off=None):
    """The same by a mask as it is saved."""
    if not (first_order() and eager()) or kept.dtype is not torch.uint8:
        return None
    return masks.by_bits(z, kept, masks.Masking(q, on, off))


def keepable(mask):
    """The mask as it is saved: bits, where no transform or compiler has to see through them."""
    return pack(mask) if mask.numel() >= SMALL and eager() else mask


def as_bools(mask, shape):
    """The mask that ``keepable`` made smaller."""
    return mask if mask.dtype is torch.bool else unpack(mask, torch.Size(shape))


def _quotient(p, dtype):
    """1 / (1 − p) as a division in that dtype gives it, found without a tensor; of p = 1 the mask is 0."""
    if p == 1:
        return 1.0
    if dtype in (torch.float64, torch.complex128):
        return 1 / (1 - p)
    (keep_probability,) = unpack_number("f", pack_number("f", 1 - p))
    (quotient,) = unpack_number("f", pack_number("f", 1 / keep_probability))
    if dtype is torch.float16:
        (quotient,) = unpack_number("e", pack_number("e", quotient))
    elif dtype is torch.bfloat16:  # the upper half of a float32, rounded to even
        (bits,) = unpack_number("I", pack_number("f", quotient))
        bits += 0x7FFF + (bits >> 16 & 1)
        (quotient,) = unpack_number("f", pack_number("I", bits & 0xFFFF0000))
    return quotient
