"""ATen's operations as steps: each as ATen computes it on a CPU, to the last bit.

A row takes the builder and the operation's arguments: places of steps, or Python's numbers. What ATen computes
in another way where a tensor ends within a vector marks the expression as ragged; one whose result lies in
memory otherwise than its input, as by_rows. An operation without a row is not printed: ATen serves.
"""

from collections.abc import Callable
from typing import Any

import torch

from manualnn.kernels import library
from manualnn.kernels.expressions import Builder

aten = torch.ops.aten
STEPS: dict[Any, Callable[..., Any]] = {}


class Unknown(Exception):
    """Something that has no steps: ATen serves."""


def row(*operations: Any) -> Callable[[Any], Any]:
    """The function states these operations."""

    def state(function):
        STEPS.update(dict.fromkeys(operations, function))
        return function

    return state


def _simple(kind, *operations):
    STEPS.update(dict.fromkeys(operations, lambda build, *inputs: build.step(kind, *inputs)))


_simple("neg", aten.neg.default)
_simple("abs", aten.abs.default)
_simple("floor", aten.floor.default)
_simple("ceil", aten.ceil.default)
_simple("trunc", aten.trunc.default)
_simple("mul", aten.mul.Tensor, aten.mul.Scalar)
_simple("div", aten.div.Tensor, aten.div.Scalar)
_simple("where", aten.where.self)
_simple("lt", aten.lt.Tensor, aten.lt.Scalar)
_simple("le", aten.le.Tensor, aten.le.Scalar)
_simple("gt", aten.gt.Tensor, aten.gt.Scalar)
_simple("ge", aten.ge.Tensor, aten.ge.Scalar)
_simple("eq", aten.eq.Tensor, aten.eq.Scalar)
_simple("ne", aten.ne.Tensor, aten.ne.Scalar)
_simple("and", aten.bitwise_and.Tensor, aten.logical_and.default)
_simple("or", aten.bitwise_or.Tensor, aten.logical_or.default)
_simple("xor", aten.bitwise_xor.Tensor, aten.logical_xor.default)
_simple("not", aten.bitwise_not.default, aten.logical_not.default)

# Where torch has MKL its vector functions serve, SLEEF's otherwise: manualnn.kernels.library knows.
for _name in "acos asin atan cos erf erfc exp log log10 log2 sin tan tanh".split():
    _simple(f"vml:{_name}", getattr(aten, _name).default)
for _name in "expm1 log1p".split():
    _simple(f"sleef:{_name}", getattr(aten, _name).default)


@row(aten.add.Tensor, aten.add.Scalar)
def add(build: Builder, x: int, y: int, alpha: Any = 1) -> int:
    """x + y"""
    _alpha_is_one(alpha)
    return build.step("add", x, y)


@row(aten.sub.Tensor, aten.sub.Scalar)
def sub(build: Builder, x: int, y: int, alpha: Any = 1) -> int:
    """x − y"""
    _alpha_is_one(alpha)
    return build.step("sub", x, y)


@row(aten.rsub.Scalar, aten.rsub.Tensor)
def rsub(build: Builder, x: int, y: int, alpha: Any = 1) -> int:
    """y − x"""
    _alpha_is_one(alpha)
    return build.step("sub", y, x)


def _alpha_is_one(alpha):
    if alpha != 1:  # ATen multiplies and adds with one rounding
        raise Unknown("a sum with alpha")


@row(aten.reciprocal.default)
def reciprocal(build: Builder, x: int) -> int:
    """1 / x"""
    return build.step("div", build.constant(1), x)


@row(aten.sqrt.default)
def sqrt(build: Builder, x: int) -> int:
    """√x: MKL's is not always the nearest number"""
    return build.step("vml:sqrt" if library.has_array_functions() else "sqrt", x)


@row(aten.rsqrt.default)
def rsqrt(build: Builder, x: int) -> int:
    """1 / √x"""
    return build.step("div", build.constant(1), build.step("sqrt", x))


@row(aten.sgn.default, aten.sign.default)
def sgn(build: Builder, x: int) -> int:
    """(0 < x) − (x < 0): 0 of −0 and of NaN"""
    zero = build.constant(0)
    above, below = build.step("lt", zero, x), build.step("lt", x, zero)
    return build.step("sub", build.step("number", above), build.step("number", below))


@row(aten.isnan.default)
def isnan(build: Builder, x: int) -> int:
    """x ≠ x"""
    return build.step("ne", x, x)


@row(aten.relu.default)
def relu(build: Builder, x: int) -> int:
    """x clamped from below"""
    return clamp(build, x, build.constant(0))


@row(aten.hardtanh.default)
def hardtanh(build: Builder, x: int, low: int, high: int) -> int:
    """x clamped"""
    return clamp(build, x, low, high)


@row(aten.clamp.default, aten.clamp_min.default)
def clamp(build: Builder, x: int, low: int | None = None, high: int | None = None) -> int:
    """x where it is not below low nor above high; NaN stays"""
    if low is not None:
        x = build.step("where", build.step("gt", low, x), low, x)
    if high is not None:
        x = build.step("where", build.step("lt", high, x), high, x)
    return x


@row(aten.hardsigmoid.default)
def hardsigmoid(build: Builder, x: int) -> int:
    """x + 3, clamped to [0, 6], / 6"""
    three, six = build.constant(3), build.constant(6)
    shifted = clamp(build, build.step("add", x, three), build.constant(0), six)
    return build.step("div", shifted, six)


@row(aten.hardswish.default)
def hardswish(build: Builder, x: int) -> int:
    """x (x + 3, clamped to [0, 6]) / 6"""
    three, six = build.constant(3), build.constant(6)
    shifted = clamp(build, build.step("add", x, three), build.constant(0), six)
    return build.step("div", build.step("mul", x, shifted), six)


@row(aten.clamp_max.default)
def clamp_max(build: Builder, x: int, high: int) -> int:
    """x where it is not above high"""
    return clamp(build, x, None, high)


@row(aten.maximum.default)
def maximum(build: Builder, x: int, y: int) -> int:
    """The larger one, y of two equal ones, and NaN if either is"""
    return _larger(build, "gt", x, y)


@row(aten.minimum.default)
def minimum(build: Builder, x: int, y: int) -> int:
    """The smaller one, y of two equal ones, and NaN if either is"""
    return _larger(build, "lt", x, y)


def _larger(build, kind, x, y):
    build.ragged = True  # at the end of a tensor x is the one of two equal ones: −0 is not 0
    best = build.step("where", build.step(kind, x, y), x, y)
    return build.step("where", build.step("ne", x, x), x, best)


@row(aten.pow.Tensor_Scalar)
def pow_number(build: Builder, x: int, exponent: int) -> int:
    """x to a number: products and roots where ATen takes them"""
    number = build.steps[exponent].value
    one = build.constant(1)
    if number == 0:
        return one
    if number == 1:
        return x
    if number == 2:
        return build.step("mul", x, x)
    if number == 3:
        return build.step("mul", build.step("mul", x, x), x)
    if number == -1:
        return build.step("div", one, x)
    if number == -2:
        return build.step("div", one, build.step("mul", x, x))
    if number == 0.5:
        return sqrt(build, x)
    if number == -0.5:
        return rsqrt(build, x)
    return power(build, x, exponent)


# Not number ** x: of an x that does not lie by rows ATen makes one that does, and rounds otherwise.
@row(aten.pow.Tensor_Tensor)
def power(build: Builder, x: int, y: int) -> int:
    """x to the y"""
    if build.steps[x].kind == "constant" and build.steps[x].value == 1:
        return x
    build.ragged = True
    return build.step("sleef:pow", x, y)


@row(aten.exp2.default)
def exp2(build: Builder, x: int) -> int:
    """2 to the x"""
    build.ragged = True
    return build.step("sleef:exp2", x)


@row(aten.sigmoid.default)
def sigmoid(build: Builder, x: int) -> int:
    """1 / (1 + exp(0 − x))"""
    build.ragged = True
    one = build.constant(1)
    e = build.step("sleef:exp", build.step("sub", build.constant(0), x))
    return build.step("div", one, build.step("add", one, e))


@row(aten.silu.default)
def silu(build: Builder, x: int) -> int:
    """x / (1 + exp(−x))"""
    build.ragged = True
    e = build.step("sleef:exp", build.step("neg", x))
    return build.step("div", x, build.step("add", build.constant(1), e))


@row(aten.softplus.default)
def softplus(build: Builder, x: int, beta: int | None = None, threshold: int | None = None) -> int:
    """log1p(exp(β x)) / β, and x where β x > threshold"""
    build.ragged = True
    beta = build.constant(1) if beta is None else beta
    threshold = build.constant(20) if threshold is None else threshold
    scaled = build.step("mul", x, beta)
    found = build.step("sleef:log1p", build.step("sleef:exp", scaled))
    found = build.step("div", found, beta)
    return build.step("where", build.step("gt", scaled, threshold), x, found)


@row(aten.leaky_relu.default)
def leaky_relu(build: Builder, x: int, slope: int | None = None) -> int:
    """x · (1 where x > 0, else the slope)"""
    slope = build.constant(0.01) if slope is None else slope
    positive = build.step("gt", x, build.constant(0))
    return build.step("mul", x, build.step("where", positive, build.constant(1), slope))


@row(aten.threshold.default)
def threshold(build: Builder, x: int, at: int, value: int) -> int:
    """The value where x ≤ at, else x"""
    return build.step("where", build.step("le", x, at), value, x)


@row(aten.tanh_backward.default)
def tanh_backward(build: Builder, da: int, a: int) -> int:
    """da · (1 − a²), the difference rounded once"""
    slope = build.step("fma", build.step("neg", a), a, build.constant(1))
    return build.step("mul", da, slope)


@row(aten.sigmoid_backward.default)
def sigmoid_backward(build: Builder, da: int, a: int) -> int:
    """da · (1 − a) · a"""
    rest = build.step("sub", build.constant(1), a)
    return build.step("mul", build.step("mul", da, rest), a)


@row(aten.log_sigmoid_forward.default)
def log_sigmoid_forward(build: Builder, x: int) -> tuple[int, int]:
    """min(x, 0) − log1p(exp(−|x|)), and exp(−|x|)"""
    build.by_rows = True  # as ATen's result lies, whatever x is
    zero = build.constant(0)
    e = build.step("sleef:exp", build.step("neg", build.step("abs", x)))
    least = minimum(build, x, zero)
    return build.step("sub", least, build.step("sleef:log1p", e)), e


@row(aten.log_sigmoid_backward.default)
def log_sigmoid_backward(build: Builder, da: int, x: int, e: int) -> int:
    """da · (m − s · (e / (1 + e))), m = 1 and s = 1 where x < 0, else 0 and −1"""
    zero, one, minus = build.constant(0), build.constant(1), build.constant(-1)
    negative = build.step("lt", x, zero)
    m, s = build.step("where", negative, one, zero), build.step("where", negative, one, minus)
    share = build.step("div", e, build.step("add", one, e))
    return build.step("mul", da, build.step("sub", m, build.step("mul", s, share)))


@row(aten.native_batch_norm.default)
def batch_norm(
    build: Builder,
    x: int,
    scale: int | None,
    beta: int | None,
    mu: int,
    var: int,
    training: int,
    momentum: int,
    eps: int,
) -> tuple[int, int, int]:
    """scale x + (beta − mu scale), each sum rounded once: by given statistics, of a variance of 1"""
    numbers = build.steps[training].value, build.steps[var].value, build.steps[eps].value
    constants = {build.steps[i].kind for i in (training, var, eps)} == {"constant"}
    if not constants or numbers != (0.0, 1.0, 0.0) or scale is None:
        raise Unknown("batch normalisation by other statistics")
    beta = build.constant(0) if beta is None else beta
    y = build.step("fma", x, scale, build.step("fma", build.step("neg", mu), scale, beta))
    return y, y, y  # of the statistics nothing is to be read
