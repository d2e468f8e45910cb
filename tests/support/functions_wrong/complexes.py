"""Wrong in the complex parameters or buffers of a module."""

import torch
from catalogue import Entry, enter, normals
from functions_right.complexes import Scale
from torch import nn
from torch.autograd import Function

ENTRIES: list[Entry] = []
wrong = enter(ENTRIES)


class NotConjugated(Function):
    @staticmethod
    def forward(ctx, x, w):
        ctx.save_for_backward(x, w)
        return x * w

    @staticmethod
    def backward(ctx, dz):
        x, w = ctx.saved_tensors
        dx, dw = dz * w, (dz * x).sum(0)
        return dx if x.is_complex() else dx.real, dw


# The commonest fault of a complex backward. Where only the real parts of w were seen, it would pass.
@wrong(
    "the_conjugate_of_a_parameter_is_forgotten",
    "complex parameter without conjugate",
    normals((4, 5)),
    r"conj|complex",
    r"analytic|numeric|central differences",
    module=True,
)
class Unconjugated(Scale):
    product = NotConjugated


@wrong(
    "the_conjugate_of_the_input_of_a_complex_layer_is_forgotten",
    "complex input and parameter without conjugate",
    normals((4, 5), dtype=torch.cfloat),
    r"conjugate",
    module=True,
)
class UnconjugatedInput(Scale):
    product = NotConjugated


class RealPart(Function):
    @staticmethod
    def forward(ctx, x, w):
        ctx.save_for_backward(x, w)
        return x * w

    @staticmethod
    def backward(ctx, dz):
        x, w = ctx.saved_tensors
        dw = (dz * x).sum(0).real.to(w.dtype)
        return (dz * w.conj()).real, dw


@wrong(
    "the_imaginary_part_of_a_parameters_gradient_is_dropped",
    "complex parameter with a real gradient",
    normals((4, 5)),
    r"imaginary|complex",
    module=True,
)
class Real(Scale):
    product = RealPart


class Rotate(Function):
    @staticmethod
    def forward(ctx, x, turns):
        ctx.save_for_backward(turns)
        return torch.view_as_real(torch.view_as_complex(x.contiguous()) * turns)

    @staticmethod
    def backward(ctx, dz):
        (turns,) = ctx.saved_tensors
        return torch.view_as_real(torch.view_as_complex(dz.contiguous()) * turns), None


# Rotated further, and not back.
@wrong(
    "a_rotation_by_a_complex_buffer_is_not_turned_back",
    "complex buffer without conjugate",
    normals((2, 5, 2)),
    r"analytic|numeric|central differences",
    module=True,
)
class Rotation(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("turns", torch.polar(torch.ones(5), torch.arange(5.0)))

    def forward(self, x):
        return Rotate.apply(x, self.turns)
