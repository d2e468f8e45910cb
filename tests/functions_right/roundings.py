"""Right to what PyTorch's own numbers are good for: constants in float32, digits lost, a twin that departs."""

import torch
from catalogue import Entry, enter, normals
from torch import nn
from torch.nn import functional as F

from functions_right.modules import seeded

ENTRIES: list[Entry] = []
right = enter(ENTRIES)


@right("hardsigmoid_alone", "PyTorch's 1/6 is a float32's", normals((4, 5)), module=True)
def hardsigmoid():
    return nn.Hardsigmoid()


right("hardsigmoid_of_pytorchs", "PyTorch's 1/6 is a float32's", normals((4, 5)))(F.hardsigmoid)


@right("hardsigmoid_behind_a_layer", "PyTorch's 1/6 in a twin", normals((4, 5)), module=True)
@seeded
def hardsigmoid_behind():
    return nn.Sequential(nn.Linear(5, 3), nn.Hardsigmoid(), nn.Linear(3, 2))


@right(
    "squeeze_and_excitation",
    "PyTorch's 1/6 in a twin; an infinity becomes NaN in between",
    normals((2, 4, 5, 5)),
    module=True,
)
class Excitation(nn.Module):
    def __init__(self):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(5)
            self.first, self.last = nn.Conv2d(4, 2, 1), nn.Conv2d(2, 4, 1)

    def forward(self, x):
        scale = self.first(x.mean((2, 3), keepdim=True)).relu()
        return x * F.hardsigmoid(self.last(scale))
