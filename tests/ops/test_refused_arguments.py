"""Arguments that torch refuses: the same exception, naming what does not fit."""

import inspect

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional as TF

from manualnn import functional as F

x = torch.linspace(-1, 1, 48).view(2, 4, 6)
classes = torch.tensor([0, 1, 2])
scores = torch.linspace(-1, 1, 12).view(3, 4)
running = torch.zeros(4), torch.ones(4)
REFUSED = {
    "glu, a dimension of several": lambda f: f.glu(x, dim=torch.tensor([1])),
    "batch_norm, training a tensor": lambda f: f.batch_norm(
        x, *running, training=torch.tensor(True)
    ),
    "batch_norm, training 1": lambda f: f.batch_norm(x, *running, training=1),
    "batch_norm, training None": lambda f: f.batch_norm(x, *running, training=None),
    "cross_entropy, ignore_index 1.5": lambda f: f.cross_entropy(scores, classes, ignore_index=1.5),
    "nll_loss, ignore_index 1.0": lambda f: f.nll_loss(scores, classes, ignore_index=1.0),
    "nll_loss of a number": lambda f: f.nll_loss(torch.tensor(1.0), torch.tensor(0)),
    "nll_loss of a number that is ignored": lambda f: f.nll_loss(
        torch.tensor(1.0), torch.tensor(-100)
    ),
    "cross_entropy of a number": lambda f: f.cross_entropy(torch.tensor(1.0), torch.tensor(0)),
    "linear, weight a list": lambda f: f.linear(x, [[1.0] * 6]),
    "prelu, weight a list": lambda f: f.prelu(x, [1.0]),
    "linear of a text": lambda f: f.linear("x", scores),
    "silu of None": lambda f: f.silu(None),
    "embedding of a list": lambda f: f.embedding([1], scores),
    "dropout of a list": lambda f: f.dropout([1.0]),
    "alpha_dropout of a text, not training": lambda f: f.alpha_dropout("x"),
    "dropout, p NaN": lambda f: f.dropout(x, p=float("nan")),
    "attention of numbers": lambda f: f.scaled_dot_product_attention(1, 2, 3),
}


@pytest.mark.parametrize("call", REFUSED.values(), ids=REFUSED)
def test_refused_as_by_torch(call):
    with pytest.raises(Exception) as theirs:
        call(TF)
    with pytest.raises(theirs.type) as ours:
        call(F)
    assert str(ours.value).partition("\n")[0] == str(theirs.value).partition("\n")[0]


def _of_one_tensor():
    for name in F.__all__:
        parameters = list(inspect.signature(getattr(F, name)).parameters.values())
        required = [p for p in parameters if p.default is p.empty]
        if [p.name for p in required] == ["input"]:
            yield name


@pytest.mark.parametrize("name", sorted(_of_one_tensor()))
def test_what_is_no_tensor_is_named(name):
    """torch's own raise AttributeError where they are written in Python, and TypeError elsewhere."""
    with pytest.raises(TypeError, match="list"):
        getattr(F, name)([1.0])


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_no_window_at_all(dims):
    input = torch.ones(2, *(4,) * (dims + 1), requires_grad=True)
    z = getattr(F, f"adaptive_max_pool{dims}d")(input, 0)
    assert z.shape == (2, 4, *(0,) * dims)
    with pytest.raises(RuntimeError, match="non-zero size"):  # torch's own
        z.sum().backward()


@pytest.mark.parametrize("name", ["hardshrink", "softshrink"])
def test_symbolic_sizes(name):
    def gradient(z):
        return torch.autograd.grad(getattr(F, name)(z).sum(), z)[0]

    traced = make_fx(gradient, tracing_mode="symbolic")(scores.clone().requires_grad_())
    z = torch.linspace(-2, 2, 35).view(5, 7).requires_grad_()
    assert torch.equal(traced(z), gradient(z))


def test_smoothed_classes_with_weights_that_hold_no_numbers():
    with FakeTensorMode() as mode:
        z, y, w = (mode.from_tensor(t) for t in (scores, classes, torch.ones(4)))
        z.requires_grad_()
        loss = F.cross_entropy(z, y, weight=w, label_smoothing=0.1)
        (dz,) = torch.autograd.grad(loss, z)
    assert loss.shape == () and dz.shape == z.shape
