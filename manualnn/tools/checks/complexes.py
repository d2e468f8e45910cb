"""Complex stays complex: in another precision, never as its real part alone.

Module.to(torch.float64) drops the imaginary parts of what a module holds, and Module.double() leaves them in
complex64, which nothing of float64 is multiplied by.
"""

import torch


def counterpart(dtype):
    """The complex dtype that goes with a real one; of half precision there is none, and complex64 stays."""
    return torch.complex128 if dtype is torch.float64 else torch.complex64


def in_dtype(t, dtype):
    """The tensor in that dtype, a complex one in its counterpart; integers as they are."""
    if t.is_complex():
        return t.to(counterpart(dtype))
    return t.to(dtype) if t.is_floating_point() else t


def cast(module, dtype):
    """The module with all parameters and buffers in that dtype."""
    return module._apply(lambda t: in_dtype(t, dtype))


def is_number(t):
    """Whether it can be differentiated: floating, or complex."""
    return t.is_floating_point() or t.is_complex()


def pairs(t):
    """A complex tensor as real and imaginary parts, in a last dimension of two."""
    return torch.view_as_real(t.resolve_conj()) if t.is_complex() else t


def of_pairs(t):
    return torch.complex(t[..., 0], t[..., 1])
