"""``convert(..., strict=True)`` names what stays."""

import pytest
import torch
from convert_cases import Doubled, UsersLinear, types
from torch.nn.utils import parametrize

from manualnn import nn as ours
from manualnn.conversion import convert


def test_strict_names_every_layer_that_stays_and_changes_nothing():
    class Scaled(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = torch.nn.Linear(3, 3)
            self.gain = torch.nn.Parameter(torch.ones(3))

    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Linear(3, 3),
        torch.nn.Sequential(UsersLinear(3, 3), torch.nn.LPPool1d(2, 2)),
        torch.nn.LazyLinear(3),
        torch.nn.ReLU(),
        Scaled(),
        torch.nn.Identity(),
    )
    before = types(model)
    with pytest.raises(ValueError) as error:
        convert(model, strict=True)
    first, *named = str(error.value).splitlines()
    assert "4" in first
    assert named == [
        f"  1.0: {UsersLinear.__module__}.UsersLinear",
        "  1.1: torch.nn.LPPool1d",
        "  2: torch.nn.LazyLinear",
        f"  4: {__name__}.{Scaled.__qualname__}",
    ]
    assert types(model) == before
    assert type(convert(model)[0]) is ours.Linear


def test_strict_accepts_what_holds_no_arithmetic():
    model = torch.nn.ModuleDict(
        {
            "a": torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 4), torch.nn.Tanh()),
            "b": torch.nn.ModuleList([torch.nn.Unflatten(1, (2, 2)), torch.nn.Identity()]),
            "c": torch.nn.ModuleList(),
            "d": torch.nn.ParameterList(),
            "e": torch.nn.Sequential(torch.nn.PixelShuffle(2), torch.nn.PixelUnshuffle(2)),
            "f": torch.nn.ChannelShuffle(2),
            "loss": torch.nn.CrossEntropyLoss(),
        }
    )
    assert type(convert(model, strict=True)["loss"]) is ours.CrossEntropyLoss
    assert convert(model, strict=True) is model


def test_strict_names_the_model_itself():
    with pytest.raises(ValueError, match=r"the model itself.*torch\.nn\.Bilinear"):
        convert(torch.nn.Bilinear(2, 2, 2), strict=True)


def test_strict_sees_parametrized_layers_and_their_parametrizations():
    # Without a bias, a parametrized layer has no parameter in its own table and has a child.
    pool = torch.nn.Bilinear(2, 2, 2, bias=False)
    model = torch.nn.Sequential(
        parametrize.register_parametrization(torch.nn.Linear(3, 2), "weight", Doubled()),
        parametrize.register_parametrization(pool, "weight", torch.nn.Tanh()),
    )
    with pytest.raises(ValueError) as error:
        convert(model, strict=True)
    assert str(error.value).splitlines()[1:] == [
        f"  0.parametrizations.weight.0: {Doubled.__module__}.Doubled",
        "  1: torch.nn.Bilinear",
    ]


def test_a_replaced_forward_is_left_alone_and_named():
    model = torch.nn.Sequential(torch.nn.ReLU(), torch.nn.ReLU())
    model[0].forward = torch.neg
    with pytest.raises(ValueError, match=r"\n  0: torch\.nn\.ReLU, whose forward was replaced$"):
        convert(model, strict=True)
    assert [type(m) for m in convert(model)] == [torch.nn.ReLU, ours.ReLU]


def test_strict_accepts_a_users_subclass_that_keeps_our_forward():
    class Named(ours.Linear):
        def __init__(self):
            super().__init__(3, 3)

    class Other(ours.Linear):
        def forward(self, input):
            return torch.nn.functional.linear(input, self.weight)

    convert(torch.nn.Sequential(Named()), strict=True)
    with pytest.raises(ValueError, match="Other"):
        convert(torch.nn.Sequential(Other(3, 3)), strict=True)
