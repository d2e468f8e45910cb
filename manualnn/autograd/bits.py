"""A mask costs a bit: truth values as the bits of bytes."""

import torch

# Eight bytes, each 0 or 1, read as one 64-bit integer. A product with these bits gathers the eight in
# the top byte, first byte highest; the same product spreads a byte's bits over eight bytes again.
_BITS = 0x8040201008040201 - (1 << 64)  # as a signed 64-bit integer
_TOP = 0x8080808080808080 - (1 << 64)
_LOW = 0x0101010101010101


def pack(mask):
    """A bool tensor (*) as bits: uint8 (⌈numel / 8⌉)."""
    flat = mask.reshape(-1)
    padding = -flat.numel() % 8
    if padding:
        flat = torch.cat((flat, flat.new_zeros(padding)))
    words = flat.view(torch.int64)
    return ((words * _BITS) >> 56).to(torch.uint8)


def unpack(bits, shape):
    """The bool tensor of that shape which ``pack`` packed."""
    words = bits.to(torch.int64)
    words.mul_(_BITS).bitwise_and_(_TOP).bitwise_right_shift_(7).bitwise_and_(_LOW)
    return words.view(torch.bool)[: shape.numel()].view(shape)
