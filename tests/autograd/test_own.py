"""Activations and layers that a person writes: the same rights as ours, and errors in words."""

import copy
import io
import pickle

import binarised_weights as binarised
import feedback_alignment as feedback
import gradient_reversal as reversal
import pytest
import snake
import torch
from snake import Snake

import manualnn
from manualnn import Activation, Function, nn
from manualnn.tools.checks import CheckError
from manualnn.tools.checks.report import DECLARED, PASSED

DIFFERENCES = "backward against central differences"


class Square(Activation):
    def g(z, scale=2.0):
        return scale * z * z

    def g_prime(z, scale=2.0):
        return 2 * scale * z


class TorchSquare(torch.nn.Module):
    """What a person's model may hold already."""

    def __init__(self, scale=2.0):
        super().__init__()
        self.scale = scale

    def forward(self, z):
        return self.scale * z * z


class SquareInPlace(Square):
    replaces = TorchSquare


# The worked examples.


def test_snake_is_right_and_learns():
    assert manualnn.check(Snake)
    first, last = snake.train(steps=150)
    assert last < 0.01 * first


def test_snake_learns_a_frequency_for_each_channel():
    layer = Snake.Module(alpha=0.5, channels=3)
    assert {n: p.shape for n, p in layer.named_parameters()} == {"alpha": (3,)}
    x = torch.randn(2, 3, 4, dtype=torch.float64)
    report = manualnn.check(layer, x)
    assert report, report
    assert torch.equal(layer.alpha, torch.full((3,), 0.5))


def test_a_straight_through_estimator_departs_as_declared():
    report = manualnn.check(binarised.Binarise)
    assert report and report[DIFFERENCES].status == DECLARED
    assert "straight-through" in report[DIFFERENCES].detail
    assert report[DIFFERENCES].where.startswith("dv[")
    undeclared = manualnn.check(binarised.Binarise.apply, torch.randn(3, 4) * 2)
    assert not undeclared and undeclared.failures[0].name == DIFFERENCES


def test_binarised_weights_train():
    torch.manual_seed(0)
    layer = binarised.BinaryLinear(8, 1)
    x = torch.randn(64, 8)
    target = x @ torch.tensor([1.0, -1, 1, -1, 1, 1, -1, -1])[:, None]
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.02)
    errors = []
    for _ in range(200):
        optimizer.zero_grad()
        error = (layer(x) - target).square().mean()
        error.backward()
        optimizer.step()
        errors.append(error.item())
    assert errors[-1] < 0.05 * errors[0]


def test_gradient_reversal_departs_as_declared():
    report = manualnn.check(reversal.GradientReversal)
    assert report and report[DIFFERENCES].status == DECLARED
    z = torch.randn(3, requires_grad=True)
    reversal.GradientReversal.apply(z, 0.5).sum().backward()
    assert torch.equal(z.grad, torch.full((3,), -0.5))


def test_feedback_alignment_departs_in_dx_alone():
    inputs = [torch.randn(s) for s in ((4, 3), (5, 3), (5,), (5, 3))]
    report = manualnn.check(feedback.feedback_linear, *inputs)
    assert report, report
    assert report[DIFFERENCES].where.startswith("dx[")
    wrong = manualnn.check(feedback.RandomFeedback, *inputs, surrogate={"W": "not this one"})
    assert not wrong and "dx" in wrong.failures[0].where


def test_feedback_alignment_trains():
    torch.manual_seed(0)
    model = nn.Sequential(feedback.FeedbackLinear(4, 16), nn.Tanh(), feedback.FeedbackLinear(16, 1))
    assert set(model.state_dict()) >= {"0.feedback", "0.weight", "2.bias"}
    x = torch.randn(128, 4)
    target = (x[:, :1] * x[:, 1:2]).tanh()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    errors = []
    for _ in range(300):
        optimizer.zero_grad()
        error = nn.MSELoss()(model(x), target)
        error.backward()
        optimizer.step()
        errors.append(error.item())
    assert errors[-1] < 0.3 * errors[0]


# What an activation has.


def test_the_functional_takes_options_by_name():
    z = torch.tensor([1.0, -2.0])
    assert torch.equal(Square.functional(z), Square.apply(z, 2.0))
    assert torch.equal(Square.functional(z, scale=3.0), 3 * z * z)
    changed = z.clone()
    assert Square.functional(changed, inplace=True) is changed
    assert torch.equal(changed, 2 * z * z)
    for wrong in ({"scales": 3.0}, {"scale": 1.0, "other": 2}):
        with pytest.raises(TypeError):
            Square.functional(z, **wrong)
    with pytest.raises(TypeError):
        Square.functional(z, 1.0, 2.0)


def test_the_module():
    layer = Square.Module(scale=3.0)
    assert repr(layer) == "Square(scale=3.0)"
    z = torch.randn(4)
    assert torch.equal(layer(z), 3 * z * z)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert type(other) is Square.Module and torch.equal(other(z), layer(z))
    for arguments in ({"scales": 1.0}, {"channels": 3}):
        with pytest.raises(TypeError):
            Square.Module(**arguments)


def test_the_module_with_something_learned():
    layer = Snake.Module(dtype=torch.float64)
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    other = Snake.Module(5.0, dtype=torch.float64)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert other.alpha == 1.0 and other.alpha.dtype is torch.float64
    layer(torch.randn(3, dtype=torch.float64)).sum().backward()
    assert layer.alpha.grad.shape == ()


@pytest.mark.parametrize("activation", [Square, Square.Module, Square.Module(2.0)], ids=str)
@pytest.mark.one_in(3)
def test_in_an_mlp_it_runs_as_one_node(activation):
    torch.manual_seed(0)
    model = nn.MLP([4, 5, 5, 3], activation, dtype=torch.float64)
    x = torch.randn(2, 4, dtype=torch.float64)
    output = model(x)
    assert "Network" in output.grad_fn.name()
    assert manualnn.check(model, x)


def test_in_an_mlp_something_learned_runs_layer_by_layer():
    model = nn.MLP([4, 5, 5, 3], Snake, dtype=torch.float64)
    assert [n for n, _ in model.named_parameters() if "alpha" in n] == ["1.alpha", "3.alpha"]
    assert manualnn.check(model, torch.randn(2, 4, dtype=torch.float64))


def test_in_convert_and_back():
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), TorchSquare(0.5), torch.nn.Linear(4, 2))
    x = torch.randn(5, 3)
    before = model(x)
    assert manualnn.convert(model, strict=True) is model
    assert type(model[1]) is SquareInPlace.Module and isinstance(model[1], TorchSquare)
    squared = model[1](x.clone().requires_grad_() * 1)
    assert "Square" in squared.grad_fn.name()
    torch.testing.assert_close(model(x), before)
    assert type(pickle.loads(pickle.dumps(model))[1]) is SquareInPlace.Module
    manualnn.revert(model)
    assert type(model[1]) is TorchSquare and type(model[0]) is torch.nn.Linear


def test_a_slope_may_be_a_number():
    class Triple(Activation):
        def g(z):
            return 3 * z

        def g_prime(z):
            return 3

    assert manualnn.check(Triple)


def test_a_learned_option_in_place():
    z, alpha = torch.randn(4, dtype=torch.float64), torch.tensor(0.7, requires_grad=True)
    grads = []
    for apply in (Snake.apply, Snake.apply_):
        leaf = z.clone().requires_grad_()
        a = apply(leaf * 1, alpha.double())
        grads.append(torch.autograd.grad(a.sum(), (leaf, alpha)))
    for one, other in zip(*grads, strict=True):
        assert torch.equal(one, other)


# Errors in words, where the mistake is made.


def define(check=False, **namespace):
    return type(Activation)("Own", (Activation,), namespace, check=check)


@pytest.mark.parametrize(
    ("namespace", "message"),
    [
        ({"g_prime": lambda z: z}, "Own states no formula"),
        ({"g": lambda z: z}, "states g but not its derivative"),
        ({"g": lambda self, z: z, "g_prime": lambda self, z: z}, "take no self"),
        ({"g": lambda z, k: z, "g_prime": lambda z: z}, "g_prime takes .*'z'.*, but g takes .*'k'"),
        ({"g": lambda z: z, "g_prime": lambda z: z, "learned": {"k": 1.0}}, "g does not take"),
        ({"g": lambda z, k: z, "g_prime": lambda z, k: z, "learned": {"k": 1.0}}, "as d_k"),
        (
            {"g": lambda z, k: z, "g_prime_a": lambda a, k: a, "learned": {"k": 1.0}},
            "state g_prime, from the input",
        ),
    ],
)
def test_a_definition_that_lacks_something(namespace, message):
    with pytest.raises(TypeError, match=message):
        define(**namespace)


@pytest.mark.parametrize("apply", [Square.apply, Square.apply_, Square.functional])
def test_a_tensor_is_no_option_unless_it_is_learned(apply):
    """On ctx it could change unseen, and its gradient would be lost without a word."""
    with pytest.raises(TypeError, match="`learned`"):
        apply(torch.randn(3, requires_grad=True) * 1, torch.tensor(2.0, requires_grad=True))


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("leaky_relu", lambda k: (k,)),
        ("elu", lambda k: (k,)),
        ("hardtanh", lambda k: (-k, k)),
        ("softplus", lambda k: (k,)),
        ("huber_loss", lambda k: (torch.randn(3), "mean", k)),
        ("smooth_l1_loss", lambda k: (torch.randn(3), None, None, "mean", k)),
    ],
)
def test_an_option_whose_gradient_would_be_lost_is_refused(name, arguments):
    for F in (manualnn.functional, torch.nn.functional):
        with pytest.raises((TypeError, RuntimeError)):
            k = torch.tensor(0.5, requires_grad=True)
            getattr(F, name)(torch.randn(3, requires_grad=True), *arguments(k))


def test_a_tensor_as_a_number_is_read_once():
    for F in (manualnn.functional, torch.nn.functional):
        slope, z = torch.tensor(0.1), torch.tensor([-1.0], requires_grad=True)
        a = F.leaky_relu(z, slope)
        slope.fill_(0.7)
        a.backward()
        assert z.grad.item() == pytest.approx(0.1)


def test_a_wrong_derivative_is_refused_at_definition():
    with pytest.raises(CheckError, match="dz is 1.5× too small"):
        define(check=True, g=lambda z: z**3, g_prime=lambda z: 2 * z**2)
    assert define(check=True, g=lambda z: z**3, g_prime=lambda z: 3 * z**2)


def test_a_wrong_layer_is_refused_at_definition():
    def double(factor):
        return {
            "forward": staticmethod(lambda x: 2 * x),
            "setup_context": staticmethod(lambda ctx, inputs, out: None),
            "backward": staticmethod(lambda ctx, d: factor * d),
            "jvp": staticmethod(lambda ctx, d: 2 * d),
            "example_inputs": staticmethod(lambda: (torch.randn(3, 4),)),
        }

    assert type(Function)("Double", (Function,), double(2), check=True)
    with pytest.raises(CheckError, match="dx is 2× too small"):
        type(Function)("Double", (Function,), double(1), check=True)


def test_a_layer_of_ones_own_in_every_regime():
    class Scale(Function):
        """z = s x, s one number"""

        @staticmethod
        def forward(x, s):
            return x * s

        @staticmethod
        def setup_context(ctx, inputs, z):
            ctx.save_for_backward(*inputs)
            ctx.save_for_forward(*inputs)

        @staticmethod
        def backward(ctx, dz):
            x, s = ctx.saved_tensors
            return dz * s, (dz * x).sum()

        @staticmethod
        def jvp(ctx, dx, ds):
            x, s = ctx.saved_tensors
            return (0 if dx is None else dx * s) + (0 if ds is None else x * ds)

    report = manualnn.check(Scale, torch.randn(3, 4), torch.tensor(1.5))
    assert report, report
    assert report["nested forward mode"].status == PASSED
