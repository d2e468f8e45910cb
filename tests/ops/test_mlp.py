"""nn.MLP: one autograd node, the same numbers as its layers one by one, whatever is asked of it."""

import copy
import itertools
import pickle

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from manualnn import nn

SIZES = [5, 7, 6, 3]
ACTIVATIONS = {
    "relu": torch.nn.ReLU,
    "tanh": torch.nn.Tanh,
    "gelu": torch.nn.GELU,
    "hardtanh": torch.nn.Hardtanh,
    "softsign": torch.nn.Softsign,
}


def twins(activation="relu", dropout=0.0, bias=True, sizes=SIZES, dtype=torch.float64):
    """The MLP and torch.nn's Sequential with the same weights and the same keys."""
    torch.manual_seed(0)
    ours = nn.MLP(sizes, activation, dropout=dropout, bias=bias, dtype=dtype)
    layers = []
    for n_prev, n in zip(sizes[:-2], sizes[1:-1], strict=True):
        layers += [torch.nn.Linear(n_prev, n, bias=bias), ACTIVATIONS[activation]()]
        layers += [torch.nn.Dropout(dropout)] if dropout else []
    theirs = torch.nn.Sequential(*layers, torch.nn.Linear(*sizes[-2:], bias=bias)).to(dtype)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def one_node(model, x):
    """Whether the model runs as a single node."""
    output = model(x)  # held: before torch 2.13 a node does not outlive what it made
    return "Network" in output.grad_fn.name()


def gradients(model, x, shape=None, create_graph=False):
    torch.manual_seed(4)
    z = model(x)
    d = torch.linspace(-1, 1, z.numel(), dtype=z.dtype).view(z.shape)
    wrt = [t for t in (x, *model.parameters()) if t.requires_grad]
    return [z, *torch.autograd.grad(z, wrt, d, create_graph=create_graph)]


def assert_same(mine, other, tolerance=1e-12):
    for a, b in zip(mine, other, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def batch(*shape, grad=True):
    torch.manual_seed(1)
    return torch.randn(*shape, 5, dtype=torch.float64, requires_grad=grad)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("shape", [(4,), (1,), (0,), (), (2, 3)], ids=str)
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_the_same_as_its_layers(activation, dropout, shape, bias):
    ours, theirs = twins(activation, dropout, bias)
    for grad in (True, False):
        x = batch(*shape, grad=grad)
        assert one_node(ours, x)
        assert_same(gradients(ours, x), gradients(theirs, x))


@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_every_subset_of_frozen_parameters(activation, dropout):
    ours, theirs = twins(activation, dropout)
    count = len(list(ours.parameters()))
    for trained in itertools.product([True, False], repeat=count):
        for model in (ours, theirs):
            for p, wanted in zip(model.parameters(), trained, strict=True):
                p.requires_grad_(wanted)
        for grad in (True, False):
            if not grad and not any(trained):
                continue
            x = batch(4, grad=grad)
            assert_same(gradients(ours, x), gradients(theirs, x))


@pytest.mark.parametrize("activation", ["tanh", "gelu", "softsign"])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("first_trained", [0, 1])  # the last layer alone is linear
def test_second_derivatives(activation, dropout, first_trained):
    results = []
    for model in twins(activation, dropout):
        for p in list(model.parameters())[: 2 * first_trained]:
            p.requires_grad_(False)
        x = batch(4, grad=first_trained == 0)
        _, *grads = gradients(model, x, create_graph=True)
        wrt = [t for t in (x, *model.parameters()) if t.requires_grad]
        results.append(
            torch.autograd.grad(sum(g.square().sum() for g in grads), wrt, allow_unused=True)
        )
    for mine, other in zip(*results, strict=True):
        zero = torch.zeros((), dtype=torch.float64)
        assert_same([zero if mine is None else mine], [zero if other is None else other], 1e-11)


def test_one_layer():
    ours, theirs = twins(sizes=[5, 3])
    x = batch(4)
    assert one_node(ours, x)
    assert_same(gradients(ours, x), gradients(theirs, x))


def test_a_hooked_layer_runs_its_hook():
    ours, theirs = twins()
    x, seen = batch(4), []
    for model in (ours, theirs):
        model[1].register_forward_hook(lambda m, i, out: seen.append(out) or out * 2)
    assert_same(gradients(ours, x), gradients(theirs, x))
    assert len(seen) == 2 and torch.equal(*seen)


def test_a_backward_hook_sees_its_gradient():
    ours, theirs = twins()
    x, seen = batch(4), []
    for model in (ours, theirs):
        model[0].register_full_backward_hook(lambda m, i, out: seen.append(out[0]))
    gradients(ours, x), gradients(theirs, x)
    assert_same(seen[:1], seen[1:])


def test_a_replaced_layer_is_used():
    ours, theirs = twins()
    ours[1], theirs[1] = torch.nn.Tanh(), torch.nn.Tanh()
    x = batch(4)
    assert not one_node(ours, x)
    assert_same(gradients(ours, x), gradients(theirs, x))


def test_a_changed_option_is_used():
    ours, theirs = twins("hardtanh")
    for model in (ours, theirs):
        for layer in (model[1], model[3]):
            layer.max_val = 0.25
    x = batch(4)
    assert one_node(ours, x)
    assert_same(gradients(ours, x), gradients(theirs, x))
    ours[1].max_val = theirs[1].max_val = 0.5  # one g for all layers no longer
    assert not one_node(ours, x)
    assert_same(gradients(ours, x), gradients(theirs, x))


def test_dropout_probability_of_one_layer_changed():
    ours, theirs = twins("relu", 0.4)
    ours[2].p = theirs[2].p = 0.1
    x = batch(4)
    assert_same(gradients(ours, x), gradients(theirs, x))
    ours[2].eval(), theirs[2].eval()
    assert_same(gradients(ours, x), gradients(theirs, x))


@pytest.mark.parametrize("what", ["input", "weight", "output of a hidden layer"])
def test_a_change_between_forward_and_backward_raises(what):
    ours, _ = twins()
    x = batch(4) * 1
    z = ours(x)
    with torch.no_grad():
        if what == "input":
            x.add_(1)
        elif what == "weight":
            ours[2].weight.add_(1)
        else:
            z.grad_fn.saved_tensors[-1].add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        z.sum().backward()


def test_backward_twice():
    ours, _ = twins("gelu", 0.4)
    z = ours(batch(4))
    wrt = list(ours.parameters())
    first = torch.autograd.grad(z.sum(), wrt, retain_graph=True)
    assert_same(torch.autograd.grad(z.sum(), wrt), first, 0)
    with pytest.raises(RuntimeError, match="second time"):
        z.sum().backward()


def test_tied_weights():
    ours, theirs = twins(sizes=[5, 5, 5, 3])
    ours[2].weight, theirs[2].weight = ours[0].weight, theirs[0].weight
    x = batch(4)
    assert_same(gradients(ours, x), gradients(theirs, x))


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpointed(use_reentrant):
    ours, theirs = twins("gelu", 0.4)
    x = batch(4)

    def through(model):
        torch.manual_seed(4)
        checkpoint(model, x, use_reentrant=use_reentrant).square().sum().backward()
        grads = [p.grad for p in model.parameters()]
        return [x.grad, *grads]

    mine = through(ours)
    x.grad = None
    assert_same(mine, through(theirs))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(dtype):
    ours, theirs = twins(dtype=torch.float32)
    x = batch(4).float().detach().requires_grad_()
    results = []
    for model in (ours, theirs):
        with torch.autocast("cpu", dtype):
            results.append(gradients(model, x))
    assert [t.dtype for t in results[0]] == [t.dtype for t in results[1]]
    assert results[0][0].dtype is dtype
    assert_same(*results, 0.03)


def test_copies_and_pickles():
    ours, _ = twins("relu", 0.4)
    x = batch(4)
    for other in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert type(other) is nn.MLP and one_node(other, x)
        assert_same(gradients(other, x), gradients(ours, x), 0)


def test_wrong_shape_and_dtype_raise_as_torch_does():
    ours, theirs = twins()
    for x in (torch.randn(4, 6, dtype=torch.float64), torch.randn(4, 5), torch.randint(3, (4, 5))):
        errors = []
        for model in (ours, theirs):
            with pytest.raises(RuntimeError) as error:
                model(x)
            errors.append(str(error.value))
        assert errors[0] == errors[1]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (([5],), "sizes"),
        (([],), "sizes"),
        (([5, -1, 3],), "-1"),
        (([5, 4, 3], "rely"), "rely"),
        (([5, 4, 3], 3), "3"),
        (([5, 4, 3], "relu", 1.5), "1.5"),
        (([5, 3], "relu", 1.5), "1.5"),
        (([5, 3], "rely"), "rely"),
    ],
    ids=str,
)
def test_bad_arguments(arguments, named):
    with pytest.raises(ValueError, match=named):
        nn.MLP(*arguments)


def test_under_torch_func_it_runs_layer_by_layer():
    ours, theirs = twins("tanh")
    x = batch(4)

    def loss(model):
        def of(params, x):
            return torch.func.functional_call(model, params, (x,)).square().sum()

        params = dict(model.named_parameters())
        return torch.func.vmap(torch.func.grad(of), in_dims=(None, 0))(params, x)

    mine, other = loss(ours), loss(theirs)
    assert mine.keys() == other.keys()
    assert_same(mine.values(), other.values())
