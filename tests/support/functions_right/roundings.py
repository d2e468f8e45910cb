"""Right to what PyTorch's own numbers are good for: constants in float32, digits lost, a twin that departs."""

import torch
from catalogue import Entry, enter, given, normal, normals
from torch import nn
from torch.nn import functional as F

from functions_right.modules import seeded

ENTRIES: list[Entry] = []
right = enter(ENTRIES)

SCORES, OWNERS = normal(4, seed=2), torch.tensor([0, 1, 1, 2])
NEAR_ZERO = torch.tensor([[0.11], [-0.0021], [0.0013], [-0.2]])
POSITIVE = given(normal(2, 3, 4, 4).sigmoid())
WINDOWS = normals((1, 1, 6, 6))


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


@right("a_segment_of_one", "a gradient zero by nature beside others", given(SCORES, OWNERS))
def softmax_of_segments(x, owner):
    """The softmax of each owner's scores, of which one has a single score."""
    most = torch.full((3,), -torch.inf, dtype=x.dtype)
    most = most.scatter_reduce(0, owner, x.detach(), "amax")
    e = (x - most[owner]).exp()
    return e / torch.zeros(3, dtype=x.dtype).index_add(0, owner, e)[owner]


@right("a_direction_of_one_dimension", "a gradient zero by nature", given(NEAR_ZERO))
def direction(x):
    return F.normalize(x)


right("an_exponential_of_a_matrix", "a backward of PyTorch's loses digits", normals((3, 3)))(
    torch.matrix_exp
)


@right("a_pooling_by_a_learned_power", "an exponent is a parameter", POSITIVE, module=True)
class GeneralisedMean(nn.Module):
    def __init__(self):
        super().__init__()
        self.p = nn.Parameter(torch.full((1,), 3.0))

    def forward(self, x):
        return F.avg_pool2d(x.clamp(min=1e-6).pow(self.p), 4).pow(1 / self.p)


right("an_entropy_at_0", "an infinite slope", given(torch.tensor([0.0, 0.2, 1.0])))(
    torch.special.entr
)
right("hypot_at_0", "a kink", given(torch.tensor([0.0, 1, 2]), torch.tensor([0.0, 0.3, -2])))(
    torch.hypot
)
right("xlogy_at_0", "the edge of a domain", given(torch.zeros(3), torch.zeros(3)))(torch.xlogy)


@right("a_pooling_of_random_windows", "other numbers in another dtype", WINDOWS)
def fractional(x):
    return F.fractional_max_pool2d(x.tanh(), 2, output_size=3)


@right(
    "labels_that_are_floating_and_no_variables",
    "PyTorch refuses to differentiate them",
    given(normal(4, 6), normal(4, 6, seed=1).sign()),
    module=True,
)
def soft_margin():
    return nn.SoftMarginLoss()


right("distances_of_rows", "without rows PyTorch ends Python", normals((4, 5)))(F.pdist)


@right("a_weight_norm", "a second derivative that PyTorch loses", normals((4, 5)), module=True)
@seeded
def weight_norm():
    return nn.utils.parametrizations.weight_norm(nn.Linear(5, 3))


@right("an_orthogonal_weight", "a nested derivative of PyTorch's", normals((4, 5)), module=True)
@seeded
def orthogonal():
    return nn.utils.parametrizations.orthogonal(nn.Linear(5, 3))
