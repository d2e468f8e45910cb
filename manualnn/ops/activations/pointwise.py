"""Activations of one number: a = g(z), dz = da ∗ g′(z).

Each class states g and g′ as formulas (see ``manualnn.Activation``). ``kernel`` names
PyTorch's one-pass operation for the same formula, where there is one; a test holds the two together.
Every g′ is given the value that torch.nn gives it at the kinks.

What is cached is what torch.nn caches: z where it caches z, even where a would do, so that a may be
written over by whatever comes next. In place it is a, or a copy of z, again as in torch.nn.
"""

import math
from struct import pack, unpack
from typing import ClassVar

import torch

from manualnn._torch import F, hardtanh, hardtanh_
from manualnn.autograd.activation import Activation
from manualnn.autograd.blockwise import evaluate, pays
from manualnn.autograd.examples import Example, Twin, inputs, normal, tried

__all__ = [
    "CELU",
    "ELU",
    "GELU",
    "GELUTanh",
    "Hardshrink",
    "Hardsigmoid",
    "Hardswish",
    "Hardtanh",
    "LeakyReLU",
    "LogSigmoid",
    "Mish",
    "ReLU",
    "ReLU6",
    "SELU",
    "Sigmoid",
    "SiLU",
    "Softplus",
    "Softshrink",
    "Softsign",
    "Tanh",
    "Tanhshrink",
    "Threshold",
]

aten = torch.ops.aten
threshold_backward = aten.threshold_backward.default
threshold_backward_into = aten.threshold_backward.grad_input
sigmoid, tanh, exp, where = torch.sigmoid, torch.tanh, torch.exp, torch.where


def _backward(operation, over, da, *rest, **named):
    """ATen's backward operation, its result written over da if ``over`` is given: that is da then."""
    if over is None:
        return operation.default(da, *rest, **named)
    return operation.grad_input(da, *rest, **named, grad_input=over)


def fixed_shape(z):
    """False inside a compiler, and of symbolic sizes."""
    return not torch.compiler.is_compiling() and all(type(n) is int for n in z.shape)


class ReLU(Activation):
    """a = max(0, z)
    g′ = 1 if z > 0 else 0; 0 at the kink
    Caches a: a > 0 exactly where z > 0.
    Source: Nair & Hinton 2010; torch.nn.functional.relu
    """

    twin = Twin("relu", "ReLU")
    examples = (tried(0.0),)

    @staticmethod
    def g(z):
        return where(z <= 0, 0, z)

    @staticmethod
    def g_prime_a(a):
        return ~(a <= 0)

    kernel = torch.relu
    kernel_ = torch.relu_

    @staticmethod
    def kernel_prime_a(da, a, over=None):
        if over is not None:
            return threshold_backward_into(da, a, 0, grad_input=over)
        return threshold_backward(da, a, 0)


class Hardtanh(Activation):
    """a = min(max(z, lo), hi)
    g′ = 1 if lo < z < hi else 0; 0 at both kinks
    Caches z; in place a copy of z.
    Source: torch.nn.functional.hardtanh; relu6 is hardtanh between 0 and 6
    """

    twin = Twin("hardtanh", "Hardtanh", ("min_val", "max_val"))
    examples: ClassVar[tuple] = (
        tried(-1.0, 1.0),
        tried(-0.5, 2.0, min_val=-0.5, max_val=2.0, inplace=True),
    )

    @staticmethod
    def g(z, lo, hi):
        return where(z <= lo, lo, where(z >= hi, hi, z))

    @staticmethod
    def g_prime(z, lo, hi):
        return ~((z <= lo) | (z >= hi))

    # F.hardtanh compares the bounds, which are rounded when they are tensors.
    kernel = hardtanh
    kernel_ = hardtanh_
    kernel_prime = aten.hardtanh_backward.default


class ReLU6(Hardtanh):
    """a = min(max(z, 0), 6)
    g′ = 1 if 0 < z < 6 else 0; 0 at both kinks
    Caches as Hardtanh.
    Source: Krizhevsky 2010; torch.nn.functional.relu6
    """

    twin = Twin("relu6", "ReLU6", ("min_val", "max_val"))
    examples = (tried(0.0, 6.0),)


class LeakyReLU(Activation):
    """a = z if z > 0 else s z
    g′ = 1 if z > 0 else s; s at the kink
    Caches z; in place a, whose sign is that of z. With s < 0 it is not, and a copy of z is cached.
    Source: Maas et al. 2013; torch.nn.functional.leaky_relu
    """

    twin = Twin("leaky_relu", "LeakyReLU", ("negative_slope",))
    examples = (
        tried(0.0),
        tried(0.0, negative_slope=0.3, inplace=True),
        tried(0.0, negative_slope=-0.3),
        tried(0.0, negative_slope=0.0),
    )

    caches_input = True

    @staticmethod
    def g(z, s):
        return where(z > 0, z, s * z)

    @staticmethod
    def g_prime(z, s):
        return where(z > 0, torch.ones_like(z), s)

    g_prime_a = g_prime

    @staticmethod
    def output_suffices(dtype, s):
        return s >= 0

    kernel = F.leaky_relu
    kernel_ = F.leaky_relu_

    @staticmethod
    def kernel_prime(da, z, s, over=None):
        return _backward(aten.leaky_relu_backward, over, da, z, s, False)

    kernel_prime_a = kernel_prime


class ELU(Activation):
    """a = z if z > 0 else α (exp(z) − 1)
    g′ = 1 if z > 0 else α exp(z) = a + α; α at the kink
    Caches z; in place a, if α ≥ 0, else a copy of z.
    Source: Clevert et al. 2016, eq. 4; torch.nn.functional.elu
    """

    twin = Twin("elu", "ELU")
    examples = (tried(0.0), tried(0.0, alpha=1.7, inplace=True), tried(0.0, alpha=-0.5))

    caches_input = True

    @staticmethod
    def g(z, alpha):
        return where(z > 0, z, alpha * torch.expm1(where(z > 0, 0.0, z)))

    @staticmethod
    def g_prime(z, alpha):
        return where(z <= 0, alpha * exp(z.clamp(max=0)), 1.0)

    @staticmethod
    def g_prime_a(a, alpha):
        return where(a <= 0, alpha - F.relu(-a), 1.0)  # the slope of relu is 0 at 0, as torch's

    @staticmethod
    def output_suffices(dtype, alpha):
        return alpha >= 0

    kernel = F.elu
    kernel_ = F.elu_

    @staticmethod
    def kernel_prime(da, z, alpha, over=None):
        return _backward(aten.elu_backward, over, da, alpha, 1, 1, False, z)

    @staticmethod
    def kernel_prime_a(da, a, alpha, over=None):
        return _backward(aten.elu_backward, over, da, alpha, 1, 1, True, a)


class CELU(Activation):
    """a = z if z > 0 else α (exp(z/α) − 1)
    g′ = 1 if z > 0 else exp(z/α) = a/α + 1; 1 at the kink
    Caches z; in place a, on the terms of ELU.
    Source: Barron 2017, eq. 2; torch.nn.functional.celu
    """

    twin = Twin("celu", "CELU")
    examples = (
        tried(0.0),
        tried(0.0, alpha=1.7),
        tried(0.0, alpha=-0.5),
        tried(0.0, alpha=0.7, inplace=True),
    )

    caches_input = True

    @staticmethod
    def g(z, alpha):
        return where(z > 0, z, alpha * torch.expm1(where(z > 0, 0.0, z) / alpha))

    @staticmethod
    def g_prime(z, alpha):
        return where(z <= 0, exp(z.clamp(max=0) / alpha), 1.0)

    @staticmethod
    def g_prime_a(a, alpha):
        return where(a <= 0, 1 - F.relu(-a) / alpha, 1.0)

    @staticmethod
    def output_suffices(dtype, alpha):
        return alpha > 0

    kernel = torch.celu
    kernel_ = torch.celu_

    @staticmethod
    def kernel_prime(da, z, alpha, over=None):
        return _backward(aten.elu_backward, over, da, alpha, 1, _inverse(alpha, z.dtype), False, z)

    @staticmethod
    def kernel_prime_a(da, a, alpha, over=None):
        return _backward(aten.elu_backward, over, da, alpha, 1, _inverse(alpha, a.dtype), True, a)


def _inverse(alpha, dtype):
    """1/α, of a float32's α as torch has it; but not in float64, which that would spoil.

    Dynamo cannot round an α that is an input of what it traces.
    """
    if dtype is torch.float64 or torch.compiler.is_compiling():
        return 1 / alpha
    return 1 / unpack("f", pack("f", alpha))[0]


_ALPHA, _SCALE = 1.6732632423543772848170429916717, 1.0507009873554804934193349852946


class SELU(Activation):
    """a = λ z if z > 0 else λ α (exp(z) − 1)
    g′ = λ if z > 0 else λ α exp(z) = a + λ α; λ α at the kink
    α = 1.6733, λ = 1.0507: the fixed point of mean 0 and variance 1. Caches as ELU.
    Source: Klambauer et al. 2017, eq. 2; torch.nn.functional.selu
    """

    twin = Twin("selu", "SELU")
    examples = (tried(0.0),)

    caches_input = True

    @staticmethod
    def g(z):
        return _SCALE * where(z > 0, z, _ALPHA * torch.expm1(where(z > 0, 0.0, z)))

    @staticmethod
    def g_prime(z):
        return where(z <= 0, _SCALE * _ALPHA * exp(z.clamp(max=0)), _SCALE)

    @staticmethod
    def g_prime_a(a):
        return where(a <= 0, _SCALE * _ALPHA - F.relu(-a), _SCALE)

    kernel = torch.selu
    kernel_ = torch.selu_

    @staticmethod
    def kernel_prime(da, z, over=None):
        return _backward(aten.elu_backward, over, da, _ALPHA, _SCALE, 1, False, z)

    @staticmethod
    def kernel_prime_a(da, a, over=None):
        return _backward(aten.elu_backward, over, da, _ALPHA, _SCALE, 1, True, a)


class GELU(Activation):
    """a = z Φ(z),  Φ(z) = (1 + erf(z/√2)) / 2 the normal distribution
    g′ = Φ(z) + z φ(z),  φ(z) = exp(−z²/2) / √(2π) its density
    Caches z: g is not monotone, a does not determine z.
    Source: Hendrycks & Gimpel 2016; torch.nn.functional.gelu
    """

    twin = Twin("gelu", "GELU", where={"approximate": "none"})

    @staticmethod
    def g(z):
        return z * _Phi(z)

    @staticmethod
    def g_prime(z):
        return _Phi(z) + z * exp(-z * z / 2) / math.sqrt(2 * math.pi)

    kernel = F.gelu
    kernel_prime = aten.gelu_backward.default


def _Phi(z):
    return torch.erfc(-z / math.sqrt(2)) / 2


class GELUTanh(Activation):
    """a = z (1 + t) / 2,  t = tanh(u),  u = √(2/π) (z + 0.044715 z³)
    g′ = (1 + t) / 2 + z (1 − t²) u′ / 2,  u′ = √(2/π) (1 + 0.134145 z²)
    Caches z.
    Source: Hendrycks & Gimpel 2016, section 2; torch.nn.functional.gelu(approximate="tanh")
    """

    twin = Twin("gelu", "GELU", where={"approximate": "tanh"})
    examples = (Example(inputs(normal(4, 6)), {"approximate": "tanh"}, label="tanh"),)

    @staticmethod
    def g(z):
        return z * (1 + tanh(_u(z))) / 2

    @staticmethod
    def g_prime(z):
        t, u_prime = tanh(_u(z)), math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * z * z)
        return (1 + t) / 2 + z * (1 - t * t) * u_prime / 2

    @staticmethod
    def kernel(z):
        return F.gelu(z, approximate="tanh")

    @staticmethod
    def kernel_prime(da, z, over=None):
        return _backward(aten.gelu_backward, over, da, z, approximate="tanh")


def _u(z):
    return math.sqrt(2 / math.pi) * (z + 0.044715 * z * z * z)


class SiLU(Activation):
    """a = z σ(z)
    g′ = σ(z) (1 + z (1 − σ(z)))
    Caches z.
    Source: Elfwing et al. 2018, eq. 8, 9; torch.nn.functional.silu
    """

    twin = Twin("silu", "SiLU")

    @staticmethod
    def g(z):
        return z * sigmoid(z)

    @staticmethod
    def g_prime(z):
        s = sigmoid(z)
        return s * (1 + z * (1 - s))

    kernel = F.silu
    kernel_ = aten.silu_.default
    kernel_prime = aten.silu_backward.default


class Mish(Activation):
    """a = z t,  t = tanh(log(1 + exp z))
    g′ = t + z (1 − t²) σ(z)
    Caches z.
    Source: Misra 2019, eq. 1; torch.nn.functional.mish
    """

    twin = Twin("mish", "Mish")

    @staticmethod
    def g(z):
        return z * tanh(F.softplus(z))

    @staticmethod
    def g_prime(z):
        t = tanh(F.softplus(z))
        return t + z * (1 - t * t) * sigmoid(z)

    kernel = F.mish
    kernel_ = aten.mish_.default
    kernel_prime = aten.mish_backward.default


class Sigmoid(Activation):
    """a = σ(z) = 1 / (1 + exp(−z))
    g′ = a (1 − a)
    Caches a.
    Source: torch.nn.functional.sigmoid
    """

    twin = Twin("sigmoid", "Sigmoid")

    @staticmethod
    def g(z):
        return 1 / (1 + exp(-z))

    @staticmethod
    def g_prime_a(a):
        return a * (1 - a)

    kernel = torch.sigmoid
    kernel_prime_a = aten.sigmoid_backward.default


class LogSigmoid(Activation):
    """a = log σ(z) = −log(1 + exp(−z)), and z itself where −z > 40: there the two are the same number
    g′ = 1 − σ(z) = σ(−z)
    Caches z. (torch caches a buffer of z's size besides, which is recomputed here.)
    Source: torch.nn.functional.logsigmoid
    """

    twin = Twin("logsigmoid", "LogSigmoid")

    @staticmethod
    def g(z):
        return F.softplus(-z, 1, 40).neg()

    @staticmethod
    def g_prime(z):
        return sigmoid(-z)

    @staticmethod
    def kernel(z):
        return evaluate(_log_sigmoid, z) if pays(z) else F.logsigmoid(z)

    @staticmethod
    def kernel_prime(da, z):
        return evaluate(_log_sigmoid_prime, da, z) if pays(z) else _log_sigmoid_prime(da, z)


def _log_sigmoid(z):
    """torch's own kernel, which computes the buffer beside"""
    return aten.log_sigmoid_forward.default(z)[0]


def _log_sigmoid_prime(da, z):
    return aten.log_sigmoid_backward.default(da, z, aten.log_sigmoid_forward.default(z)[1])


class Tanh(Activation):
    """a = tanh z
    g′ = 1 − a²
    Caches a.
    Source: torch.nn.functional.tanh
    """

    twin = Twin("tanh", "Tanh")

    @staticmethod
    def g(z):
        return tanh(z)

    @staticmethod
    def g_prime_a(a):
        return 1 - a * a

    kernel = torch.tanh
    kernel_prime_a = aten.tanh_backward.default


class Hardsigmoid(Activation):
    """a = min(max(z + 3, 0), 6) / 6
    g′ = 1/6 if −3 < z < 3 else 0; 0 at both kinks
    Caches z: just below z = 3, a is rounded to 1 while g′ is still 1/6.
    Source: Courbariaux et al. 2015; torch.nn.functional.hardsigmoid
    """

    twin = Twin("hardsigmoid", "Hardsigmoid")
    examples = (tried(-3.0, 3.0),)

    @staticmethod
    def g(z):
        return (z + 3).clamp(0, 6) / 6

    @staticmethod
    def g_prime(z):
        return where((z > -3) & (z < 3), torch.full_like(z, 1 / 6), 0)

    kernel = F.hardsigmoid
    kernel_ = aten.hardsigmoid_.default

    @staticmethod
    def kernel_prime(da, z, over=None):
        if z.dtype is torch.float64:  # where torch's own 1/6 is a float32's
            return where((z > -3) & (z < 3), da * (1 / 6), 0)  # 0 · inf is 0, as torch has it
        return _backward(aten.hardsigmoid_backward, over, da, z)


class Hardswish(Activation):
    """a = z min(max(z + 3, 0), 6) / 6
    g′ = 0 if z ≤ −3, 1 if z ≥ 3, else z/3 + 1/2
    Caches z.
    Source: Howard et al. 2019, section 5.2; torch.nn.functional.hardswish
    """

    twin = Twin("hardswish", "Hardswish")
    examples = (tried(-3.0, 3.0),)

    @staticmethod
    def g(z):
        return z * (z + 3).clamp(0, 6) / 6

    @staticmethod
    def g_prime(z):
        return where(z <= -3, 0.0, where(z < 3, z / 3 + 0.5, 1.0))

    kernel = F.hardswish
    kernel_ = aten.hardswish_.default
    kernel_prime = aten.hardswish_backward.default


class Hardshrink(Activation):
    """a = z if |z| > λ else 0
    g′ = 1 if |z| > λ else 0; 0 at both kinks
    Caches z.
    Source: torch.nn.functional.hardshrink
    """

    twin = Twin("hardshrink", "Hardshrink")
    examples = (tried(-0.5, 0.5), tried(lambd=-0.1))

    @staticmethod
    def g(z, lambd):
        return where((z >= -lambd) & (z <= lambd), 0, z)

    @staticmethod
    def g_prime(z, lambd):
        return ~((z >= -lambd) & (z <= lambd))

    kernel = F.hardshrink

    @staticmethod
    def kernel_prime(da, z, lambd, over=None):
        if not fixed_shape(z):  # for which alone the compiler knows torch's kernel
            return where((z >= -lambd) & (z <= lambd), 0, da)
        return _backward(aten.hardshrink_backward, over, da, z, lambd)


class Softshrink(Activation):
    """a = z − λ if z > λ, z + λ if z < −λ, else 0
    g′ = 1 if |z| > λ else 0; 0 at both kinks
    Caches z.
    Source: torch.nn.functional.softshrink
    """

    twin = Twin("softshrink", "Softshrink")
    examples = (tried(-0.5, 0.5), tried(-1.25, 1.25, lambd=1.25))

    @staticmethod
    def g(z, lambd):
        return where(z > lambd, z - lambd, where(z < -lambd, z + lambd, 0 * z))

    @staticmethod
    def g_prime(z, lambd):
        return ~((z >= -lambd) & (z <= lambd))

    kernel = F.softshrink

    @staticmethod
    def kernel_prime(da, z, lambd, over=None):
        if not fixed_shape(z):  # for which alone the compiler knows torch's kernel
            return where((z >= -lambd) & (z <= lambd), 0, da)
        return _backward(aten.softshrink_backward, over, da, z, lambd)


class Tanhshrink(Activation):
    """a = z − tanh z
    g′ = tanh² z
    Caches z.
    Source: torch.nn.functional.tanhshrink
    """

    twin = Twin("tanhshrink", "Tanhshrink")

    @staticmethod
    def g(z):
        return z - tanh(z)

    @staticmethod
    def g_prime(z):
        t = tanh(z)
        return t * t

    @staticmethod
    def kernel_prime(da, z):
        return evaluate(_tanhshrink_prime, da, z) if pays(z) else _tanhshrink_prime(da, z)


def _tanhshrink_prime(da, z):
    """In torch's steps, to round as it does"""
    return da - aten.tanh_backward.default(da, tanh(z))


class Softplus(Activation):
    """a = log(1 + exp(β z)) / β, and z itself where β z > threshold
    g′ = σ(β z), and 1 where β z > threshold
    Caches z: just above the threshold, two values of z have the same a.
    Source: Dugas et al. 2001; torch.nn.functional.softplus
    """

    twin = Twin("softplus", "Softplus")
    examples = (tried(), tried(1.0, beta=2, threshold=2))

    @staticmethod
    def g(z, beta, threshold):
        return where(
            beta * z > threshold,
            z,
            torch.log1p(exp(where(beta * z > threshold, 0.0, beta * z))) / beta,
        )

    @staticmethod
    def g_prime(z, beta, threshold):
        return where(beta * z > threshold, 1.0, sigmoid(beta * z))

    kernel = F.softplus
    kernel_prime = aten.softplus_backward.default


class Softsign(Activation):
    """a = z / (1 + |z|)
    g′ = 1 / (1 + |z|)²; 1 at 0
    Caches z.
    Source: Bergstra et al. 2009; torch.nn.functional.softsign
    """

    twin = Twin("softsign", "Softsign")

    @staticmethod
    def g(z):
        return z / (1 + z.abs())

    @staticmethod
    def g_prime(z):
        s = 1 / (1 + z.abs())
        return s * s

    @staticmethod
    def kernel_prime(da, z):
        return evaluate(_softsign_in_steps, da, z)


def _softsign_in_steps(da, z):
    """da/d − da ∗ z/d² ∗ sign z, d = 1 + |z|: as torch differentiates z / d, to round as it does"""
    d = z.abs().add_(1)
    through_d = ((z / d).div_(d) * -da).mul_(z.sgn())  # da may be a batch of gradients
    return (da / d).add_(through_d)


class Threshold(Activation):
    """a = z if z > θ else v
    g′ = 1 if z > θ else 0; 0 at the kink
    Caches z; in place a copy of z.
    Source: torch.nn.functional.threshold
    """

    twin = Twin("threshold", "Threshold")
    examples = (
        tried(0.1, threshold=0.1, value=-0.7),
        tried(0.1, threshold=0.1, value=20.0),
        tried(0.1, threshold=0.1, value=0.0, inplace=True),
    )

    @staticmethod
    def g(z, threshold, value):
        return where(z <= threshold, value, z)

    @staticmethod
    def g_prime(z, threshold, value):
        return ~(z <= threshold)

    kernel = F.threshold
    kernel_ = F.threshold_

    @staticmethod
    def kernel_prime(da, z, threshold, value, over=None):
        return _backward(aten.threshold_backward, over, da, z, threshold)
