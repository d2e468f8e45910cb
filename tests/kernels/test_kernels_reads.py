"""What a formula reads: what it may name and have a kernel, and that a kernel never computes with what was."""

import functools
import math
import random

import numpy
import pytest
import torch
from kernel_cases import kernels_run, switched_off

from manualnn.autograd.blockwise import evaluate
from manualnn.kernels import expression_of
from manualnn.kernels.trust import same_bits

SCALE = 2.0
STATE = [2.0]
TENSOR = torch.tensor(2.0)


def reads_state(z):
    return z * STATE[0]


def reads_a_tensor(z):
    return z * TENSOR


def draws(z):
    return z * random.random()


def imports(z):
    import os

    return z * len(os.sep)


REFUSED = {
    "a choice by value": lambda z: z if z.sum() > 0 else -z,
    "a number of a tensor": lambda z: z * z[0].item(),
    "a reduction": lambda z: z / z.sum(),
    "a part": lambda z: z + z[:1],
    "random numbers": lambda z: z * torch.rand_like(z),
    "another dtype": lambda z: (z.double() * 0.1).to(z.dtype),
    "integers": lambda z: z.long() + z,
    "written over": lambda z: z.mul_(2),
    "alpha": lambda z: torch.add(z, z, alpha=2),
    "an operation without steps": lambda z: torch.lgamma(z),
    "NumPy": lambda z: z * numpy.float64(2),
    "a list": reads_state,
    "a tensor": reads_a_tensor,
    "Python's random numbers": draws,
    "an import": imports,
    "two results": lambda z: (z, z),
    "nothing": lambda z: None,
    "a number": lambda z: 1.0,
    "an error": lambda z: z.no_such_method(),
    "a random number of torch's": lambda z: z * torch.rand(()).item(),
    "noise": lambda z: z + torch.normal(0.0, 1.0, z.shape),
    "a random number that is left out": lambda z: (torch.rand(3), z * 2)[1],
    "torch's seed": lambda z: z * torch.initial_seed(),
    "threads": lambda z: z * torch.get_num_threads(),
    "a mode": lambda z: z * (2 if torch.are_deterministic_algorithms_enabled() else 3),
    "a mode of a backend": lambda z: z * (2 if torch.backends.mkldnn.enabled else 3),
    "how many elements": lambda z: z * z.numel(),
    "how long": lambda z: z * len(z),
    "a shape": lambda z: z * 2 if z.shape[-1] > 1000 else z * 3,
    "how many dimensions": lambda z: z * z.dim(),
    "a layout": lambda z: z * 2 if z.is_contiguous() else z * 3,
    "whether it needs a gradient": lambda z: z * 2 if z.requires_grad else z * 3,
    "a class": lambda z: z * 2 if isinstance(z, torch.nn.Parameter) else z * 3,
    "a module that is handed on": lambda z: times_of(math, z),
    "a module in a tuple": lambda z: z * MODULES[0].pi,
    "an attribute of a function": lambda z: z * with_attribute.k,
    "a number to a tensor": lambda z: 2**z,
    "an angle": lambda z: torch.atan2(z, z + 1),
    "a method of a tensor outside": lambda z: bound(z),
}
REFUSED |= {
    "a number of a class of its own": lambda z: OWN_NUMBER * z,
    "truth values that are multiplied": lambda z: (((z > 0) * (z < 1)) & (z != 0.5)) * z,
    "truth values that are made": lambda z: (torch.ones_like(z, dtype=torch.bool) & (z > 0)) * z,
}
MODULES = (math,)
bound = TENSOR.mul


class OwnNumber(float):
    def __mul__(self, other):
        return other * STATE[0]


OWN_NUMBER = OwnNumber(1.0)


def times_of(module, z):
    return z * module.pi


def with_attribute(z):
    return z


with_attribute.k = 2.0


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_not_traced(what):
    assert expression_of(REFUSED[what], torch.float32, 1) is None


def test_a_dtype_that_torch_promotes():
    """Two numbers make a tensor of the default dtype: 0.1 of float32, in a float64."""
    formula = lambda z: torch.where(z > 0, 1.0, 0.1)  # noqa: E731
    assert expression_of(formula, torch.float32, 1) is not None
    assert expression_of(formula, torch.float64, 1) is None


def times_scale(z):
    return z.abs() * SCALE


def test_what_is_not_traced_draws_nothing():
    """Not even to see what comes of it: the next number is the user's."""
    torch.manual_seed(0)
    want = torch.rand(3)
    torch.manual_seed(0)
    for what in REFUSED:
        expression_of(REFUSED[what], torch.float32, 1)
    assert torch.equal(torch.rand(3), want)


def factor(z, k=2.0, *, times=1.0):
    return z * k * times


@functools.wraps(torch.nn.functional.softsign)
def dressed(z):
    return z * SCALE


def set_operator(monkeypatch):
    plain = torch.Tensor.__mul__
    monkeypatch.setattr(torch.Tensor, "__mul__", lambda x, y: plain(x, y + 1))


CHANGES = {
    "defaults": lambda patch: patch.setattr(factor, "__defaults__", (3.0,)),
    "a default by name": lambda patch: patch.setitem(factor.__kwdefaults__, "times", 3.0),
    "code": lambda patch: patch.setattr(factor, "__code__", other.__code__),
    "a global of a function that is dressed": lambda patch: patch.setitem(globals(), "SCALE", 3.0),
    "a global that hides a builtin": lambda patch: patch.setitem(globals(), "max", lambda *x: 3.0),
    "an operator": set_operator,
    "an operator in place": lambda patch: patch.setattr(
        torch.Tensor, "__iadd__", lambda x, y: x * 7
    ),
    "a method": lambda patch: patch.setattr(torch.Tensor, "sin", torch.Tensor.cos),
}


def other(z, k=2.0, *, times=1.0):
    return z * k * times * 5


def of_many_names(z):
    found = factor(z) + dressed(z) * max(1.0, 2.0) + z.sin()
    found += 2
    return found


@pytest.mark.parametrize("what", CHANGES)
@torch.no_grad()
def test_what_a_formula_reads_has_changed(what, monkeypatch):
    z = torch.linspace(0.5, 2, 1000)
    evaluate(of_many_names, z)
    assert kernels_run(monkeypatch, lambda: evaluate(of_many_names, z)) == 1
    CHANGES[what](monkeypatch)
    found = evaluate(of_many_names, z)
    with switched_off():
        assert same_bits(found, evaluate(of_many_names, z))
    assert kernels_run(monkeypatch, lambda: evaluate(of_many_names, z)) == 0


def test_a_global_that_changes(monkeypatch):
    z = torch.randn(1000)
    module = __import__(__name__)
    with torch.no_grad():
        assert same_bits(evaluate(times_scale, z), z.abs() * 2)
        monkeypatch.setattr(module, "SCALE", 3.0)
        assert same_bits(evaluate(times_scale, z), z.abs() * 3)


def test_a_closure_that_changes():
    scale = 2.0

    def formula(z):
        return z.abs() * scale

    z = torch.randn(1000)
    with torch.no_grad():
        assert same_bits(evaluate(formula, z), z.abs() * 2)
        scale = 3.0
        assert same_bits(evaluate(formula, z), z.abs() * 3)


def test_a_function_of_torchs_that_is_replaced(monkeypatch):
    def formula(z):
        return torch.tanh(z) * 2

    z = torch.randn(1000)
    with torch.no_grad():
        before = evaluate(formula, z)
        monkeypatch.setattr(torch, "tanh", torch.sin)
        assert same_bits(before, z.tanh() * 2)
        assert same_bits(evaluate(formula, z), z.sin() * 2)
