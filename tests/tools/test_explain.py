"""manualnn.explain: the equations, shapes, bytes and FLOPs that it states are those that run."""

import json

import pytest
import torch
from explain_helpers import nothing_old_to_collect  # noqa: F401
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import manualnn
from manualnn import nn
from manualnn.tools.ledgers.live import retained


def rows(sizes, m=7, seed=0):
    return torch.randn(m, sizes[0], generator=torch.Generator().manual_seed(seed))


class Own(torch.nn.Module):
    """The same network in a person's own words."""

    def __init__(self, *sizes):
        super().__init__()
        self.first, self.second = torch.nn.Linear(*sizes[:2]), torch.nn.Linear(*sizes[1:])

    def forward(self, x):
        return self.second(F.relu(self.first(x.flatten(1))))


class Residual(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = torch.nn.Conv2d(3, 3, 3, padding=1), torch.nn.BatchNorm2d(3)
        self.scores = torch.nn.Linear(3, 2)

    def forward(self, x):
        return self.scores((x.relu() + self.norm(self.conv(x))).mean((2, 3)))


# --- Equations and shapes -------------------------------------------------------------------------


def test_the_page_for_a_network():
    explained = manualnn.explain(nn.MLP([64, 128, 64, 10]), torch.randn(32, 64))
    assert explained.sizes == [64, 128, 64, 10] and explained.parameters == 17226
    first, second, last = explained.layers
    assert [equation for equation, _ in second.forward()] == [
        "Z[2] = W[2] A[1] + b[2]",
        "A[2] = g(Z[2])",
    ]
    assert [equation for equation, _ in second.backward()] == [
        "dZ[2] = dA[2] ∗ g′(Z[2])",
        "dW[2] = 1/m dZ[2] A[1]ᵀ",
        "db[2] = 1/m Σ dZ[2]",
        "dA[1] = W[2]ᵀ dZ[2]",
    ]
    shapes = {"W[1]": (128, 64), "b[1]": (128, 1), "A[0]": (64, 32), "Z[1]": (128, 32)}
    shapes |= {"dW[1]": (128, 64), "dA[0]": (64, 32), "dZ[1]": (128, 32), "A[1]": (128, 32)}
    assert shapes.items() <= first.matrices().items()
    assert last.g is None and "softmax(Z[3]) − Y" in last.backward()[0][1]
    assert [layer.last for layer in explained.layers] == [False, False, True]
    text = str(explained)
    assert "a = max(0, z)" in text and "g′ = 1 if z > 0 else 0; 0 at the kink" in text
    assert "where(z <= 0, 0, z)" in text and "manualnn.ops.activations.ReLU" in text
    assert "W[1], dW[1]" in text and "(128, 64)" in text


def test_one_example_is_in_small_letters():
    (layer,) = manualnn.explain(nn.MLP([3, 2]), torch.randn(1, 3)).layers
    equations = [equation for equation, _ in (*layer.forward(), *layer.backward())]
    assert "dW[1] = dz[1] a[0]ᵀ" in equations and "db[1] = dz[1]" in equations
    assert not any("1/m" in equation or "Z" in equation for equation in equations)


@pytest.mark.parametrize(
    "model",
    [
        nn.MLP([6, 5, 3]),
        torch.nn.Sequential(
            torch.nn.Linear(6, 5), torch.nn.ReLU(inplace=True), torch.nn.Linear(5, 3)
        ),
        manualnn.convert(torch.nn.Sequential(nn.Flatten(), nn.MLP([6, 5, 3]))),
        Own(6, 5, 3),
    ],
    ids=["MLP", "Sequential", "converted", "a class"],
)
def test_a_chain_is_a_chain_however_it_is_written(model):
    explained = manualnn.explain(model, rows([6]))
    assert explained.sizes == [6, 5, 3]
    assert [layer.g and layer.g.name for layer in explained.layers] == ["ReLU", None]
    assert explained.saved == retained(manualnn.convert(model), rows([6]))


def test_what_is_frozen_is_left_out():
    model = nn.MLP([6, 5, 4, 3], "tanh")
    model[0].requires_grad_(False)
    model[2].bias.requires_grad_(False)
    first, second, third = manualnn.explain(model, rows([6])).layers
    assert all(note.startswith("left out") for _, note in first.backward())
    notes = dict(second.backward())
    assert notes["dW[2] = 1/m dZ[2] A[1]ᵀ"] == "" and "frozen" in notes["db[2] = 1/m Σ dZ[2]"]
    assert "left out" in notes["dA[1] = W[2]ᵀ dZ[2]"]
    assert not any(note.startswith("left out") for _, note in third.backward())


def test_nothing_of_the_model_is_changed():
    model = torch.nn.Sequential(
        torch.nn.Linear(6, 5), torch.nn.BatchNorm1d(5), torch.nn.Dropout(0.5)
    )
    model[0].weight.grad = torch.ones(5, 6)
    state = {name: t.clone() for name, t in model.state_dict().items()}
    mlp, x = nn.MLP([6, 4, 2], dropout=0.5), rows([6])
    before = torch.get_rng_state()
    manualnn.explain(model, x)
    manualnn.explain(mlp, x).numbers()
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(t, state[name]) for name, t in model.state_dict().items())
    assert torch.equal(model[0].weight.grad, torch.ones(5, 6)) and type(model[0]) is torch.nn.Linear
    assert not model[0]._forward_hooks and not model[0]._forward_pre_hooks


# --- What is saved ---------------------------------------------------------------------------------


def saved_by_autograd(model, x):
    """What autograd is given to save by the model itself, without parameters and input: from outside."""
    theirs = {p.untyped_storage().data_ptr() for p in model.parameters()}
    theirs.add(x.untyped_storage().data_ptr())
    found = []
    with saved_tensors_hooks(lambda t: found.append(t) or t, lambda t: t):
        z = model(x)
    return z, [t for t in found if t.untyped_storage().data_ptr() not in theirs]


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("activation", ["relu", "gelu", "tanh", "elu", "softplus", "prelu"])
def test_what_is_saved_is_what_autograd_has(activation, dropout):
    model = nn.MLP([20, 70, 30, 4], activation, dropout)
    x = rows([20], m=64)
    z, tensors = saved_by_autograd(model, x)
    fused = type(z.grad_fn).__name__ == "NetworkBackward"
    assert fused == (activation != "prelu")
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    explained = manualnn.explain(model, x)
    assert explained.saved == sum(storages.values()) == retained(model, x)
    for layer in explained.layers:
        known = layer.matrices() | {f"g(Z[{layer.l}])": (layer.n, layer.m), "w": (1,)}
        assert all(one.shape == known[one.what] for one in layer.saved)
    counted = [one for layer in explained.layers for one in layer.saved if one.bytes]
    assert sum(one.bytes for one in counted) == explained.saved
    masks = (torch.bool, torch.uint8)
    real = sorted(tuple(t.shape)[::-1] for t in tensors if t.dtype not in masks)
    shown = [k for layer in explained.layers for k in layer.saved if k.dtype == "float32"]
    assert sorted(k.shape for k in shown if k.what not in ("A[0]", "w")) == real
    assert len([k for k in counted if k.what.startswith("R")]) == (2 if dropout else 0)


def test_the_saved_are_called_what_they_are():
    """The values of the single node's tensors, compared with those of the names."""
    x = rows([6])
    for activation, named in (("tanh", "A[1]"), ("gelu", "Z[1]")):
        model = nn.MLP([6, 5, 3], activation)
        _, tensors = saved_by_autograd(model, x)
        (tensor,) = [k for k in manualnn.explain(model, x).layers[0].saved if k.bytes]
        z = F.linear(x, model[0].weight, model[0].bias)
        value = {"Z[1]": z, "A[1]": torch.tanh(z)}[tensor.what]
        assert tensor.what == named and torch.equal(tensors[0], value)


def test_the_ledger_sees_the_single_node():
    model = nn.MLP([6, 5, 4, 3], "gelu")
    ledger = manualnn.ledger(model, rows([6]))
    assert {entry.op for entry in ledger.ours.entries} == {"Network"}
    assert ledger.total == 4 * 7 * (5 + 4) == retained(model, rows([6]))


@pytest.mark.parametrize(
    ("frozen", "expected"),
    [
        (["0.weight", "0.bias"], [["A[1]"], ["A[2]"], []]),
        (["2.bias"], [["A[1]"], ["A[2]"], []]),  # layer by layer, not one node
        (["0.weight", "0.bias", "4.bias"], [[], ["A[1]", "A[2]"], []]),  # A[1] for dW[2] alone
    ],
)
def test_what_is_saved_where_something_is_frozen(frozen, expected):
    model = nn.MLP([6, 5, 4, 3], "tanh")
    for name in frozen:
        model.get_parameter(name).requires_grad_(False)
    explained = manualnn.explain(model, rows([6]))
    named = [[k.what for k in layer.saved if k.bytes] for layer in explained.layers]
    assert explained.saved == retained(model, rows([6]))
    assert named == expected


# --- FLOPs ----------------------------------------------------------------------------------------


def cnn():
    return nn.Sequential(
        *(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(27, 5), nn.ReLU(), nn.Linear(5, 2)),
    )


def frozen_below():
    model = nn.MLP([6, 5, 4, 3], "gelu", 0.2)
    model[0].requires_grad_(False)
    return model


@pytest.mark.parametrize(
    ("model", "x"),
    [
        (nn.MLP([6, 5, 4, 3]), rows([6])),
        (nn.MLP([6, 5, 4, 3]), rows([6]).requires_grad_()),
        (nn.MLP([6, 5, 4, 3], bias=False), rows([6]).view(7, 1, 6)),
        (nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 2), nn.Sigmoid()), rows([6])),
        (frozen_below(), rows([6])),
        (cnn(), torch.randn(4, 1, 8, 8)),
        (nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 2)), rows([6])),
        (Residual(), torch.randn(2, 3, 5, 5)),
        (torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), torch.randn(2, 5, 8)),
    ],
    ids=[
        "MLP",
        "with dx",
        "three dimensions",
        "Sequential",
        "frozen",
        "CNN",
        "norm",
        "branch",
        "attention",
    ],
)
def test_the_flops_are_those_of_torchs_counter(model, x):
    explained = manualnn.explain(model, x)
    ours = manualnn.convert(model)
    with FlopCounterMode(display=False) as counter:
        loss = ours(x).sum()
    forward = counter.get_total_flops()
    with counter:  # counts from 0
        loss.backward()
    assert explained.flops == (forward, counter.get_total_flops())
    assert min(explained.flops) > 0


def test_the_flops_of_a_grouped_convolution():
    """dx and dW cost what forward costs; torch's own counter forgets the groups of backward."""
    model = nn.Sequential(nn.Conv2d(4, 8, 1), nn.Conv2d(8, 8, 3, groups=8))
    first, second = manualnn.explain(model, torch.randn(2, 4, 5, 5)).steps
    assert first.flops == (2 * 2 * 25 * 8 * 4, 2 * 2 * 25 * 8 * 4)
    assert second.flops == (2 * 2 * 9 * 8 * 9, 2 * 2 * 2 * 9 * 8 * 9)


def test_under_autocast():
    explained = manualnn.explain(nn.MLP([6, 5, 3], "elu"), rows([6]), autocast="bf16")
    assert explained.dtype == "bfloat16" and explained.sizes == [6, 5, 3]
    saved = [k for layer in explained.layers for k in layer.saved]
    assert ("Z[1]", "bfloat16") in [(k.what, k.dtype) for k in saved]
    assert sum(k.bytes for k in saved) == explained.saved
    assert {k.what: k.shape for k in saved}.items() >= {"A[0]": (6, 7), "W[2]": (3, 5)}.items()


# --- Models that are no MLP -----------------------------------------------------------------------


def test_a_cnn_step_by_step():
    explained = manualnn.explain(cnn(), torch.randn(4, 1, 8, 8))
    assert explained.layers is None and explained.sizes is None
    steps = {step.layer: step for step in explained.steps}
    assert [step.op for step in explained.steps] == [
        *("Convolution", "BatchNorm", "ReLU", "MaxPool", "Linear", "ReLU", "Linear")
    ]
    assert steps["0"].parameters == {"0.weight": (3, 1, 3, 3), "0.bias": (3,)}
    assert (steps["0"].shapes_in, steps["0"].shape) == ([(4, 1, 8, 8)], (4, 3, 6, 6))
    assert steps["0"].written == "manualnn.ops.convolutions.Convolution"
    assert sum(one.bytes for step in explained.steps for one in step.saved) == explained.saved
    assert explained.saved == retained(cnn(), torch.randn(4, 1, 8, 8))
    text = str(explained)
    assert "dx = fold(Wᵀ dz)" in text and "dgamma = Σ dy xhat" in text and "dz = da ∗ g′(z)" in text


def test_branches_and_torchs_own_ops():
    explained = manualnn.explain(Residual(), torch.randn(2, 3, 5, 5))
    by_op = {step.op: step for step in explained.steps}
    assert by_op["Add"].written is None and "dx₁ = dy" in str(explained)
    assert by_op["BatchNorm"].after == [by_op["Convolution"].number]
    assert by_op["Convolution"].after == []
    assert by_op["BatchNorm"].number in by_op["Add"].after


@pytest.mark.parametrize(
    ("model", "error", "message"),
    [
        (torch.nn.LSTM(6, 4), ValueError, "no op that is written by hand; torch's own ran: "),
        (torch.nn.Flatten(), ValueError, "nothing to explain"),
        (nn.MLP, TypeError, "not the class MLP"),
        (nn.MLP([5, 2]), RuntimeError, "shapes cannot be multiplied"),
    ],
)
def test_what_cannot_be_explained(model, error, message):
    with pytest.raises(error, match=message):
        manualnn.explain(model, rows([6]))


def test_an_activation_alone_and_softmax_at_the_end():
    assert [step.op for step in manualnn.explain(nn.ReLU(), rows([6])).steps] == ["ReLU"]
    ending = nn.Sequential(nn.Linear(6, 3), nn.Softmax(1))
    assert "dz_i = a_i (da_i − Σ_j da_j a_j)" in str(manualnn.explain(ending, rows([6])))
    over_examples = nn.Sequential(nn.Linear(6, 3), nn.Softmax(0))
    assert manualnn.explain(over_examples, rows([6])).layers is None


# --- JSON -----------------------------------------------------------------------------------------


def test_json_says_the_same():
    explained = manualnn.explain(nn.MLP([6, 5, 3], "gelu", 0.2), rows([6]), name="mine")
    content = json.loads(explained.to_json())
    assert content["target"] == "mine" and content["sizes"] == [6, 5, 3]
    assert content["flops"] == dict(zip(("forward", "backward"), explained.flops, strict=True))
    first = content["layers"][0]
    assert first["matrices"]["W[1]"] == [5, 6] and first["dropout"] == 0.2
    assert first["activation"]["code"]["g"] == "z * _Phi(z)"
    assert (
        content["saved"]
        == explained.saved
        == sum(one["bytes"] for layer in content["layers"] for one in layer["saved"])
    )
    steps = json.loads(manualnn.explain(cnn(), torch.randn(4, 1, 8, 8)).to_json())
    assert steps["steps"][0]["op"] == "Convolution" and steps["ops"]["ReLU"]["backward"]


def test_the_names_that_what_is_saved_had_before():
    for x, model in ((rows([6]), nn.MLP([6, 5, 3])), (torch.randn(4, 1, 8, 8), cnn())):
        explained = manualnn.explain(model, x)
        for thing in (explained, *(explained.layers or ()), *(explained.steps or ())):
            name = type(thing).__name__
            with pytest.warns(DeprecationWarning, match=f"{name}.kept is called saved now"):
                assert thing.kept == thing.saved
