"""Right models in which kinks meet: what comes of them all lies outside the slopes of the two sides."""

import torch
from catalogue import Entry, enter, given, normal, normals
from torch import nn
from torch.nn import functional as F

from functions_right.modules import seeded

ENTRIES: list[Entry] = []
right = enter(ENTRIES)
padded = torch.cat([normal(3, 5), torch.zeros(1, 5)])
flat = torch.zeros(2, 1, 8, 8)
flat[:, :, 2:5, 2:5] = normal(2, 1, 3, 3).abs()


def zero_layer(following):
    layer = nn.Linear(5, 3)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return nn.Sequential(layer, following)


@right("a_zero_layer_before_a_relu", "every row at a kink", normals((4, 5)), module=True)
def zero_before_relu():
    return zero_layer(nn.ReLU())


@right(
    "a_zero_layer_before_an_elu", "a second derivative with a jump", normals((4, 5)), module=True
)
def zero_before_elu():
    return zero_layer(nn.ELU())


@right("a_norm_that_starts_at_zero", "gamma of zeros before a ReLU", normals((4, 5)), module=True)
def zero_gamma():
    norm = nn.LayerNorm(5)
    nn.init.zeros_(norm.weight)
    return nn.Sequential(norm, nn.ReLU())


@right("a_padded_row_before_a_relu", "a row of zeros, no bias", given(padded), module=True)
@seeded
def padded_row():
    return nn.Sequential(nn.Linear(5, 4, bias=False), nn.ReLU(), nn.Linear(4, 2))


@right("a_padded_row_in_a_norm", "a row of zeros, a steep slope", given(padded), module=True)
@seeded
def padded_norm():
    return nn.Sequential(nn.LayerNorm(5), nn.ReLU())


@right("a_flat_background", "equal windows behind a convolution", given(flat), module=True)
@seeded
def flat_background():
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.MaxPool2d(2))


@right(
    "padding_tokens_before_a_relu",
    "a padding row, no bias",
    given(torch.tensor([[0, 1, 2], [3, 0, 1]])),
    module=True,
)
@seeded
def padding_tokens():
    embedding = nn.Embedding(5, 4, padding_idx=0)
    return nn.Sequential(embedding, nn.Linear(4, 3, bias=False), nn.ReLU())


class SpatialTransformer(nn.Module):
    """That starts at the identity: every pixel is read between two cells."""

    def __init__(self):
        super().__init__()
        self.where = nn.Linear(75, 6)
        nn.init.zeros_(self.where.weight)
        with torch.no_grad():
            self.where.bias.copy_(torch.tensor([1.0, 0, 0, 0, 1, 0]))

    def forward(self, x):
        theta = self.where(x.flatten(1)).view(-1, 2, 3)
        grid = F.affine_grid(theta, x.shape, align_corners=False)
        return F.grid_sample(x, grid, align_corners=False)


@right("a_spatial_transformer", "pixels on cells' borders", normals((2, 3, 5, 5)), module=True)
@seeded
def spatial_transformer():
    return SpatialTransformer()
