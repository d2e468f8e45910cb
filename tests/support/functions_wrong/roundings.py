"""Wrong by no more than a rounding of float32, or beside something that is right but for one."""

import torch
from catalogue import Entry, enter, given, normals
from functions_right.modules import seeded
from torch import nn
from torch.autograd import Function

ENTRIES: list[Entry] = []
wrong = enter(ENTRIES)


class SixthInFloat32(Function):
    @staticmethod
    def forward(ctx, z):
        ctx.save_for_backward(z)
        return (z + 3).clamp(0, 6) / 6

    @staticmethod
    def backward(ctx, da):
        (z,) = ctx.saved_tensors
        sixth = torch.tensor(1 / 6, dtype=torch.float32).item()
        return torch.where((z > -3) & (z < 3), da * sixth, 0)


# What PyTorch's own kernel does; of a formula that is written by hand it is reported.
@wrong(
    "a_constant_of_float32_behind_a_layer",
    "a constant rounded to float32",
    normals((4, 5)),
    r"right to 3e-08 only.*float32",
    module=True,
)
@seeded
def rounded_sixth():
    class Rounded(nn.Module):
        def forward(self, z):
            return SixthInFloat32.apply(z)

    return nn.Sequential(nn.Linear(5, 3), Rounded())


# The slope on the left is 0, and comes out as 0 · ∞: finite, so that no edge of a domain excuses it.
@wrong(
    "a_root_hides_behind_where",
    "NaN from the branch that is not taken",
    given(torch.tensor([0.4, 1.0, -2.0, -0.3])),
    r"NaN",
)
def guarded_root(x):
    return torch.where(x > 0, x.sqrt(), 0 * x)


class LogByHand(Function):
    @staticmethod
    def forward(ctx, x, y):
        ctx.save_for_backward(x, y)
        return torch.xlogy(x, y)

    @staticmethod
    def backward(ctx, dz):
        x, y = ctx.saved_tensors
        return dz * y.log(), dz * x / y


# Of PyTorch's own formula it is a note, of one by hand it is reported.
wrong(
    "xlogy_by_hand_at_0",
    "NaN at the edge of a domain",
    given(torch.zeros(3), torch.tensor([0.0, 0.5, 2.0])),
    r"NaN",
)(LogByHand)


class Rooted(Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.exp()

    @staticmethod
    def backward(ctx, dz):
        (x,) = ctx.saved_tensors
        return dz.abs().sqrt() * dz.sign() * x.exp()


@wrong(
    "not_linear_where_gradients_cancel",
    "a root of the incoming gradient",
    normals((4, 1)),
    r"linear in the incoming gradient",
)
def of_directions(x):
    return nn.functional.normalize(x) + Rooted.apply(x)


# Only the parameter is large in use, and its exponential overflows by itself; with large inputs it does, too.
@wrong(
    "a_softmax_of_plain_exponentials_in_a_module",
    "overflow at large inputs",
    normals((4, 5)),
    r"large|overflow",
    module=True,
)
class PlainSoftmax(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(5))

    def forward(self, x):
        e = (self.scale * x).exp()
        return e / e.sum(-1, keepdim=True)
