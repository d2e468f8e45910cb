"""What does not fit the page's equations is refused, and the message names it."""

import re

import pytest
import torch

from manualnn import equations as eq

F64 = torch.float64


def normal(*shape):
    return torch.randn(shape, dtype=F64)


COLUMNS = "the columns of W{} are the neurons of the previous layer, and "


def forward_of(*shapes, vectorized=False):
    forward = eq.layer_forward_vectorized if vectorized else eq.layer_forward
    return lambda: forward(*(normal(*shape) for shape in shapes), eq.relu)


def network_of(X, *shapes, activations=2):
    parameters = [(normal(*W), normal(*b)) for W, b in shapes]
    return lambda: eq.network_forward(normal(*X), parameters, [eq.relu] * activations)


def backward_of(dA, a_prev, vectorized, g=eq.relu):
    def call():
        cache = eq.Cache(normal(*a_prev), normal(4, 5), normal(4, a_prev[1]), g)
        backward = eq.layer_backward_vectorized if vectorized else eq.layer_backward
        return backward(normal(*dA), cache)

    return call


def step_of(dW=(4, 5), db=(4, 1), velocity=None, layers=1, **options):
    def call():
        parameters = [eq.Parameters(normal(4, 5), normal(4, 1))]
        gradients = [eq.Gradients(normal(*dW), normal(*db))] * layers
        return eq.gradient_descent(
            parameters, gradients, **{"alpha": 0.1, "velocity": velocity, **options}
        )

    return call


def loss_of(loss, A, Y, f=eq.cost, **options):
    return lambda: f(torch.as_tensor(A, dtype=F64), torch.as_tensor(Y, dtype=F64), loss, **options)


column_sum = eq.Activation(g=lambda z: z.sum(0, keepdim=True), g_prime=lambda z: z[:1])
flat_loss = eq.Loss(L=lambda A, Y: (A - Y).sum(), L_prime=lambda A, Y: (A - Y)[:1])
ONE, TWO = [[0.5, 0.5]], [[0.5], [0.5]]
NAN = float("nan")

VALUE_ERRORS = {
    "W's columns, one example": (
        forward_of((5, 1), (4, 3), (4, 1)),
        "W has shape (4, 3), should have (4, 5): " + COLUMNS.format("") + "a_prev has shape (5, 1)",
    ),
    "W's columns, m examples": (
        forward_of((5, 7), (4, 3), (4, 1), vectorized=True),
        "W has shape (4, 3), should have (4, 5): " + COLUMNS.format("") + "A_prev has shape (5, 7)",
    ),
    "W without columns": (
        forward_of((5, 1), (4,), (4, 1)),
        "W has shape (4,), should have (4, 5): ",
    ),
    "W without dimensions": (
        forward_of((5, 1), (), (4, 1)),
        "W has shape (), should have (1, 5): ",
    ),
    "b of other height": (
        forward_of((5, 1), (4, 5), (3, 1)),
        "b has shape (3, 1), should have (4, 1): a row for each row of W, which has shape (4, 5)",
    ),
    "b as PyTorch keeps it": (
        forward_of((5, 4), (4, 5), (4,), vectorized=True),
        "b has shape (4,), should have (4, 1): ",
    ),
    "b as a row, which would broadcast": (
        forward_of((5, 4), (4, 5), (1, 4), vectorized=True),
        "b has shape (1, 4), should have (4, 1): ",
    ),
    "b with a column an example": (
        forward_of((5, 7), (4, 5), (4, 7), vectorized=True),
        "b has shape (4, 7), should have (4, 1): ",
    ),
    "a_prev without columns": (
        forward_of((5,), (4, 5), (4, 1)),
        "a_prev has shape (5,), should have (5, 1): one example is one column",
    ),
    "a_prev of many examples": (
        forward_of((5, 7), (4, 5), (4, 1)),
        "a_prev has shape (5, 7), should have (5, 1): one example is one column",
    ),
    "A_prev of three dimensions": (
        forward_of((2, 5, 7), (4, 5), (4, 1), vectorized=True),
        "A_prev has shape (2, 5, 7), should have (n, m): a row for each neuron, a column for each",
    ),
    "no example": (
        forward_of((5, 0), (4, 5), (4, 1), vectorized=True),
        "A_prev has shape (5, 0), should have (n, m): ",
    ),
    "da of other height": (
        backward_of((3, 1), (5, 1), vectorized=False),
        "da has shape (3, 1), should have (4, 1): the shape of z",
    ),
    "dA of other m": (
        backward_of((4, 1), (5, 7), vectorized=True),
        "dA has shape (4, 1), should have (4, 7): the shape of Z",
    ),
    "many examples in the backward of one": (
        backward_of((4, 7), (5, 7), vectorized=False),
        "a_prev has shape (5, 7), should have (5, 1): one example is one column",
    ),
    "g of other shape, one example": (
        lambda: eq.layer_forward(normal(5, 1), normal(4, 5), normal(4, 1), column_sum),
        "g(z) has shape (1, 1), should have (4, 1): the shape of z",
    ),
    "g of other shape, m examples": (
        lambda: eq.layer_forward_vectorized(normal(5, 7), normal(4, 5), normal(4, 1), column_sum),
        "g(Z) has shape (1, 7), should have (4, 7): the shape of Z",
    ),
    "g′ of other shape, one example": (
        backward_of((4, 1), (5, 1), vectorized=False, g=column_sum),
        "g′(z) has shape (1, 1), should have (4, 1): the shape of z",
    ),
    "g′ of other shape, m examples": (
        backward_of((4, 7), (5, 7), vectorized=True, g=column_sum),
        "g′(Z) has shape (1, 7), should have (4, 7): the shape of Z",
    ),
    "X and W[1]": (
        network_of((5, 7), ((4, 3), (4, 1)), ((2, 4), (2, 1))),
        "W[1] has shape (4, 3), should have (4, 5): "
        + COLUMNS.format("[1]")
        + "X has shape (5, 7)",
    ),
    "W[1] and W[2]": (
        network_of((5, 7), ((4, 5), (4, 1)), ((2, 3), (2, 1))),
        "W[2] has shape (2, 3), should have (2, 4): "
        + COLUMNS.format("[2]")
        + "W[1] has shape (4, 5)",
    ),
    "b[2]": (
        network_of((5, 7), ((4, 5), (4, 1)), ((2, 4), (4, 1))),
        "b[2] has shape (4, 1), should have (2, 1): a row for each row of W[2], which has shape (2",
    ),
    "X without columns": (
        network_of((5,), ((4, 5), (4, 1)), activations=1),
        "X has shape (5,), should have (n, m): ",
    ),
    "too few activations": (
        network_of((5, 7), ((4, 5), (4, 1)), ((2, 4), (2, 1)), activations=1),
        "activations should hold 2, one for each layer, not 1",
    ),
    "no layers": (network_of((5, 7), activations=0), "parameters should hold W and b of at least"),
    "no caches": (
        lambda: eq.network_backward(normal(2, 7), []),
        "caches should hold one cache for each layer, not none",
    ),
    "lambd below 0, backward": (
        lambda: eq.network_backward(
            normal(4, 7),
            [eq.Cache(normal(5, 7), normal(4, 5), normal(4, 7), eq.relu)],
            lambd=-1.0,
        ),
        "lambd should be 0 or more, not -1.0",
    ),
    "lambd below 0, cost": (
        loss_of(eq.quadratic, ONE, ONE, lambd=-1.0),
        "lambd should be 0 or more, not -1.0",
    ),
    "lambd without parameters": (
        loss_of(eq.quadratic, ONE, ONE, lambd=0.1),
        "lambd is 0.1, but there are no parameters to regularise",
    ),
    "Y that would broadcast, cost": (
        loss_of(eq.quadratic, ONE, [[0.5]]),
        "Y has shape (1, 1), should have (1, 2): the shape of A",
    ),
    "Y that would broadcast, derivative": (
        loss_of(eq.quadratic, ONE, TWO, f=eq.cost_derivative),
        "Y has shape (2, 1), should have (1, 2): the shape of A",
    ),
    "A without columns, cost": (
        loss_of(eq.quadratic, [0.5], [0.5]),
        "A has shape (1,), should have (n, m): ",
    ),
    "A without columns, derivative": (
        loss_of(eq.quadratic, [0.5], [0.5], f=eq.cost_derivative),
        "A has shape (1,), should have (n, m): ",
    ),
    "loss of other shape": (
        loss_of(flat_loss, ONE, ONE),
        "L(A, Y) has shape (), should have (1, 2): one loss for each example",
    ),
    "loss derivative of other shape": (
        loss_of(flat_loss, TWO, TWO, f=eq.cost_derivative),
        "L′(A, Y) has shape (1, 1), should have (2, 1): the shape of A",
    ),
    "z where the binary cross-entropy takes a": (
        loss_of(eq.binary_cross_entropy, [[1.5]], [[1.0]]),
        "A should lie between 0 and 1 for the binary cross-entropy",
    ),
    "NaN where the binary cross-entropy takes a": (
        loss_of(eq.binary_cross_entropy, [[NAN]], [[1.0]], f=eq.cost_derivative),
        "A should lie between 0 and 1 for the binary cross-entropy",
    ),
    "labels -1 and 1": (
        loss_of(eq.binary_cross_entropy, ONE, [[-1.0, 1.0]], f=eq.cost_derivative),
        "Y should lie between 0 and 1 for the binary cross-entropy",
    ),
    "Y two-hot": (
        loss_of(eq.softmax_cross_entropy, TWO, [[1.0], [1.0]]),
        "every column of Y should be one-hot or probabilities that sum to 1",
    ),
    "Y negative": (
        loss_of(eq.softmax_cross_entropy, TWO, [[2.0], [-1.0]], f=eq.cost_derivative),
        "every column of Y should be one-hot or probabilities that sum to 1",
    ),
    "dW transposed": (
        step_of(dW=(5, 4)),
        "dW[1] has shape (5, 4), should have (4, 5): the shape of W[1]",
    ),
    "db as PyTorch has it": (
        step_of(db=(4,)),
        "db[1] has shape (4,), should have (4, 1): the shape of b[1]",
    ),
    "vW": (
        step_of(velocity=[(torch.zeros(1, 5, dtype=F64), torch.zeros(4, 1, dtype=F64))]),
        "vW[1] has shape (1, 5), should have (4, 5): the shape of W[1]",
    ),
    "vb": (
        step_of(velocity=[(torch.zeros(4, 5, dtype=F64), torch.zeros(1, 1, dtype=F64))]),
        "vb[1] has shape (1, 1), should have (4, 1): the shape of b[1]",
    ),
    "gradients of more layers": (
        step_of(layers=2),
        "gradients should hold 1 layers, as parameters does, not 2",
    ),
    "velocity of fewer layers": (
        step_of(velocity=[]),
        "velocity should hold 1 layers, as parameters does, not 0",
    ),
    "alpha below 0": (step_of(alpha=-0.1), "alpha should be 0 or more, not -0.1"),
    "alpha NaN": (step_of(alpha=NAN), "alpha should be 0 or more, not nan"),
    "momentum below 0": (step_of(momentum=-0.9), "momentum should be 0 or more, not -0.9"),
    "one size": (
        lambda: eq.initialize([3]),
        "sizes should be [n[0], ..., n[L]] with L of at least 1, not [3]",
    ),
    "size 0": (
        lambda: eq.initialize([3, 0, 2]),
        "n[1] should be a positive whole number, not 0",
    ),
    "size 2.5": (
        lambda: eq.initialize([3, 2.5]),
        "n[1] should be a positive whole number, not 2.5",
    ),
}


@pytest.mark.parametrize("case", VALUE_ERRORS)
def test_what_does_not_fit_is_named(case):
    call, message = VALUE_ERRORS[case]
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        call()


f32, f64, i64 = torch.ones(4, 4), torch.ones(4, 4, dtype=F64), torch.ones(4, 4, dtype=torch.int64)
b32, b64 = f32[:, :1], f64[:, :1]

TYPE_ERRORS = {
    "W": (
        lambda: eq.layer_forward_vectorized(f32, f64, b64, eq.relu),
        "W is torch.float64, A_prev is torch.float32: they should agree",
    ),
    "b, which would promote": (
        lambda: eq.layer_forward_vectorized(f32, f32, b64, eq.relu),
        "b is torch.float64, W is torch.float32: they should agree",
    ),
    "W[2]": (
        lambda: eq.network_forward(f32, [(f32, b32), (f64, b64)], [eq.relu, eq.relu]),
        "W[2] is torch.float64, W[1] is torch.float32: they should agree",
    ),
    "pictures as integers": (
        lambda: eq.network_forward(i64, [(f32, b32)], [eq.relu]),
        "X is torch.int64, should be a floating-point tensor",
    ),
    "one example of integers": (
        lambda: eq.layer_forward(i64[:, :1], f32, b32, eq.relu),
        "a_prev is torch.int64, should be a floating-point tensor",
    ),
    "labels as integers": (
        lambda: eq.cost(f32, i64, eq.quadratic),
        "Y is torch.int64, A is torch.float32: they should agree",
    ),
    "regularised W": (
        lambda: eq.cost(f32, f32, eq.quadratic, [(f64, b64)], 0.1),
        "W[1] is torch.float64, A is torch.float32: they should agree",
    ),
    "dW": (
        lambda: eq.gradient_descent([(f32, b32)], [(f64, b32)], 0.1),
        "dW[1] is torch.float64, W[1] is torch.float32: they should agree",
    ),
}


@pytest.mark.parametrize("case", TYPE_ERRORS)
def test_what_would_be_cast_is_named(case):
    call, message = TYPE_ERRORS[case]
    with pytest.raises(TypeError, match="^" + re.escape(message)):
        call()
