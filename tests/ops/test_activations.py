"""Corners of the activations: bounds that the dtype rounds, in-place rules, constant slopes, devices."""

import numpy
import pytest
import torch

from manualnn import convert, nn
from manualnn import functional as ours

theirs = torch.nn.functional
RECTIFIERS = {
    "relu": lambda F, z: F.relu(z),
    "relu6": lambda F, z: F.relu6(z),
    "hardtanh": lambda F, z: F.hardtanh(z),
    "leaky_relu": lambda F, z: F.leaky_relu(z),
    "hardshrink": lambda F, z: F.hardshrink(z),
    "softshrink": lambda F, z: F.softshrink(z),
    "threshold": lambda F, z: F.threshold(z, 0.1, 0.0),
}
IN_PLACE = ["relu", "relu6", "hardtanh", "leaky_relu", "elu", "celu", "selu", "silu", "mish"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("bound", [0.7, 0.1, 1 / 3, 0.5, 1e-3, 3e-8])
@pytest.mark.parametrize("name", ["hardtanh", "threshold"])
@pytest.mark.parametrize("create_graph", [False, True])
def test_a_bound_that_the_dtype_rounds(name, bound, dtype, create_graph):
    """The rounded output may lie on the other side of the bound: then it does not tell the slope."""
    around = torch.tensor([bound], dtype=dtype)
    inf = torch.tensor(float("inf"), dtype=dtype)
    near = [around, around.nextafter(inf), around.nextafter(-inf)]
    z = torch.cat([*near, *(-t for t in near), torch.linspace(-2, 2, 41).to(dtype)])
    slopes = []
    for F in (ours, theirs):
        leaf = z.clone().requires_grad_()
        options = (-bound, bound) if name == "hardtanh" else (bound, bound)
        a = getattr(F, name)(leaf, *options)
        slopes.append(torch.autograd.grad(a.sum(), leaf, create_graph=create_graph)[0])
    assert torch.equal(*slopes)


def test_a_network_with_a_rounded_bound():
    ours_, clip = nn.MLP([4, 8, 2], nn.Hardtanh(-0.7, 0.7)), torch.nn.Hardtanh(-0.7, 0.7)
    theirs_ = torch.nn.Sequential(torch.nn.Linear(4, 8), clip, torch.nn.Linear(8, 2))
    theirs_.load_state_dict(ours_.state_dict())
    x = torch.randn(16, 4, generator=torch.Generator().manual_seed(1)).mul(3).bfloat16()
    for model in (ours_, theirs_):
        model.bfloat16()(x).sum().backward()
    torch.testing.assert_close(ours_[0].weight.grad, theirs_[0].weight.grad)


@pytest.mark.parametrize("name", RECTIFIERS)
def test_the_second_derivative_of_a_straight_line_is_zeros_not_missing(name):
    for F in (ours, theirs):
        z = torch.randn(4, requires_grad=True)
        (dz,) = torch.autograd.grad(RECTIFIERS[name](F, z).sum(), z, create_graph=True)
        dz.sum().backward()
        assert torch.equal(z.grad, torch.zeros(4))


@pytest.mark.parametrize("name", IN_PLACE)
@pytest.mark.parametrize("view", [False, True])
def test_a_refused_leaf_is_left_as_it_was(name, view):
    for F in (ours, theirs):
        leaf = torch.tensor([-1.0, 2.0], requires_grad=True)
        with pytest.raises(RuntimeError, match="leaf Variable that requires grad is being used"):
            getattr(F, name)(leaf[:] if view else leaf, inplace=True)
        assert torch.equal(leaf.detach(), torch.tensor([-1.0, 2.0]))


SEVERAL = {
    "unbind": lambda h: h.unbind(0)[0],
    "chunk": lambda h: h.chunk(2, 1)[1],
    "split, and a part of it": lambda h: h.split(1)[0][:, :2],
    "in no_grad": lambda h: torch.no_grad()(lambda: h[0])(),
}


@pytest.mark.parametrize("keep", [None, "less", "all"])
@pytest.mark.parametrize("view", SEVERAL)
@pytest.mark.parametrize(
    "name", [*IN_PLACE, "hardswish", "hardsigmoid", "threshold", "rrelu", "dropout"]
)
def test_a_refused_view_is_left_as_it_was(name, view, keep):
    class Net(torch.nn.Module):
        def forward(self, h):
            F = ours if keep is None else theirs
            self.h = h * 1
            options = (0.5, 7.0) if name == "threshold" else ()
            return getattr(F, name)(SEVERAL[view](self.h), *options, inplace=True)

    net = Net() if keep is None else convert(Net(), keep=keep)
    h = torch.tensor([[-1.0, 2.0, 0.25, -3.0], [4.0, -0.5, 1.0, 2.0]], requires_grad=True)
    with pytest.raises(RuntimeError, match="is being modified inplace"):
        net(h)
    assert torch.equal(net.h, h)
    net.h.add_(1)  # and may be written to, by who may


@pytest.mark.parametrize("name", IN_PLACE)
def test_in_place_without_a_graph(name):
    for F in (ours, theirs):
        z = torch.randn(3)
        assert getattr(F, name)(z, inplace=True) is z
        leaf = torch.randn(3, requires_grad=True)
        with torch.no_grad():
            assert getattr(F, name)(leaf, inplace=True) is leaf
        assert leaf._version == 1


def test_linear_with_a_bias_of_its_own_for_each_row():
    for shape in [(2,), (1, 2), (4, 2)]:
        grads = []
        for F in (ours, theirs):
            torch.manual_seed(0)
            leaves = [torch.randn(s, requires_grad=True) for s in ((4, 3), (2, 3), shape)]
            F.linear(*leaves).square().sum().backward()
            grads.append([t.grad for t in leaves])
        for mine, other in zip(*grads, strict=True):
            torch.testing.assert_close(mine, other)


def test_linear_of_a_vector_of_weights_refuses_a_bias_as_torch_does():
    for F in (ours, theirs):
        with pytest.raises(RuntimeError, match="mat2 must be a matrix, got 1-D tensor"):
            F.linear(torch.randn(4, 3), torch.randn(3), torch.randn(1))


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str
)
@pytest.mark.parametrize("p", [0.1, 0.237, 0.5, 0.9, 1 / 3])
def test_the_scale_of_dropout_is_rounded_as_a_division_is(p, dtype):
    z = torch.ones(1000, dtype=dtype)
    values = []
    for F in (ours, theirs):
        torch.manual_seed(0)
        values.append(F.dropout(z, p))
    assert torch.equal(*values)


def test_dropout_on_the_meta_device():
    with torch.device("meta"):
        assert ours.dropout(torch.randn(3, 4), 0.237).shape == (3, 4)
        model = nn.MLP([3, 4, 2], dropout=0.3)
        assert model(torch.randn(5, 3)).shape == (5, 2)


def test_dropout_of_everything_keeps_the_dtype():
    for F in (ours, theirs):
        assert F.dropout(torch.arange(3), 1.0).dtype is torch.int64


def test_options_that_an_mlp_cannot_use_are_refused_by_its_layers():
    model = nn.MLP([3, 4, 4, 2], "gelu", dropout=0.3)
    for layer in (model[1], model[4]):
        layer.approximate = "nonsense"
    with pytest.raises(RuntimeError, match="approximate"):
        model(torch.randn(5, 3))
    model = nn.MLP([3, 4, 4, 2], dropout=0.3)
    model[2].p = model[5].p = 1.5
    with pytest.raises(ValueError, match="dropout probability"):
        model(torch.randn(5, 3))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("inplace", [False, True])
def test_a_bound_may_be_infinite(dtype, inplace):
    inf = float("inf")
    calls = [
        lambda F, z: F.hardtanh(z, 0.0, inf, inplace=inplace),
        lambda F, z: F.hardtanh(z, -inf, 0.7, inplace=inplace),
        lambda F, z: F.hardtanh(z, -inf, inf, inplace=inplace),
        lambda F, z: F.threshold(z, 0.1, -inf, inplace=inplace),
        lambda F, z: F.threshold(z, -inf, 0.0, inplace=inplace),
        lambda F, z: F.threshold(z, inf, 2.0, inplace=inplace),
        lambda F, z: F.hardshrink(z, inf),
        lambda F, z: F.softplus(z, 1, inf),
        lambda F, z: F.leaky_relu(z, inf, inplace=inplace),
    ]
    for call in calls:
        results = []
        for F in (ours, theirs):
            z = torch.linspace(-2, 2, 8, dtype=dtype).requires_grad_()
            a = call(F, z * 1)
            results.append([a.detach(), *torch.autograd.grad(a, z, torch.ones(8, dtype=dtype))])
        for mine, other in zip(*results, strict=True):
            assert mine.dtype is dtype
            torch.testing.assert_close(mine, other, equal_nan=True, rtol=0, atol=0)


KINKS = {
    "relu": [0.0],
    "relu6": [0.0, 6.0],
    "leaky_relu": [0.0],
    "elu": [0.0],
    "celu": [0.0],
    "selu": [0.0],
    "hardtanh": [-1.0, 1.0],
    "hardswish": [-3.0, 3.0],
}


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("name", KINKS)
def test_the_second_derivative_at_the_kink_is_torchs(name, inplace):
    at = torch.tensor([*KINKS[name], -0.0], dtype=torch.float64)
    found = []
    for F in (ours, theirs):
        z = at.clone().requires_grad_()
        a = getattr(F, name)(z * 1, inplace=inplace)
        (first,) = torch.autograd.grad(a.sum(), z, create_graph=True)
        found.append(torch.autograd.grad(first.sum(), z)[0])
    assert torch.equal(*found)


def test_equal_bounds_of_which_one_is_a_rounded_tensor():
    low, high, z = -0.3, torch.tensor(-0.3), torch.randn(5)
    assert torch.equal(*(F.hardtanh(z, low, high) for F in (ours, theirs)))


@pytest.mark.parametrize("kind", [numpy.float32, numpy.int64, torch.tensor])
@pytest.mark.parametrize(
    ("name", "options"),
    [("LeakyReLU", 1), ("ELU", 1), ("CELU", 1), ("Hardshrink", 1), ("Softshrink", 1)]
    + [("Hardtanh", 2), ("Softplus", 2), ("Threshold", 2), ("RReLU", 2)],
)
def test_options_that_are_scalars_of_another_library(name, options, kind):
    given = [kind(value) for value in (1, 2)[:options]]
    grads = []
    for owner in (torch.nn, nn):
        torch.manual_seed(0)
        z = torch.linspace(-3, 3, 13).requires_grad_()
        getattr(owner, name)(*given)(z).square().sum().backward()
        grads.append(z.grad)
    assert torch.equal(*grads)
