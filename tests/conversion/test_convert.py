"""convert and revert: what changes is the class of a layer, and nothing else does."""

import copy
import io
import pickle

import pytest
import torch
from convert_cases import (
    ARGUMENTS,
    PROMISED,
    TWINS,
    UsersLinear,
    assert_same_run,
    assert_same_state,
    batch,
    run,
    small_model,
    types,
)
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

from manualnn import nn as ours
from manualnn.conversion import convert, revert
from manualnn.conversion.model import original_class


@pytest.fixture
def x():
    return batch()


def test_every_promised_layer_has_a_twin():
    assert set(PROMISED.split()) <= set(TWINS)


@pytest.mark.parametrize("name", TWINS)
def test_each_layer_there_and_back(name):
    layer = getattr(torch.nn, name)(*ARGUMENTS.get(name, ()))
    attributes = dict(vars(layer))
    assert convert(layer) is layer
    assert type(layer) is getattr(ours, name)
    assert dict(vars(layer)) == attributes
    assert revert(layer) is layer
    assert type(layer) is getattr(torch.nn, name)
    assert dict(vars(layer)) == attributes


def test_a_model_keeps_all_but_its_classes(x):
    model = small_model()
    model[4].weight.requires_grad_(False)
    model[1].eval()
    before = copy.deepcopy(model)
    parameters, training = list(model.parameters()), [m.training for m in model.modules()]
    assert convert(model) is model
    assert [type(m) for m in model] == [
        torch.nn.Flatten,
        ours.Linear,
        ours.ReLU,
        ours.Dropout,
        ours.Linear,
        ours.GELU,
        ours.Linear,
    ]
    assert original_class(type(model)) is torch.nn.Sequential and isinstance(
        model, torch.nn.Sequential
    )
    assert all(p is q for p, q in zip(model.parameters(), parameters, strict=True))
    assert [m.training for m in model.modules()] == training
    assert [p.requires_grad for p in model.parameters()] == [True, True, False, True, True]
    assert repr(model) == repr(before)
    assert_same_state(model.state_dict(), before.state_dict())
    assert_same_run(run(model, x), run(before, x))
    revert(model)
    assert types(model) == types(before)
    assert_same_run(run(model, x), run(before, x))


def test_the_arithmetic_is_ours_after_convert_and_torchs_after_revert(x):
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(6, 5)).double()
    theirs = type(model(x).grad_fn)
    assert type(convert(model)(x).grad_fn) is not theirs
    assert type(revert(model)(x).grad_fn) is theirs


def test_twice_is_once():
    model = parametrizations.weight_norm(torch.nn.Linear(3, 2))
    model = torch.nn.Sequential(model, torch.nn.ReLU())
    original = types(model)
    assert types(revert(model)) == original
    converted = types(convert(model))
    assert converted != original
    assert types(convert(model)) == converted
    reverted = types(revert(model))
    assert types(revert(model)) == reverted


def test_a_users_subclass_is_left_alone():
    class UsersReLU(ours.ReLU):
        pass

    model = torch.nn.Sequential(UsersLinear(3, 3), UsersReLU(), torch.nn.Linear(3, 3))
    convert(model)
    assert [type(m) for m in model] == [UsersLinear, UsersReLU, ours.Linear]
    revert(model)
    assert [type(m) for m in model] == [UsersLinear, UsersReLU, torch.nn.Linear]


def test_torchs_own_subclass_of_a_layer_is_left_alone():
    attention = convert(torch.nn.MultiheadAttention(4, 2))
    assert type(attention.out_proj) is torch.nn.modules.linear.NonDynamicallyQuantizableLinear


def test_layers_inside_a_users_module_are_converted():
    class Users(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.parts = torch.nn.ModuleDict({"a": torch.nn.ModuleList([torch.nn.Tanh()])})
            self.loss = torch.nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0]))

    model = convert(Users())
    assert original_class(type(model)) is Users and type(model).__name__ == "Users"
    assert type(convert(model, keep="all")) is Users
    assert type(model.parts["a"][0]) is ours.Tanh
    assert type(model.loss) is ours.CrossEntropyLoss
    assert list(model.state_dict()) == ["loss.weight"]


def test_a_layer_used_twice_and_tied_weights(x):
    act = torch.nn.Tanh()
    model = torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(6, 6), act, torch.nn.Linear(6, 6), act
    ).double()
    model[3].weight = model[1].weight
    before = copy.deepcopy(model)
    convert(model)
    assert model[2] is model[4] is act and type(act) is ours.Tanh
    assert model[3].weight is model[1].weight
    assert_same_run(run(model, x), run(before, x))


def test_every_kind_of_hook_survives(x):
    calls = []
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(6, 3)).double()
    layer = model[1]
    layer.register_forward_pre_hook(lambda *_: calls.append("forward_pre"))
    layer.register_forward_hook(lambda *_: calls.append("forward"))
    layer.register_full_backward_pre_hook(lambda *_: calls.append("backward_pre"))
    layer.register_full_backward_hook(lambda *_: calls.append("backward"))
    layer.register_state_dict_post_hook(lambda *_: calls.append("state_dict"))
    layer.register_load_state_dict_post_hook(lambda *_: calls.append("load_state_dict"))
    layer.weight.register_hook(lambda *_: calls.append("tensor"))
    for swap in (convert, revert):
        swap(model)
        calls.clear()
        run(model, x)
        model.load_state_dict(model.state_dict())
        assert sorted(calls) == [
            "backward",
            "backward_pre",
            "forward",
            "forward_pre",
            "load_state_dict",
            "state_dict",
            "tensor",
        ]


def test_a_forward_hook_still_changes_the_output(x):
    model = small_model().eval()
    model[1].register_forward_hook(lambda module, args, out: out + 1)
    want = run(model, x)
    assert_same_run(run(convert(model), x), want)


@pytest.mark.parametrize("hooked", [weight_norm, spectral_norm])
@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_the_older_weight_hooks_survive(hooked, x):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), hooked(torch.nn.Linear(6, 3))).double().eval()
    state, want = copy.deepcopy(model.state_dict()), run(model, x)
    assert len(model[1]._forward_pre_hooks) == 1
    convert(model)
    assert type(model[1]) is ours.Linear
    assert_same_run(run(model, x), want)
    assert_same_state(model.state_dict(), state)


def test_pruning_survives(x):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(6, 3)).double()
    prune.random_unstructured(model[1], "weight", amount=0.5)
    want = run(model, x)
    convert(model)
    assert_same_run(run(model, x), want)
    prune.remove(model[1], "weight")
    assert type(model[1]) is ours.Linear and int((model[1].weight == 0).sum()) == 9


def test_an_optimizer_made_before_goes_on(x):
    model = small_model().eval()
    twin = copy.deepcopy(model)
    steps = [torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9) for m in (model, twin)]
    for step in range(3):
        if step == 1:
            convert(model)
        for m, optimizer in zip((model, twin), steps, strict=True):
            optimizer.zero_grad()
            m(x).square().mean().backward()
            optimizer.step()
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, q)


# Copies and files.


def test_a_converted_model_can_be_copied_pickled_and_saved(x):
    model = convert(small_model()).eval()
    want = run(model, x)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for copied in (
        copy.deepcopy(model),
        pickle.loads(pickle.dumps(model)),
        torch.load(file, weights_only=False),
    ):
        assert types(copied) == types(model)
        assert_same_run(run(copied, x), want)
        assert type(revert(copied)[1]) is torch.nn.Linear
    assert type(model[1]) is ours.Linear


# MLP is ours from the start.


@pytest.mark.parametrize("activation", ["relu", "tanh", "gelu"])
def test_revert_turns_an_mlp_into_a_plain_sequential(activation, x):
    torch.manual_seed(0)
    mlp = ours.MLP([6, 5, 4, 3], activation=activation, dropout=0.3).double()
    state, parameters = copy.deepcopy(mlp.state_dict()), list(mlp.parameters())
    want = run(mlp.eval(), x.flatten(1))
    assert convert(mlp, strict=True) is mlp and type(mlp) is ours.MLP
    assert revert(mlp) is mlp
    assert type(mlp) is torch.nn.Sequential
    assert all(type(m).__module__.startswith("torch.nn.") for m in mlp.modules())
    assert_same_state(mlp.state_dict(), state)
    assert all(p is q for p, q in zip(mlp.parameters(), parameters, strict=True))
    assert_same_run(run(mlp, x.flatten(1)), want)
    assert type(pickle.loads(pickle.dumps(mlp))) is torch.nn.Sequential


@pytest.mark.parametrize("swap", [convert, revert, lambda m: convert(m, strict=True)])
@pytest.mark.parametrize("not_a_module", [None, [torch.nn.ReLU()], torch.nn.ReLU, torch.relu])
def test_what_is_not_a_module_is_refused(swap, not_a_module):
    with pytest.raises(TypeError, match=r"takes a torch\.nn\.Module, not "):
        swap(not_a_module)
