"""When a kernel serves, and when the formula or ATen's passes do: everywhere the answer is the same."""

import math
import weakref

import pytest
import torch
from kernel_cases import (
    CASES,
    Snake,
    by_aten,
    by_kernel,
    kernels_run,
    need_every_kind,
    switched_off,
)
from torch.utils._python_dispatch import TorchDispatchMode

from manualnn import Activation
from manualnn import functional as F
from manualnn.autograd import blockwise
from manualnn.autograd.blockwise import TimesSlope, evaluate
from manualnn.kernels import expression_of, running
from manualnn.kernels.trust import same_bits

CASE = CASES["Softsign-g_prime"]


def step(function, z):
    def run():
        leaf = z.detach().requires_grad_()
        function(leaf).backward(torch.ones_like(leaf))
        return leaf.grad

    return run


def test_small_tensors_take_atens_passes(monkeypatch):
    monkeypatch.undo()
    z = torch.randn(64)
    assert kernels_run(monkeypatch, step(F.softsign, z)) == 0
    monkeypatch.setattr(running, "LEAST", 64)
    assert kernels_run(monkeypatch, step(F.softsign, z)) == 2


@need_every_kind
@pytest.mark.parametrize("name", ["softsign", "tanhshrink", "logsigmoid"])
def test_forward_and_backward_take_kernels(name, monkeypatch):
    z = torch.randn(3000)
    run = step(getattr(F, name), z)
    assert kernels_run(monkeypatch, run) == 2
    mine = run()
    with switched_off():
        assert same_bits(mine, run())


def test_a_users_own_with_a_learned_number(monkeypatch):
    def grads():
        torch.manual_seed(0)
        z, alpha = torch.randn(5000, requires_grad=True), torch.tensor(1.3, requires_grad=True)
        a = Snake.apply(z, alpha)
        return a.detach(), *torch.autograd.grad(a, (z, alpha), torch.randn(5000))

    assert kernels_run(monkeypatch, grads) == 3
    mine = grads()
    with switched_off():
        assert all(same_bits(x, y) for x, y in zip(mine, grads(), strict=True))


def double_backward(z):
    z = z.requires_grad_()
    (dz,) = torch.autograd.grad(F.softsign(z).sum(), z, create_graph=True)
    return torch.autograd.grad(dz.sum(), z)[0]


class Sees(TorchDispatchMode):
    seen = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen += 1
        return func(*args, **(kwargs or {}))


def in_a_mode(z):
    with Sees() as mode:
        F.softsign(z)
    assert mode.seen > 2


def under_autocast(z):
    with torch.autocast("cpu", torch.bfloat16):
        F.softsign(z)


ELSEWHERE = {
    "grad of grad": lambda z: torch.func.grad(lambda z: F.softsign(z).sum())(z),
    "vmap": lambda z: torch.func.vmap(F.softsign)(z.view(10, -1)),
    "jvp": lambda z: torch.func.jvp(F.softsign, (z,), (z,)),
    "a batch of gradients": lambda z: torch.autograd.grad(
        F.tanhshrink(z.requires_grad_()), z, torch.randn(2, 1000), is_grads_batched=True
    ),
    "jit.trace": lambda z: torch.jit.trace(F.softsign, z, check_trace=False),
    "a dispatch mode": in_a_mode,
    "autocast": under_autocast,
    "meta": lambda z: F.softsign(z.to("meta")),
    "strides that differ": lambda z: evaluate(CASE.formula, z.view(10, 100), z.view(100, 10).t()),
    "strides with gaps": lambda z: F.softsign(z[::2]),
    "another shape": lambda z: evaluate(CASE.formula, z, z[:1].expand(10, 1000)),
    "integers": lambda z: evaluate(CASES["Softsign-g"].formula, z.long()),
    "complex": lambda z: F.tanhshrink(torch.complex(z, z)),
    "two dtypes": lambda z: evaluate(CASE.formula, z, z.double()),
    "a negative view": lambda z: F.softsign(torch._neg_view(z)),
    "a formula that has a gradient": lambda z: evaluate(lambda z: z.abs() + 1, z),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("where", ELSEWHERE)
def test_elsewhere_atens_passes_serve(where, monkeypatch):
    z = torch.randn(1000)
    if where == "a formula that has a gradient":
        with torch.enable_grad():
            z.requires_grad_()
            assert kernels_run(monkeypatch, lambda: ELSEWHERE[where](z)) == 0
        return
    # The forward of these two has plain tensors, and no gradient.
    expected = int(where in ("a batch of gradients", "grad of grad"))
    with (
        torch.no_grad()
        if where in ("strides that differ", "integers", "two dtypes")
        else torch.enable_grad()
    ):
        assert kernels_run(monkeypatch, lambda: ELSEWHERE[where](z)) == expected


def test_double_backward_takes_the_formula(monkeypatch):
    z = torch.randn(1000)
    assert kernels_run(monkeypatch, lambda: double_backward(z)) == 1  # the forward
    mine = double_backward(z)
    with switched_off():
        assert same_bits(mine, double_backward(z))


def test_compiled():
    z = torch.randn(3000)
    out = torch.compile(F.softsign, backend="eager", fullgraph=True)(z)
    assert same_bits(out, torch.nn.functional.softsign(z))


@torch.no_grad()
def test_a_thread_that_flushes_denormals(monkeypatch):
    z = torch.full((1000,), 1e-39)
    evaluate(CASE.formula, z, z)
    torch.set_flush_denormal(True)
    try:
        count = kernels_run(monkeypatch, lambda: evaluate(CASE.formula, z, z))
    finally:
        torch.set_flush_denormal(False)
    assert count == 0


@pytest.mark.parametrize(
    "combined", [lambda z, a, b: z * a**b, lambda z, a, b: z * torch.exp(a + b)]
)
@torch.no_grad()
def test_functions_of_single_numbers_are_atens(combined, monkeypatch):
    """Of numbers alone ATen computes a power in another way than of a tensor."""
    z, a, b = torch.linspace(0.5, 2, 1000), torch.tensor(0.1625), torch.tensor(1.3782)
    given = z, a.expand(1000), b.expand(1000)
    assert kernels_run(monkeypatch, lambda: evaluate(combined, *given)) == 0
    assert kernels_run(monkeypatch, lambda: evaluate(lambda z, a, b: z * a / b, *given)) == 1


@torch.no_grad()
@pytest.mark.parametrize("shape", [(500, 1000), (777, 601)])
def test_ends_of_blocks_that_lie_across(shape, monkeypatch):
    """From four blocks on ATen is given rows of a tensor, whose ends no one knows if they lie across."""
    formula, z = lambda z: z * torch.sigmoid(z), torch.randn(shape).t()
    found = evaluate(formula, z)
    with switched_off():
        want = evaluate(formula, z)
    assert same_bits(found, want) and found.stride() == want.stride()
    assert kernels_run(monkeypatch, lambda: evaluate(formula, z)) == 0
    assert kernels_run(monkeypatch, lambda: evaluate(formula, z.contiguous())) == 1


@torch.no_grad()
@pytest.mark.parametrize("name", "t1 z_i all_t1 linux floats x0 tl da".split())
def test_names_that_what_is_printed_has_too(name, recwarn, monkeypatch):
    made = {"torch": torch}
    exec(f"def formula(z, {name}): return torch.tanh(z * {name}) * {name} + {name}", made)
    tensors = torch.linspace(0.5, 2, 1000), torch.linspace(2, 3, 1000)
    assert kernels_run(monkeypatch, lambda: evaluate(made["formula"], *tensors)) == 1
    with switched_off():
        want = evaluate(made["formula"], *tensors)
    assert same_bits(evaluate(made["formula"], *tensors), want)
    assert not recwarn.list


@torch.no_grad()
def test_log_sigmoid_lies_in_memory_as_atens():
    z = torch.randn(60, 40).t()
    assert evaluate(torch.nn.functional.logsigmoid, z).stride() == (60, 1)


@pytest.mark.parametrize("option", [0.0, -0.0, math.nan, math.inf, 1, True])
def test_options(option):
    def formula(z, o):
        return torch.where(z > 0, o, z * o)

    z = CASE.values(torch.float32, 500)[0]
    with torch.no_grad():
        for o in (option, 0.0, -0.0):
            mine = evaluate(formula, z, options=(o,))
            with switched_off():
                assert same_bits(mine, evaluate(formula, z, options=(o,)))


def test_an_option_that_aten_does_not_take():
    formula = CASES["ReLU-g"].formula
    with torch.no_grad(), pytest.raises(RuntimeError, match="without overflow"):
        evaluate(lambda z, o: torch.where(z > 0, o, formula(z)), torch.randn(9), options=(1e300,))


def test_options_that_change_at_every_step_are_not_compiled_at_every_step(monkeypatch):
    def formula(z, o):
        return z.abs() * o

    made = []
    make = running.make
    monkeypatch.setattr(running, "make", lambda wanted: made.append(wanted) or make(wanted))
    z = torch.randn(100)
    with torch.no_grad():
        for i in range(running.KINDS_OF_OPTIONS + 3):
            assert same_bits(evaluate(formula, z, options=(i / 7,)), z.abs() * (i / 7))
    assert len(made) == running.KINDS_OF_OPTIONS


def test_functions_that_are_new_in_each_call(monkeypatch):
    """They are neither built each time nor held, with what they hold."""

    def call(scale, z):
        def formula(z):
            return z.abs() * scale

        return evaluate(formula, z)

    z, before = torch.randn(100), len(running._kernels)
    with torch.no_grad():
        for i in range(30):
            scale = torch.tensor(i / 7)
            held = weakref.ref(scale)
            assert same_bits(call(scale, z), z.abs() * (i / 7))
            del scale
            assert held() is None
        assert len(running._kernels) == before
        for i in range(30):
            assert same_bits(call(i / 7, z), z.abs() * (i / 7))
    assert len(running._kernels) <= before + running.KINDS_OF_OPTIONS


@pytest.mark.parametrize("name", ["mse_loss", "huber_loss", "binary_cross_entropy"])
def test_losses(name):
    def grads():
        torch.manual_seed(0)
        x, y = torch.rand(3000, requires_grad=True), torch.rand(3000)
        loss = getattr(F, name)(x, y, reduction="none")
        return loss.detach(), *torch.autograd.grad(loss, x, torch.rand(3000))

    before = len(running._kernels)
    for _ in range(3):
        mine = grads()
    assert len(running._kernels) <= before + 2
    with switched_off():
        assert all(same_bits(a, b) for a, b in zip(mine, grads(), strict=True))


def test_two_of_one_slope_are_one_formula():
    slope = CASES["Softsign-g"].formula
    assert TimesSlope(slope) == TimesSlope(slope) != TimesSlope(math.sin)
    assert hash(TimesSlope(slope)) == hash(TimesSlope(slope))


def test_a_wrong_formula_fails_as_it_did():
    class Wrong(Activation):
        @staticmethod
        def g(z):
            return z @ z.no_such_method()

        @staticmethod
        def g_prime(z):
            return z

    with pytest.raises(AttributeError, match="no_such_method"):
        Wrong.apply(torch.randn(100))


def test_shared_steps_are_computed_once():
    expression = expression_of(lambda z: (z.abs() + 1) / z.abs(), torch.float32, 1)
    assert [s.kind for s in expression.steps].count("abs") == 1
    assert str(expression).splitlines() == [
        "t1 = abs(z)",
        "t2 = t1 + 1",
        "t3 = t2 / t1",
        "result: t3",
    ]


def test_minus_zero_is_not_zero():
    expression = expression_of(lambda z: (z + 0.0) * (z + -0.0), torch.float32, 1)
    assert [s.kind for s in expression.steps].count("constant") == 2


def test_a_tensor_of_many_ends():
    """Of many blocks, each with its scalar end: ATen serves, and without such ends the kernel."""
    z = torch.randn(300, 3, 43, 43).contiguous(memory_format=torch.channels_last)
    case = CASES["Sigmoid-g"]
    assert same_bits(by_kernel(case, z), by_aten(case, z))
    case = CASES["SiLU-g"]
    with torch.no_grad():
        assert running.run(blockwise._once, case.formula, (z,), (), 43 * 43 * 3 * 11) is None
        assert same_bits(case.run(z), by_aten(case, z))


@pytest.mark.parametrize("name", ["softsign", "tanhshrink", "logsigmoid"])
@pytest.mark.parametrize(
    "shape, strides",
    [((8, 1, 9, 9), (81, 1, 9, 1)), ((2, 3, 1, 1), (3, 1, 3, 3)), ((1, 5, 4, 3), (7, 12, 3, 1))],
)
def test_strides_that_say_two_things(name, shape, strides):
    """ATen goes by them, so a kernel leaves them to it: output and gradient lie as torch's."""
    found = []
    for of in (F, torch.nn.functional):
        z = torch.empty_strided(shape, strides).copy_(
            torch.linspace(-3, 3, math.prod(shape)).view(shape)
        )
        z.requires_grad_()
        a = getattr(of, name)(z)
        a.backward(torch.ones(shape))
        found.append((a, z.grad))
    for mine, theirs in zip(*found, strict=True):
        assert mine.stride() == theirs.stride()
        assert same_bits(mine.detach(), theirs.detach())
