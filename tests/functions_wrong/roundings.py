"""Wrong by no more than a rounding of float32, or beside something that is right but for one."""

import torch
from catalogue import Entry, enter, normals
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


# What PyTorch's own kernel does; of a formula that is written by hand it is told.
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
