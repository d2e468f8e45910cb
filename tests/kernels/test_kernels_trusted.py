"""Faults planted in the printer: a wrong kernel is not trusted, and the tests of its bits see it, too."""

import pytest
import torch
from kernel_cases import CASES, Case, by_aten, by_kernel, make

from manualnn.autograd.blockwise import TimesSlope
from manualnn.kernels import build, c, library, running, trust
from manualnn.kernels.expressions import Builder
from manualnn.kernels.trust import same_bits


def polynomial(z):
    return z * z * (1 / 3) + z / 3 - 0.7


def clipped(z):
    return torch.clamp(z.abs(), 0.25, 6.0) * z.sgn()


POLYNOMIAL, CLIPPED = Case("polynomial", polynomial, (), 1), Case("clipped", clipped, (), 1)
SOFTSIGN = Case("softsign", TimesSlope(CASES["Softsign-g"].formula), (), 2)


def text(old, new):
    """C in which something stands in place of something else."""

    def plant(monkeypatch):
        print_ = c.text

        def wrong(programs):
            right = print_(programs)
            assert old in right
            return right.replace(old, new)

        monkeypatch.setattr(c, "text", wrong)

    return plant


def flag(old, new):
    def plant(monkeypatch):
        monkeypatch.setattr(build, "FLAGS", [new if f == old else f for f in build.FLAGS])

    return plant


def literal(wrong):
    return lambda monkeypatch: monkeypatch.setattr(c, "_literal", wrong)


def operator(kind, sign):
    return lambda monkeypatch: monkeypatch.setitem(c.OPERATORS, kind, sign)


def swapped_choice(monkeypatch):
    value = c._Printer.value

    def wrong(self, step):
        if step.kind == "where":
            step = step._replace(inputs=(step.inputs[0], step.inputs[2], step.inputs[1]))
        return value(self, step)

    monkeypatch.setattr(c._Printer, "value", wrong)


def less_exact(monkeypatch):
    monkeypatch.setattr(library, "_ULPS", {"exp": "35", "tanh": "35", "sin": "35", "log1p": "10"})
    monkeypatch.setattr(library, "has_array_functions", lambda: False)
    address = library._address
    monkeypatch.setattr(library, "_address", lambda s: 0 if s.startswith("vm") else address(s))


def numbers_as_they_are(monkeypatch):
    """Python's number, which a float32 is not, in C's double."""
    monkeypatch.setattr(Builder, "constant", lambda self, v: self.step("constant", value=float(v)))
    monkeypatch.setattr(c, "_literal", lambda value, number: repr(value))


def shared_too_much(monkeypatch):
    """Steps of the same inputs are taken for the same step."""
    step = Builder.step

    def wrong(self, kind, *inputs, value=0.0):
        return step(self, "mul" if kind == "div" else kind, *inputs, value=value)

    monkeypatch.setattr(Builder, "step", wrong)


FAULTS = {
    "a product and a sum in one rounding": (
        POLYNOMIAL,
        flag("-ffp-contract=off", "-ffp-contract=fast"),
    ),
    "a reciprocal for a quotient": (POLYNOMIAL, flag("-fno-math-errno", "-freciprocal-math")),
    "six digits of a number": (POLYNOMIAL, literal(lambda value, number: f"{value:.5e}f")),
    "a number in double": (POLYNOMIAL, numbers_as_they_are),
    "a choice the other way round": (CLIPPED, swapped_choice),
    "at the kink the other way": (CASES["Hardshrink-g-0.5"], operator("ge", ">")),
    "a difference for a sum": (SOFTSIGN, operator("add", "-")),
    "no absolute value": (SOFTSIGN, text("__builtin_fabsf", "")),
    "the absolute value of a double alone": (CLIPPED, text("__builtin_fabsf", "(int)")),
    "a quotient shared with a product": (SOFTSIGN, shared_too_much),
    "no denormals in MKL's functions": (CASES["Tanhshrink-g"], text("0x140102", "0x280102")),
    "SLEEF's less exact functions": (CASES["Tanhshrink-g"], less_exact),
    "the second input in the place of the first": (SOFTSIGN, text("tensors[2]", "tensors[1]")),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_not_trusted_and_seen(fault, anew, monkeypatch):
    case, plant = FAULTS[fault]
    assert make([case], torch.float32) != [None]
    tensors = case.values(torch.float32, 3000)
    right = by_aten(case, *tensors)
    monkeypatch.setattr(running, "_kernels", {})
    plant(monkeypatch)
    assert make([case], torch.float32) == [None]
    monkeypatch.setattr(running, "_kernels", {})
    monkeypatch.setattr(trust, "agrees", lambda *args: True)
    assert not same_bits(by_kernel(case, *tensors), right)


def test_a_narrow_number_that_is_cut_off_is_not_trusted(anew, monkeypatch):
    text(
        "unsigned int rounded = (u.bits + 0x7fff + ((u.bits >> 16) & 1))",
        "unsigned int rounded = u.bits",
    )(monkeypatch)
    assert make([CASES["Softsign-g"]], torch.bfloat16) == [None]


FORGOTTEN = {
    "the last elements": ("n - at < ROWS ? n - at : ROWS", "(n - at < ROWS ? n - at : ROWS) & ~3"),
    "where a piece starts": ("z + at", "z"),
}


@pytest.mark.parametrize("fault", FORGOTTEN)
def test_what_only_larger_tensors_show(fault, anew, monkeypatch):
    """A kilobyte does not show it: the tests of sizes do."""
    text(*FORGOTTEN[fault])(monkeypatch)
    case = CASES["Softsign-g"]
    tensors = case.values(torch.float32, 3001)
    assert not same_bits(by_kernel(case, *tensors), by_aten(case, *tensors))


def test_scalar_ends_that_are_forgotten_are_seen(cache, monkeypatch):
    monkeypatch.setattr(running, "_tails", lambda *args: [])
    case, differ = CASES["SiLU-g"], []
    for seed in range(9):
        tensors = case.values(torch.float32, 3023, seed=seed)
        differ.append(not same_bits(by_kernel(case, *tensors), by_aten(case, *tensors)))
    assert any(differ)


def test_nan_is_nan_and_zero_is_not_minus_zero():
    nan = torch.tensor([0x7FC00001, 0x7FC00000], dtype=torch.int32).view(torch.float32)
    assert same_bits(nan, nan.flip(0))
    assert not same_bits(torch.tensor([0.0]), torch.tensor([-0.0]))
    assert not same_bits(torch.tensor([0.0]), torch.tensor([0.0], dtype=torch.float64))


def test_a_kilobyte_holds_what_is_special():
    expression = running.expression_of(lambda z: torch.where(z > 0.3, z, 0), torch.float32, 1)
    values = trust.values(expression, torch.float32, torch.Generator().manual_seed(0))
    at = torch.tensor(0.3)
    inf = torch.tensor(float("inf"))
    assert (
        values.numel() * values.element_size() == 1024
        and values.isnan().any()
        and values.isinf().any()
    )
    for wanted in (at, at.nextafter(inf), at.nextafter(-inf), -at):
        assert (values == wanted).any()
    assert ((values == 0) & values.signbit()).any() and (
        (values.abs() < 1e-38) & (values != 0)
    ).any()
