"""A network worked through with numbers: each step against autograd, and a fault is named."""

import json

import pytest
import torch
from explain_helpers import nothing_old_to_collect  # noqa: F401

import manualnn
from manualnn import nn
from manualnn.ops import activations
from manualnn.ops.fully_connected import Linear
from manualnn.tools.explanations import numbers

# Every activation that a hidden layer can have.
HIDDEN = sorted({*nn.activations.__all__} - {"GLU", "Softmax2d", "Softmin", "Threshold"})


def small(activation="tanh", dropout=0.0, ending=()):
    """A network that is small enough to be worked through itself, and its explanation."""
    activation = nn.Softmax(1) if activation == "Softmax" else activation
    activation = nn.LogSoftmax(1) if activation == "LogSoftmax" else activation
    model = nn.Sequential(nn.MLP([3, 4, 3, 2], activation, dropout), *ending)
    x = torch.randn(3, 3, generator=torch.Generator().manual_seed(1))
    return model, manualnn.explain(model, x), x


@pytest.mark.parametrize("activation", HIDDEN)
def test_every_step_agrees_with_autograd(activation):
    _, explained, _ = small(activation, dropout=0.25)
    worked = explained.numbers(seed=2)
    assert worked and not worked.failures and not worked.reduced
    checked = {step.name for step in worked.steps if step.error is not None}
    for l in (1, 2, 3):
        assert {f"Z[{l}]", f"dZ[{l}]", f"dW[{l}]", f"db[{l}]", f"dA[{l - 1}]"} <= checked
    assert {"A[1]", "A[2]", "J", "dA[3]"} <= checked
    assert str(worked).endswith(f"largest difference {max(s.error or 0 for s in worked.steps):.0e}")


def test_the_numbers_are_the_networks_own():
    """Its gradients are those that the model itself is given, in float64."""
    model, explained, x = small("gelu")
    worked = {
        step.name: torch.tensor(step.value) for step in explained.numbers().steps if step.value
    }
    model.double()
    scores = model(x.double())
    classes = torch.arange(3) % 2
    torch.nn.functional.cross_entropy(scores, classes).backward()
    assert torch.allclose(worked["Z[3]"].double(), scores.detach().T, atol=1e-6)
    for l, linear in ((1, model[0][0]), (2, model[0][2]), (3, model[0][4])):
        assert torch.allclose(worked[f"dW[{l}]"].double(), linear.weight.grad, atol=1e-6)
        assert torch.allclose(worked[f"db[{l}]"].double()[:, 0], linear.bias.grad, atol=1e-6)


def test_another_loss_where_the_last_layer_has_an_activation():
    _, explained, _ = small("relu", ending=[nn.Sigmoid()])
    worked = explained.numbers()
    assert worked and "J = 1/m Σ ½ (A[3] − Y)²" in str(worked)
    one = nn.MLP([2, 3, 1], "tanh")
    assert manualnn.explain(one, torch.randn(2, 2)).numbers()


def test_a_large_network_is_worked_through_with_few_units():
    explained = manualnn.explain(nn.MLP([64, 128, 2, 10], "gelu", 0.1), torch.randn(50, 64))
    worked = explained.numbers(seed=3)
    assert worked.sizes == [2, 3, 2, 2] and worked.m == 2 and worked.reduced and worked
    assert str(worked) == str(explained.numbers(seed=3)) != str(explained.numbers(seed=4))
    written = json.loads(worked.to_json())
    assert written["agrees"] is True and written["steps"][-1]["ok"] is True
    with pytest.raises(ValueError, match="only fully connected layers"):
        manualnn.explain(nn.Conv1d(1, 2, 3), torch.randn(2, 1, 5)).numbers()


def test_one_example_is_not_divided():
    model = nn.MLP([2, 3, 2], "tanh")
    worked = manualnn.explain(model, torch.randn(1, 2)).numbers()
    assert worked and "1/m" not in str(worked).replace("J = −1/m", "")
    assert "dW[2] = dz[2] a[1]ᵀ" in str(worked)


def test_the_first_number_is_written_out():
    made = manualnn.explain(nn.MLP([2, 2]), torch.randn(2, 2)).numbers(own=False)
    steps = {step.name: step for step in made.steps}
    terms = steps["Z[1]"].worked.removeprefix("[1, 1]: ").replace("−", "-").replace("·", "*")
    left, right = terms.split(" = ")
    assert eval(left) == pytest.approx(float(right), abs=1e-3)
    assert float(right) == pytest.approx(steps["Z[1]"].value[0][0], abs=1e-3)


def test_alpha_dropout_and_a_second_way_to_write_it():
    model = torch.nn.Sequential(
        *(torch.nn.Linear(3, 4), torch.nn.SELU(), torch.nn.AlphaDropout(0.3)),
        torch.nn.Linear(4, 2),
    )
    worked = manualnn.explain(model, torch.randn(3, 3)).numbers()
    assert worked and "A[1] = g(Z[1]) ∗ R[1] + s" in str(worked)


# --- A fault is named -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cls", "attribute", "wrong", "named"),
    [
        (activations.Tanh, "g_prime_a", lambda a: 1 - a, {"g′(Z[1])", "dZ[1]", "dW[1]"}),
        (activations.Tanh, "g_prime_a", lambda a: (1 - a * a) * 1.0001, {"g′(Z[1])", "dZ[1]"}),
        (Linear, "apply", lambda x, W, b: x @ W.T * 1.001 + b, {"layers"}),
        (numbers, "TOLERANCE", -1.0, {"Z[1]", "J", "dA[0]"}),
    ],
)
def test_a_fault_is_found_and_named(cls, attribute, wrong, named, monkeypatch):
    _, explained, _ = small("tanh")
    if attribute == "TOLERANCE":
        from manualnn.tools.explanations import work

        monkeypatch.setattr(work, "TOLERANCE", wrong)
    else:
        monkeypatch.setattr(cls, attribute, staticmethod(wrong))
    worked = explained.numbers()
    assert not worked and "DIFFER from autograd" in str(worked)
    assert named <= {step.name.partition(":")[0] for step in worked.failures}
    assert "AUTOGRAD DIFFERS by" in str(worked) and not json.loads(worked.to_json())["agrees"]
