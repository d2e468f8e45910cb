"""Converting a layer between which and its class torch has put another: parametrizations."""

import copy
import pickle

import pytest
import torch
from convert_cases import Doubled, UsersLinear, assert_same_run, assert_same_state, batch, run
from torch.nn.utils import parametrizations, parametrize

from manualnn import nn as ours
from manualnn.conversion import convert, revert


@pytest.fixture
def x():
    return batch()


def test_a_parametrized_layer_is_converted(x):
    torch.manual_seed(0)
    linear = parametrizations.weight_norm(torch.nn.Linear(6, 3))
    model = torch.nn.Sequential(torch.nn.Flatten(), linear).double()
    before = copy.deepcopy(model)
    parameters = list(model.parameters())
    convert(model)
    assert isinstance(linear, ours.Linear)
    assert parametrize.type_before_parametrizations(linear) is ours.Linear
    assert type(linear).__name__ == "ParametrizedLinear"
    assert all(p is q for p, q in zip(model.parameters(), parameters, strict=True))
    assert_same_state(model.state_dict(), before.state_dict())
    assert_same_run(run(model, x), run(before, x))
    with parametrize.cached():
        assert model[1].weight is model[1].weight
    revert(model)
    assert parametrize.type_before_parametrizations(linear) is torch.nn.Linear
    assert not isinstance(linear, ours.Linear)
    assert_same_run(run(model, x), run(before, x))


def test_parametrizations_can_be_added_and_removed_afterwards():
    linear = torch.nn.Linear(3, 2)
    weight, bias = linear.weight.detach().clone(), linear.bias.detach().clone()
    parametrize.register_parametrization(linear, "weight", Doubled())
    convert(linear)
    parametrize.register_parametrization(linear, "bias", Doubled())
    parametrize.register_parametrization(linear, "weight", Doubled())
    torch.testing.assert_close(linear(torch.zeros(3)), 2 * bias)
    revert(linear)
    convert(linear)
    assert torch.equal(linear.weight, 4 * weight) and torch.equal(linear.bias, 2 * bias)
    parametrize.remove_parametrizations(linear, "weight")
    assert parametrize.type_before_parametrizations(linear) is ours.Linear
    parametrize.remove_parametrizations(linear, "bias", leave_parametrized=False)
    assert type(linear) is ours.Linear
    assert torch.equal(linear.weight, 4 * weight) and torch.equal(linear.bias, bias)
    assert type(pickle.loads(pickle.dumps(linear))) is ours.Linear


def test_deep_copies_that_share_a_parametrized_class():
    linear = parametrize.register_parametrization(torch.nn.Linear(3, 2), "weight", Doubled())
    outside, inside = copy.deepcopy(linear), copy.deepcopy(linear)
    shared = type(linear)
    assert type(outside) is type(inside) is shared
    model = convert(torch.nn.Sequential(linear, inside))
    assert type(outside) is shared and issubclass(shared, torch.nn.Linear)
    assert not issubclass(shared, ours.Linear)
    parametrize.remove_parametrizations(model[0], "weight")
    want = outside.parametrizations.weight.original * 2
    assert type(model[0]) is ours.Linear
    assert torch.equal(outside.weight, want) and torch.equal(inside.weight, want)
    later = copy.deepcopy(inside)
    parametrize.remove_parametrizations(later, "weight")
    assert type(later) is ours.Linear and torch.equal(later.weight, want)


def test_a_parametrized_users_subclass_is_left_alone():
    linear = parametrize.register_parametrization(UsersLinear(3, 2), "weight", Doubled())
    cls = type(linear)
    assert type(convert(linear)) is cls


def test_a_parametrization_made_of_layers_is_converted_too():
    linear = parametrize.register_parametrization(
        torch.nn.Linear(3, 2), "weight", torch.nn.Sequential(torch.nn.Tanh())
    )
    assert type(convert(linear).parametrizations.weight[0][0]) is ours.Tanh
