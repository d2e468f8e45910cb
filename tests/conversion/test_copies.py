"""A model that holds what a call has made is looked at as any other."""

import warnings

import pytest
import torch
from torch import nn

import manualnn
from manualnn.tools.copies import copied


class Watched(nn.Module):
    """Keeps its attention map, as people do who want to look at it."""

    def __init__(self):
        super().__init__()
        self.scores, self.activation, self.last = nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2)
        self.maps = {}

    def forward(self, x):
        self.maps["first"] = [torch.softmax(self.scores(x), -1)]
        return self.last(self.activation(self.maps["first"][0]))


def called():
    model, x = Watched(), torch.randn(3, 4)
    model(x)
    return model, x


def weight_normed():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return nn.utils.weight_norm(nn.Linear(4, 2)), torch.randn(3, 4)


USES = {
    "check": lambda model, x, path: manualnn.check(model, x, only=["leaks"]),
    "ledger": lambda model, x, path: manualnn.ledger(model, x),
    "explain": lambda model, x, path: manualnn.explain(model, x),
    "export": lambda model, x, path: manualnn.export(model, path / "a.safetensors"),
}


@pytest.mark.parametrize("build", [called, weight_normed])
@pytest.mark.parametrize("use", USES)
def test_what_copies_a_model_takes_it(use, build, tmp_path):
    model, x = build()
    assert USES[use](model, x, tmp_path)


def test_the_copy_holds_the_values_and_nothing_of_the_model():
    model, _ = called()
    made, (map_,) = copied(model), model.maps["first"]
    (other,) = made.maps["first"]
    assert torch.equal(map_, other) and map_.data_ptr() != other.data_ptr()
    assert other.grad_fn is None and map_.grad_fn is not None
    assert {id(p) for p in made.parameters()}.isdisjoint(map(id, model.parameters()))


def test_attributes_that_hold_themselves():
    model, _ = called()
    model.maps["all"] = model.maps
    made = copied(model)
    assert made.maps["all"] is made.maps is not model.maps
