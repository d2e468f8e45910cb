"""Forward and backward propagation, one equation a line.

A network of L layers has sizes n[0], n[1], ..., n[L]: n[0] inputs and n[l] neurons in layer l.
Examples are columns, and m is how many there are.

    W[l]        (n[l], n[l-1])    a row for each neuron, a column for each neuron before it
    b[l]        (n[l], 1)
    a[l], z[l]  (n[l], 1)         one example
    A[l], Z[l]  (n[l], m)         m examples side by side; A[0] = X

A prefix d is a derivative by that thing. In dA and dZ, column i is the derivative of example i's
own loss L; dW and db are derivatives of the cost J, and hold its average over the examples, 1/m:

    J = 1/m Σᵢ L(a⁽ⁱ⁾, y⁽ⁱ⁾) + λ/2m Σₗ ‖W[l]‖²

A mean-reduced loss of PyTorch's has put the 1/m into the gradient that it sends back already:
that gradient, which has examples as rows, is dAᵀ/m.

A few steps of learning, with nothing but the functions below:

>>> X = torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.0, 1.0, 0.0, 1.0]])
>>> Y = torch.tensor([[0.0, 1.0, 1.0, 0.0]])
>>> activations, velocity = [tanh, sigmoid], None
>>> parameters = initialize([2, 8, 1], gain=1.0, generator=torch.Generator().manual_seed(0))
>>> for iteration in range(500):
...     A, caches = network_forward(X, parameters, activations)
...     dA = cost_derivative(A, Y, binary_cross_entropy)
...     _, gradients = network_backward(dA, caches)
...     parameters, velocity = gradient_descent(parameters, gradients, 0.5, 0.9, velocity)
>>> network_forward(X, parameters, activations)[0].round()
tensor([[0., 1., 1., 0.]])

Every function is pure: it changes none of its arguments. The functions of layers, network, cost and
descent run with autograd off: no result of theirs carries a graph, whatever the arguments carry.
Shapes that do not fit raise ValueError, dtypes that do not fit raise TypeError.

Source: A. Ng, Deep Learning Specialization, course 1 (propagation), course 2 (L2, momentum).
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from manualnn.equations.checks import (
    check_distributions,
    check_dtype,
    check_examples,
    check_layer,
    check_like,
    check_network,
    check_not_negative,
    check_one_example,
    check_probabilities,
    check_shape,
    check_step,
)

# --- g and g′ -------------------------------------------------------------------------------------


class Activation(NamedTuple):
    """An elementwise activation g and its derivative g′, both functions of z.

    Another one is written the same way: ``Activation(g=torch.sin, g_prime=torch.cos)``.
    """

    g: Callable[[Tensor], Tensor]
    g_prime: Callable[[Tensor], Tensor]


def _sigma(z: Tensor) -> Tensor:
    return 1 / (1 + torch.exp(-z))


identity = Activation(
    g=lambda z: z,
    g_prime=lambda z: torch.ones_like(z),
)

sigmoid = Activation(
    g=lambda z: _sigma(z),
    g_prime=lambda z: _sigma(z) * (1 - _sigma(z)),
)

tanh = Activation(
    g=lambda z: torch.tanh(z),
    g_prime=lambda z: 1 - torch.tanh(z) ** 2,
)

# At the kink z = 0, here and in leaky_relu, g′ is the slope on the left, as in PyTorch.
relu = Activation(
    g=lambda z: torch.clamp(z, min=0),
    g_prime=lambda z: (z > 0).to(z.dtype),
)


def leaky_relu(slope: float = 0.01) -> Activation:
    """g(z) = z where z > 0, slope · z elsewhere."""
    return Activation(
        g=lambda z: torch.where(z > 0, z, slope * z),
        g_prime=lambda z: torch.where(z > 0, torch.ones_like(z), torch.full_like(z, slope)),
    )


# --- Layer l, one example -------------------------------------------------------------------------


class Cache(NamedTuple):
    """What the forward of a layer leaves for its backward: its input, its weight, z and g."""

    a_prev: Tensor
    W: Tensor
    z: Tensor
    g: Activation


@torch.no_grad()
def layer_forward(a_prev: Tensor, W: Tensor, b: Tensor, g: Activation) -> tuple[Tensor, Cache]:
    """z[l] = W[l] a[l-1] + b[l]
    a[l] = g[l](z[l])

    a_prev (n[l-1], 1), W (n[l], n[l-1]), b (n[l], 1) -> a (n[l], 1), cache.
    """
    check_one_example("a_prev", a_prev)
    check_layer(W, b, "a_prev", a_prev)

    z = W @ a_prev + b
    a = g.g(z)

    check_like("g(z)", a, "z", z)
    return a, Cache(a_prev, W, z, g)


@torch.no_grad()
def layer_backward(da: Tensor, cache: Cache) -> tuple[Tensor, Tensor, Tensor]:
    """dz[l] = da[l] * g[l]′(z[l])
    dW[l] = dz[l] a[l-1]ᵀ
    db[l] = dz[l]
    da[l-1] = W[l]ᵀ dz[l]

    da (n[l], 1) -> da_prev (n[l-1], 1), dW (n[l], n[l-1]), db (n[l], 1).
    """
    a_prev, W, z, g = cache
    check_one_example("a_prev", a_prev)
    check_like("da", da, "z", z)
    g_prime = g.g_prime(z)
    check_like("g′(z)", g_prime, "z", z)

    dz = da * g_prime
    dW = dz @ a_prev.T
    db = dz
    da_prev = W.T @ dz

    return da_prev, dW, db


# --- Layer l, m examples --------------------------------------------------------------------------


@torch.no_grad()
def layer_forward_vectorized(
    A_prev: Tensor, W: Tensor, b: Tensor, g: Activation
) -> tuple[Tensor, Cache]:
    """Z[l] = W[l] A[l-1] + b[l]
    A[l] = g[l](Z[l])

    A_prev (n[l-1], m), W (n[l], n[l-1]), b (n[l], 1) -> A (n[l], m), cache.
    """
    check_examples("A_prev", A_prev)
    check_layer(W, b, "A_prev", A_prev)

    Z = W @ A_prev + b
    A = g.g(Z)

    check_like("g(Z)", A, "Z", Z)
    return A, Cache(A_prev, W, Z, g)


@torch.no_grad()
def layer_backward_vectorized(dA: Tensor, cache: Cache) -> tuple[Tensor, Tensor, Tensor]:
    """dZ[l] = dA[l] * g[l]′(Z[l])
    dW[l] = 1/m dZ[l] A[l-1]ᵀ
    db[l] = 1/m Σ dZ[l] over the columns
    dA[l-1] = W[l]ᵀ dZ[l]

    dA (n[l], m) -> dA_prev (n[l-1], m), dW (n[l], n[l-1]), db (n[l], 1).
    """
    A_prev, W, Z, g = cache
    check_like("dA", dA, "Z", Z)
    g_prime = g.g_prime(Z)
    check_like("g′(Z)", g_prime, "Z", Z)
    m = A_prev.shape[1]

    dZ = dA * g_prime
    dW = 1 / m * (dZ @ A_prev.T)
    db = 1 / m * torch.sum(dZ, dim=1, keepdim=True)
    dA_prev = W.T @ dZ

    return dA_prev, dW, db


# --- The network, layers 1 to L -------------------------------------------------------------------


class Parameters(NamedTuple):
    """W (n[l], n[l-1]) and b (n[l], 1) of one layer."""

    W: Tensor
    b: Tensor


class Gradients(NamedTuple):
    """dW (n[l], n[l-1]) and db (n[l], 1) of one layer, or their running sums, the velocity."""

    dW: Tensor
    db: Tensor


def initialize(
    sizes: Sequence[int],
    gain: float = 2**0.5,
    generator: torch.Generator | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> list[Parameters]:
    """W[l] ~ N(0, gain² / n[l-1]), b[l] = 0, for sizes = [n[0], n[1], ..., n[L]].

    The gain √2 keeps the scale of a through layers of relu (He et al. 2015, eq. 10); 1 suits tanh.
    dtype and device are torch's defaults unless given; the generator must be on that device.
    """
    if len(sizes) < 2:
        raise ValueError(f"sizes should be [n[0], ..., n[L]] with L of at least 1, not {sizes}")
    for layer, n in enumerate(sizes):
        if not isinstance(n, int) or n < 1:
            raise ValueError(f"n[{layer}] should be a positive whole number, not {n!r}")

    parameters = []
    for n_prev, n in pairwise(sizes):
        noise = torch.randn(n, n_prev, generator=generator, dtype=dtype, device=device)
        W = gain / n_prev**0.5 * noise
        b = torch.zeros(n, 1, dtype=dtype, device=device)
        parameters.append(Parameters(W, b))
    return parameters


def network_forward(
    X: Tensor, parameters: Sequence[Parameters], activations: Sequence[Activation]
) -> tuple[Tensor, list[Cache]]:
    """A[0] = X; A[l] = g[l](W[l] A[l-1] + b[l]) for l = 1, ..., L.

    X (n[0], m) -> A[L] (n[L], m) and the caches of layers 1 to L.
    """
    check_examples("X", X)
    check_network(X, parameters, activations)

    A, caches = X, []
    for (W, b), g in zip(parameters, activations, strict=True):
        A, cache = layer_forward_vectorized(A, W, b, g)
        caches.append(cache)
    return A, caches


@torch.no_grad()
def network_backward(
    dA: Tensor, caches: Sequence[Cache], lambd: float = 0.0
) -> tuple[Tensor, list[Gradients]]:
    """From dA[L], for l = L, ..., 1: dA[l-1], dW[l], db[l]; with L2, dW[l] + λ/m W[l].

    dA (n[L], m) -> dA[0] (n[0], m) and the gradients of layers 1 to L. b is not regularised.
    """
    if not caches:
        raise ValueError("caches should hold one cache for each layer, not none")
    check_not_negative("lambd", lambd)

    gradients = []
    for cache in reversed(caches):
        dA, dW, db = layer_backward_vectorized(dA, cache)
        if lambd:
            m = cache.a_prev.shape[1]
            dW = dW + lambd / m * cache.W
        gradients.append(Gradients(dW, db))
    return dA, gradients[::-1]


# --- The cost -------------------------------------------------------------------------------------


class Loss(NamedTuple):
    """The loss L(a, y) of each example and its derivative by a.

    Both take A (n[L], m) and Y (n[L], m); L gives (1, m), L_prime gives dA[L] (n[L], m).
    """

    L: Callable[[Tensor, Tensor], Tensor]
    L_prime: Callable[[Tensor, Tensor], Tensor]


# ½ Σₖ (aₖ − yₖ)²
quadratic = Loss(
    L=lambda A, Y: 1 / 2 * torch.sum((A - Y) ** 2, dim=0, keepdim=True),
    L_prime=lambda A, Y: A - Y,
)


def _binary_cross_entropy(A: Tensor, Y: Tensor) -> Tensor:
    check_probabilities(A, Y)
    # torch.nn.BCELoss's bound: one saturated neuron must not make the whole cost infinite.
    log_A, log_not_A = torch.log(A).clamp(min=-100), torch.log(1 - A).clamp(min=-100)
    return -torch.sum(Y * log_A + (1 - Y) * log_not_A, dim=0, keepdim=True)


def _binary_cross_entropy_prime(A: Tensor, Y: Tensor) -> Tensor:
    check_probabilities(A, Y)
    # −y/a + (1−y)/(1−a) on one denominator: times σ′ = a (1−a) it gives dz = a − y. The bound is
    # torch.nn.BCELoss's; where a (1−a) is below it the neuron is saturated, and dz fades.
    return (A - Y) / (A * (1 - A)).clamp(min=1e-12)


# −Σₖ (yₖ log aₖ + (1−yₖ) log(1−aₖ)), of a = σ(z); for a sigmoid output layer
binary_cross_entropy = Loss(
    L=_binary_cross_entropy,
    L_prime=_binary_cross_entropy_prime,
)


def softmax(z: Tensor) -> Tensor:
    """exp(zₖ) / Σⱼ exp(zⱼ) in every column: z (n[L], m) -> (n[L], m)."""
    return torch.exp(z - torch.logsumexp(z, dim=0, keepdim=True))


def _softmax_cross_entropy(Z: Tensor, Y: Tensor) -> Tensor:
    check_distributions(Y)
    log_softmax = Z - torch.logsumexp(Z, dim=0, keepdim=True)
    return -torch.sum(Y * log_softmax, dim=0, keepdim=True)


def _softmax_cross_entropy_prime(Z: Tensor, Y: Tensor) -> Tensor:
    check_distributions(Y)
    return softmax(Z) - Y


# −Σₖ yₖ log softmax(z)ₖ. Each output of softmax depends on every z, so it has no elementwise g′;
# together with its loss the derivative is the short a − y. The output layer is the identity.
softmax_cross_entropy = Loss(
    L=_softmax_cross_entropy,
    L_prime=_softmax_cross_entropy_prime,
)


@torch.no_grad()
def cost(
    A: Tensor,
    Y: Tensor,
    loss: Loss,
    parameters: Sequence[Parameters] = (),
    lambd: float = 0.0,
) -> Tensor:
    """J = 1/m Σᵢ L(a⁽ⁱ⁾, y⁽ⁱ⁾) + λ/2m Σₗ ‖W[l]‖²

    A = A[L] (n[L], m), Y (n[L], m) -> a number, as a tensor without dimensions.
    """
    check_examples("A", A)
    check_like("Y", Y, "A", A)
    check_not_negative("lambd", lambd)
    if lambd and not parameters:
        raise ValueError(f"lambd is {lambd}, but there are no parameters to regularise")
    for layer, (W, _) in enumerate(parameters, start=1):
        check_dtype(f"W[{layer}]", W, "A", A)
    m = A.shape[1]
    losses = loss.L(A, Y)
    check_shape("L(A, Y)", losses, (1, m), "one loss for each example")

    J = 1 / m * torch.sum(losses)
    if lambd:
        J = J + lambd / (2 * m) * sum(torch.sum(W**2) for W, _ in parameters)
    return J


@torch.no_grad()
def cost_derivative(A: Tensor, Y: Tensor, loss: Loss) -> Tensor:
    """dA[L]: column i is the derivative of L(a⁽ⁱ⁾, y⁽ⁱ⁾) by a⁽ⁱ⁾, not divided by m.

    A = A[L] (n[L], m), Y (n[L], m) -> dA[L] (n[L], m).
    """
    check_examples("A", A)
    check_like("Y", Y, "A", A)
    dA = loss.L_prime(A, Y)
    check_like("L′(A, Y)", dA, "A", A)
    return dA


# --- Gradient descent -----------------------------------------------------------------------------


@torch.no_grad()
def gradient_descent(
    parameters: Sequence[Parameters],
    gradients: Sequence[Gradients],
    alpha: float,
    momentum: float = 0.0,
    velocity: Sequence[Gradients] | None = None,
) -> tuple[list[Parameters], list[Gradients]]:
    """v ← momentum · v + dW;  W ← W − α v;  and the same for b.

    alpha is the learning rate. velocity is what the previous step returned: v = 0 at the first.
    The course weighs dW by 1 − momentum too: its learning rate is then α / (1 − momentum).
    """
    check_not_negative("alpha", alpha)
    check_not_negative("momentum", momentum)
    if velocity is None:
        velocity = [Gradients(torch.zeros_like(W), torch.zeros_like(b)) for W, b in parameters]
    check_step(parameters, gradients, velocity)

    new_parameters, new_velocity = [], []
    for (W, b), (dW, db), (vW, vb) in zip(parameters, gradients, velocity, strict=True):
        vW = momentum * vW + dW
        vb = momentum * vb + db
        W = W - alpha * vW
        b = b - alpha * vb
        new_parameters.append(Parameters(W, b))
        new_velocity.append(Gradients(vW, vb))
    return new_parameters, new_velocity
