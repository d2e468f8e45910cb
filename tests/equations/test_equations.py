"""The page's equations against autograd, finite differences, torch.nn and torch.optim."""

import doctest
from itertools import pairwise

import pytest
import torch
from torch.nn import functional as F

from manualnn import equations as eq

F64 = torch.float64
TIGHT = {"rtol": 1e-12, "atol": 1e-12}

# name: (g and g′, the twin of g, its kinks)
ACTIVATIONS = {
    "identity": (eq.identity, lambda z: z * 1, []),
    "sigmoid": (eq.sigmoid, torch.sigmoid, []),
    "tanh": (eq.tanh, torch.tanh, []),
    "relu": (eq.relu, F.relu, [0.0]),
    "leaky_relu": (eq.leaky_relu(), F.leaky_relu, [0.0]),
    "leaky_relu 0.2": (eq.leaky_relu(0.2), lambda z: F.leaky_relu(z, 0.2), [0.0]),
}

TWIN = {g: twin for g, twin, _ in ACTIVATIONS.values()}

# name: (loss, its output layer, the mean-reduced twin of its cost, taking A (m, n) and Y (m, n)).
# torch's mean runs over m·n numbers where the page's runs over m examples.
LOSSES = {
    "quadratic": (eq.quadratic, eq.tanh, lambda A, Y: F.mse_loss(A, Y) * A.shape[1] / 2),
    "binary": (
        eq.binary_cross_entropy,
        eq.sigmoid,
        lambda A, Y: F.binary_cross_entropy(A, Y) * A.shape[1],
    ),
    "softmax": (eq.softmax_cross_entropy, eq.identity, F.cross_entropy),
}

each_activation = pytest.mark.parametrize("name", ACTIVATIONS)
each_loss = pytest.mark.parametrize("loss_name", LOSSES)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def normal(*shape, requires_grad=False):
    return torch.randn(shape, dtype=F64, requires_grad=requires_grad)


def close(ours, theirs, rtol=1e-12, atol=1e-12):
    torch.testing.assert_close(ours, theirs, rtol=rtol, atol=atol)


def targets(loss_name, n, m):
    """Y (n, m) that the loss takes: any numbers, probabilities, or distributions."""
    Y = normal(n, m)
    return {"quadratic": Y, "binary": Y.sigmoid(), "softmax": Y.softmax(0)}[loss_name]


def central_difference(f, x, step=1e-5):
    """df/dx, one number of x at a time, for an f that returns a number."""
    slope = torch.empty_like(x)
    for i in range(x.numel()):
        nudge = torch.zeros_like(x)
        nudge.view(-1)[i] = step
        slope.view(-1)[i] = (f(x + nudge) - f(x - nudge)) / (2 * step)
    return slope


# --- g and g′ -------------------------------------------------------------------------------------


@each_activation
def test_g_and_its_derivative_are_those_of_the_twin(name):
    g, twin, kinks = ACTIVATIONS[name]
    z = torch.cat([3 * normal(50), torch.tensor([-800, -40, 40, 800, *kinks], dtype=F64)])
    z.requires_grad_()
    a = twin(z)
    close(g.g(z), a)
    close(g.g_prime(z), torch.autograd.grad(a.sum(), z)[0])


# --- One layer ------------------------------------------------------------------------------------


@each_activation
def test_one_example_equals_autograd(name):
    g, twin, _ = ACTIVATIONS[name]
    a_prev, W, b = (normal(*shape, requires_grad=True) for shape in [(5, 1), (4, 5), (4, 1)])
    da = normal(4, 1)

    a, cache = eq.layer_forward(a_prev, W, b, g)
    da_prev, dW, db = eq.layer_backward(da, cache)

    reference = twin(W @ a_prev + b)
    close(a, reference.detach())
    for ours, theirs in zip(
        (da_prev, dW, db), torch.autograd.grad(reference, (a_prev, W, b), da), strict=True
    ):
        close(ours, theirs)


@each_activation
def test_m_examples_equal_autograd(name):
    g, twin, _ = ACTIVATIONS[name]
    m = 7
    A_prev, W, b = (normal(*shape, requires_grad=True) for shape in [(5, m), (4, 5), (4, 1)])
    dA = normal(4, m)

    A, cache = eq.layer_forward_vectorized(A_prev, W, b, g)
    dA_prev, dW, db = eq.layer_backward_vectorized(dA, cache)

    reference = twin(W @ A_prev + b)
    close(A, reference.detach())
    theirs = torch.autograd.grad(reference, (A_prev, W, b), dA)
    close(dA_prev, theirs[0])
    close(dW, theirs[1] / m)
    close(db, theirs[2] / m)


@each_activation
def test_m_examples_are_the_mean_of_single_examples(name):
    g, _, _ = ACTIVATIONS[name]
    m = 6
    A_prev, W, b, dA = normal(3, m), normal(2, 3), normal(2, 1), normal(2, m)
    A, cache = eq.layer_forward_vectorized(A_prev, W, b, g)
    dA_prev, dW, db = eq.layer_backward_vectorized(dA, cache)

    columns = []
    for i in range(m):
        a, cache = eq.layer_forward(A_prev[:, i : i + 1], W, b, g)
        columns.append((a, *eq.layer_backward(dA[:, i : i + 1], cache)))
    a, da_prev, dw, db_one = zip(*columns, strict=True)
    close(A, torch.cat(a, dim=1))
    close(dA_prev, torch.cat(da_prev, dim=1))
    close(dW, torch.stack(dw).mean(0))
    close(db, torch.stack(db_one).mean(0))


@each_activation
def test_one_example_equals_finite_differences(name):
    g, _, _ = ACTIVATIONS[name]
    a_prev, W, b, da = normal(3, 1), normal(4, 3), normal(4, 1), normal(4, 1)
    da_prev, dW, db = eq.layer_backward(da, eq.layer_forward(a_prev, W, b, g)[1])

    def weighted(a_prev, W, b):
        return (da * eq.layer_forward(a_prev, W, b, g)[0]).sum()

    fd = {"rtol": 1e-8, "atol": 1e-9}
    close(da_prev, central_difference(lambda x: weighted(x, W, b), a_prev), **fd)
    close(dW, central_difference(lambda x: weighted(a_prev, x, b), W), **fd)
    close(db, central_difference(lambda x: weighted(a_prev, W, x), b), **fd)


# --- The network and its cost ---------------------------------------------------------------------


def random_parameters(sizes):
    return [eq.Parameters(normal(n, n_prev), normal(n, 1)) for n_prev, n in pairwise(sizes)]


def our_gradients(X, Y, parameters, activations, loss, lambd=0.0):
    A, caches = eq.network_forward(X, parameters, activations)
    dX, gradients = eq.network_backward(eq.cost_derivative(A, Y, loss), caches, lambd)
    return eq.cost(A, Y, loss, parameters, lambd), dX, gradients


@each_loss
@pytest.mark.parametrize("lambd", [0.0, 0.7])
def test_network_equals_autograd(loss_name, lambd):
    loss, output, twin = LOSSES[loss_name]
    m = 8
    X, Y, parameters = normal(5, m), targets(loss_name, 3, m), random_parameters([5, 6, 4, 3])
    J, dX, gradients = our_gradients(X, Y, parameters, [eq.relu, eq.tanh, output], loss, lambd)

    leaves = [t.clone().requires_grad_() for layer in parameters for t in layer]
    X.requires_grad_()
    W1, b1, W2, b2, W3, b3 = leaves
    a = TWIN[output](W3 @ torch.tanh(W2 @ F.relu(W1 @ X + b1) + b2) + b3)
    reference = twin(a.T, Y.T) + lambd / (2 * m) * sum(W.square().sum() for W in (W1, W2, W3))
    theirs = torch.autograd.grad(reference, [X, *leaves])

    close(J, reference.detach())
    close(dX / m, theirs[0])
    for ours, autograd in zip((t for layer in gradients for t in layer), theirs[1:], strict=True):
        close(ours, autograd)


@each_loss
@pytest.mark.parametrize("lambd", [0.0, 0.7])
def test_network_equals_finite_differences_of_its_cost(loss_name, lambd):
    loss, output, _ = LOSSES[loss_name]
    X, Y, parameters = normal(3, 5), targets(loss_name, 2, 5), random_parameters([3, 4, 2])
    activations = [eq.sigmoid, output]
    _, _, gradients = our_gradients(X, Y, parameters, activations, loss, lambd)

    for layer in range(2):
        for i, ours in enumerate(gradients[layer]):

            def J(x, layer=layer, i=i):
                changed = list(parameters)
                changed[layer] = eq.Parameters(
                    *(x if i == k else t for k, t in enumerate(parameters[layer]))
                )
                return our_gradients(X, Y, changed, activations, loss, lambd)[0]

            slope = central_difference(J, parameters[layer][i])
            close(ours, slope, rtol=1e-7, atol=1e-9)


@each_loss
def test_cost_derivative_is_per_example(loss_name):
    loss, output, _ = LOSSES[loss_name]
    A, Y = output.g(normal(3, 6)).requires_grad_(), targets(loss_name, 3, 6)
    summed = loss.L(A, Y).sum()
    close(eq.cost_derivative(A, Y, loss), torch.autograd.grad(summed, A)[0])


def test_softmax_equals_torch_and_survives_large_z():
    z = torch.cat([normal(4, 3), torch.tensor([[1e4], [-1e4], [0.0], [1e4]], dtype=F64)], dim=1)
    close(eq.softmax(z), torch.softmax(z, dim=0))


def test_softmax_cross_entropy_of_large_z():
    Z = torch.tensor([[1e4, 1e4], [-1e4, -1e4]], dtype=F64)
    Y = torch.eye(2, dtype=F64)
    close(eq.cost(Z, Y, eq.softmax_cross_entropy), torch.tensor(1e4, dtype=F64))
    expected = torch.tensor([[0.0, 1.0], [0.0, -1.0]], dtype=F64)
    close(eq.cost_derivative(Z, Y, eq.softmax_cross_entropy), expected)


def test_binary_cross_entropy_of_saturated_outputs_is_that_of_torch():
    A = torch.tensor([[0.0, 0.0, 1.0, 1.0, 0.5]], dtype=F64, requires_grad=True)
    Y = torch.tensor([[0.0, 1.0, 0.0, 1.0, 1.0]], dtype=F64)
    J = F.binary_cross_entropy(A, Y)
    dA = torch.autograd.grad(J, A)[0] * 5
    close(eq.cost(A, Y, eq.binary_cross_entropy), J.detach())
    # PyTorch's bound is 1e-12 as float32 has it: 4e-9 away.
    close(eq.cost_derivative(A, Y, eq.binary_cross_entropy), dA, rtol=1e-8)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_sigmoid_and_binary_cross_entropy_give_a_minus_y_and_never_more(dtype):
    Z = torch.linspace(-200, 200, 4001, dtype=dtype)[None]
    A = eq.sigmoid.g(Z)
    for Y in torch.zeros_like(A), torch.ones_like(A):
        dZ = eq.cost_derivative(A, Y, eq.binary_cross_entropy) * eq.sigmoid.g_prime(Z)
        assert (dZ.abs() <= 1 + 1e-6).all()
        moderate = Z.abs() < 15
        close(dZ[moderate], (A - Y)[moderate], rtol=4 * torch.finfo(dtype).eps, atol=1e-12)


def test_softmax_cross_entropy_takes_rounded_probabilities():
    for dtype in (torch.bfloat16, torch.float16, torch.float32, F64):
        Y = normal(10, 20).softmax(0).to(dtype)
        Z = normal(10, 20).to(dtype)
        J = eq.cost(Z, Y, eq.softmax_cross_entropy)
        close(J.double(), F.cross_entropy(Z.T.double(), Y.T.double()), rtol=0.02)


# --- The bridge between the page's 1/m and PyTorch's mean -----------------------------------------


def bridge():
    """One layer in both conventions: the page's tensors, and torch.nn.Linear with rows."""
    A_prev, Y = normal(5, 9), targets("softmax", 3, 9)
    linear = torch.nn.Linear(5, 3, dtype=F64)
    W, b = linear.weight.detach(), linear.bias.detach()[:, None]
    z = linear(A_prev.T)
    z.retain_grad()
    return A_prev, Y, W, b, linear, z


def test_bridge_from_the_page_to_pytorch():
    A_prev, Y, W, b, linear, z = bridge()
    A, cache = eq.layer_forward_vectorized(A_prev, W, b, eq.identity)
    dA = eq.cost_derivative(A, Y, eq.softmax_cross_entropy)
    _, dW, db = eq.layer_backward_vectorized(dA, cache)

    # dAᵀ/m, sent back through PyTorch's layer (which divides by nothing), gives dW and db.
    z.backward(dA.T / 9)
    close(linear.weight.grad, dW)
    close(linear.bias.grad[:, None], db)


def test_bridge_from_pytorch_to_the_page():
    A_prev, Y, W, b, linear, z = bridge()
    F.cross_entropy(z, Y.T, reduction="mean").backward()

    # m times the gradient that a mean-reduced loss sends back is dAᵀ; the page's 1/m then gives
    # what PyTorch put in .grad.
    _, cache = eq.layer_forward_vectorized(A_prev, W, b, eq.identity)
    _, dW, db = eq.layer_backward_vectorized(9 * z.grad.T, cache)
    close(dW, linear.weight.grad)
    close(db, linear.bias.grad[:, None])


def test_bridge_a_sum_reduced_loss_needs_no_factor_on_dA():
    A_prev, Y, W, b, linear, z = bridge()
    F.cross_entropy(z, Y.T, reduction="sum").backward()
    _, cache = eq.layer_forward_vectorized(A_prev, W, b, eq.identity)
    _, dW, db = eq.layer_backward_vectorized(z.grad.T, cache)
    close(dW, linear.weight.grad / 9)
    close(db, linear.bias.grad[:, None] / 9)


# --- Gradient descent -----------------------------------------------------------------------------


@each_loss
@pytest.mark.parametrize(("momentum", "lambd"), [(0.0, 0.0), (0.9, 0.0), (0.0, 0.5), (0.9, 0.5)])
def test_a_hundred_steps_equal_torch_nn_and_sgd(loss_name, momentum, lambd):
    loss, output, twin = LOSSES[loss_name]
    sizes, m, alpha = [5, 8, 6, 3], 10, 0.1
    X, Y = normal(5, 3 * m), targets(loss_name, 3, 3 * m)
    parameters, velocity = eq.initialize(sizes, dtype=F64), None
    start = [t.clone() for layer in parameters for t in layer]

    last = {"quadratic": [torch.nn.Tanh()], "binary": [torch.nn.Sigmoid()], "softmax": []}
    linears = [torch.nn.Linear(i, o, dtype=F64) for i, o in pairwise(sizes)]
    with torch.no_grad():
        for linear, (W, b) in zip(linears, parameters, strict=True):
            linear.weight.copy_(W)
            linear.bias.copy_(b[:, 0])
    model = torch.nn.Sequential(
        linears[0], torch.nn.ReLU(), linears[1], torch.nn.Tanh(), linears[2], *last[loss_name]
    )
    # λ/m W is weight decay of W by λ/m; b has none.
    decayed = {"params": [li.weight for li in linears], "weight_decay": lambd / m}
    sgd = torch.optim.SGD(
        [decayed, {"params": [li.bias for li in linears]}], lr=alpha, momentum=momentum
    )

    for step in range(100):
        batch = slice(step % 3 * m, (step % 3 + 1) * m)
        _, _, gradients = our_gradients(
            X[:, batch], Y[:, batch], parameters, [eq.relu, eq.tanh, output], loss, lambd
        )
        parameters, velocity = eq.gradient_descent(parameters, gradients, alpha, momentum, velocity)
        sgd.zero_grad()
        twin(model(X[:, batch].T), Y[:, batch].T).backward()
        sgd.step()

    for linear, (W, b) in zip(linears, parameters, strict=True):
        close(W, linear.weight.detach(), rtol=0, atol=1e-10)
        close(b[:, 0], linear.bias.detach(), rtol=0, atol=1e-10)
    now = [t for layer in parameters for t in layer]
    assert all((t - s).abs().max() > 1e-3 for t, s in zip(now, start, strict=True))


# --- Initial parameters ---------------------------------------------------------------------------


def test_initialize_shapes_and_scale():
    parameters = eq.initialize([400, 300, 200], gain=3.0, dtype=F64)
    assert [tuple(W.shape) for W, _ in parameters] == [(300, 400), (200, 300)]
    assert [tuple(b.shape) for _, b in parameters] == [(300, 1), (200, 1)]
    for (W, b), n_prev in zip(parameters, (400, 300), strict=True):
        assert W.std().item() == pytest.approx(3 / n_prev**0.5, rel=0.02)
        assert abs(W.mean().item()) < 4 * W.std().item() / W.numel() ** 0.5
        assert not b.any()
        assert W.dtype == b.dtype == F64


def test_initialize_default_gain_keeps_the_scale_through_relu():
    X = normal(500, 400)
    A, _ = eq.network_forward(X, eq.initialize([500] * 6, dtype=F64), [eq.relu] * 5)
    assert A.square().mean().item() == pytest.approx(1.0, rel=0.35)


def test_initialize_repeats_with_its_generator():
    first, again, other = (
        eq.initialize([3, 2], generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(first[0].W, again[0].W)
    assert not torch.equal(first[0].W, other[0].W)


# --- Pure, and without autograd -------------------------------------------------------------------


def test_nothing_is_changed_and_no_graph_is_built():
    X, Y = normal(3, 4, requires_grad=True), targets("softmax", 2, 4).requires_grad_()
    parameters = [
        eq.Parameters(W.requires_grad_(), b.requires_grad_())
        for W, b in random_parameters([3, 5, 2])
    ]
    arguments = [X, Y, *(t for layer in parameters for t in layer)]
    before = [t.detach().clone() for t in arguments]
    versions = [t._version for t in arguments]

    activations = [eq.identity, eq.identity]
    A, caches = eq.network_forward(X, parameters, activations)
    J = eq.cost(A, Y, eq.softmax_cross_entropy, parameters, 0.1)
    dA = eq.cost_derivative(A, Y, eq.softmax_cross_entropy)
    dX, gradients = eq.network_backward(dA, caches, 0.1)
    results = [A, J, dA, dX, *(c.z for c in caches), *(t for layer in gradients for t in layer)]
    a, cache = eq.layer_forward(X[:, :1], *parameters[0], eq.tanh)
    results += [a, cache.z, *eq.layer_backward(normal(5, 1, requires_grad=True), cache)]
    A, cache = eq.layer_forward_vectorized(X, *parameters[0], eq.tanh)
    dA = normal(5, 4, requires_grad=True)
    results += [A, cache.z, *eq.layer_backward_vectorized(dA, cache)]
    _, velocity = eq.gradient_descent(parameters, gradients, 0.1, 0.9)
    kept = [t.clone() for layer in velocity for t in layer]
    for layers in eq.gradient_descent(parameters, gradients, 0.1, 0.9, velocity):
        results += [t for layer in layers for t in layer]

    assert not any(t.requires_grad for t in results)
    assert all(torch.equal(t, s) for t, s in zip(arguments, before, strict=True))
    assert [t._version for t in arguments] == versions
    assert all(
        torch.equal(t, s) for t, s in zip((t for v in velocity for t in v), kept, strict=True)
    )
    assert torch.is_grad_enabled()


def test_float32_stays_float32():
    parameters = eq.initialize([3, 4, 2], dtype=torch.float32)
    X, Y = torch.randn(3, 5), torch.randn(2, 5).softmax(0)
    for hidden in (eq.identity, eq.sigmoid, eq.tanh, eq.relu, eq.leaky_relu()):
        J, dX, gradients = our_gradients(
            X, Y, parameters, [hidden, eq.identity], eq.softmax_cross_entropy, 0.1
        )
        moved, velocity = eq.gradient_descent(parameters, gradients, 0.1, 0.9)
        layers = [t for some in (gradients, moved, velocity) for layer in some for t in layer]
        assert {t.dtype for t in [J, dX, *layers]} == {torch.float32}


def test_the_example_in_the_docstring_runs():
    results = doctest.testmod(eq)
    assert results.attempted >= 5
    assert results.failed == 0
