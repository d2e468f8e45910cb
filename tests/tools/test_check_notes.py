"""What check says of right code that is not plain: it is named in a note, and nobody is accused."""

import pytest
import torch
from functions_right.attributes import annealed
from functions_right.complexes import Scale, fourier
from functions_right.roundings import soft_margin
from functions_wrong.initial import gain, slope
from functions_wrong.integers import InOrder
from torch import nn
from torch.nn import functional as F

import manualnn
from manualnn.tools.checks import limits
from manualnn.tools.checks.report import FAILED, NOTE, UNSUPPORTED

QUICK = ("compile", "bytes saved for backward", "time, forward and backward")
DIFFERENCES = "backward against central differences"


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_a_rounding_of_pytorchs_is_named_with_its_layer():
    """torch's hardsigmoid holds 1/6 as a float32 in float64, and manualnn's does not."""
    model = nn.Sequential(nn.Linear(5, 3), nn.Hardsigmoid())
    report = manualnn.check(model, normal(4, 5), skip=QUICK)
    line = report["layer by layer"]
    assert report and line.status == NOTE and 1e-9 < line.error < 1e-6
    assert "1 (Hardsigmoid)" in line.detail and "float32" in line.detail
    assert report["backward against the reference"].status == NOTE


def test_hardsigmoid_stops_what_is_infinite():
    """Where it is flat torch selects 0, also in float64: 0 · ∞ would be NaN."""
    z = torch.tensor([-5.0, 5.0, 0.0], dtype=torch.float64, requires_grad=True)
    incoming = torch.tensor([torch.inf, torch.nan, 6.0], dtype=torch.float64)
    (dz,) = torch.autograd.grad(manualnn.functional.hardsigmoid(z), z, incoming)
    assert dz.tolist() == [0.0, 0.0, 1.0]


def test_state_in_an_attribute_is_named_and_left_to_the_caller_as_it_was():
    model = annealed()
    line = manualnn.check(model, normal(2, 3), only=["state in attributes"]).lines[0]
    assert line.status == NOTE and "`n`" in line.detail and model.n == 0


def test_complex_parameters_are_differentiated_by_both_parts():
    seen = set()

    class Seen(Scale):
        def forward(self, x):
            seen.add(self.w.dtype)
            return super().forward(x)

    lines = [DIFFERENCES, "float32", "bfloat16", "float16"]
    report = manualnn.check(Seen(), normal(4, 5), only=lines)
    assert report and seen == {torch.complex128, torch.complex64}
    assert [line.name for line in report.lines] == [DIFFERENCES, "float32"]
    assert manualnn.check(fourier(), normal(2, 3, 8), only=lines)


def test_what_pytorch_does_not_differentiate_is_passed_on():
    x, y = soft_margin_inputs = normal(4, 6), normal(4, 6, seed=1).sign()
    line = manualnn.check(soft_margin(), *soft_margin_inputs, only=["passed on"]).lines[0]
    assert line.status == NOTE and "not_variables=('input 1',)" in line.detail
    line = manualnn.check(F.soft_margin_loss, x, y, only=["passed on"]).lines[0]
    assert "not_variables=('target',)" in line.detail


def test_what_a_call_moves_is_named_where_the_first_numbers_hide_it():
    """torch's spectral norm has converged at the first numbers, and departs at others."""
    torch.manual_seed(0)
    model = nn.utils.parametrizations.spectral_norm(nn.Linear(5, 3))
    report = manualnn.check(model, normal(4, 5), skip=QUICK)
    failed = [line for line in report.lines if line.status == FAILED]
    assert len(failed) == 1 and "the call changes parametrizations.weight.0._u" in failed[0].detail


def test_a_detach_on_purpose_is_pointed_to_the_surrogate():
    def distance(x, teacher):
        return (x - teacher.detach()).square().mean()

    inputs = normal(3, 4), normal(3, 4, seed=1)
    line = manualnn.check(distance, *inputs, only=[DIFFERENCES]).lines[0]
    assert line.status == FAILED and "detach()" in line.detail and "surrogate=" in line.detail
    assert manualnn.check(distance, *inputs, surrogate={"teacher": "it is another network's"})


def test_what_pytorch_has_no_slope_for_is_a_note():
    zero = torch.zeros(3)
    line = manualnn.check(torch.hypot, zero, zero, only=[DIFFERENCES]).lines[0]
    assert line.status == NOTE and "as PyTorch has it" in line.detail


def test_numbers_of_pytorchs_own_in_half_precision():
    """torch.matrix_exp is NaN in bfloat16."""
    line = manualnn.check(torch.matrix_exp, normal(3, 3), only=["bfloat16"]).lines[0]
    assert line.status == UNSUPPORTED and line.refused_by == "PyTorch"


def test_no_empty_batch_goes_where_python_ends():
    line = manualnn.check(F.pdist, normal(4, 5), only=["empty batch"]).lines[0]
    assert line.status == NOTE and "ends Python" in line.detail


@pytest.mark.parametrize("module", [slope, gain])
def test_a_parameter_that_was_given_positive_may_be_promised_to_be(module):
    """A learned clipping level, say: where it is negative there may be another gradient."""
    report = manualnn.check(module(), normal(3, 4), skip=QUICK)
    line = report["other parameters"]
    assert line.status == NOTE and "never negative" in line.detail


def test_an_order_that_swaps_pairs_may_be_promised_to():
    """Left and right, say: then it is its own inverse, which another order is not."""
    report = manualnn.check(InOrder, normal(3, 2), torch.tensor([1, 0, 2]), skip=QUICK)
    line = report["other labels, masks and ids"]
    assert line.status == NOTE and "another order" in line.detail
    assert not [line for line in report.lines if line.status == FAILED]


def test_a_loop_that_does_not_end_is_left(monkeypatch):
    """A table of what comes next has a cycle where two of its numbers are made the same."""
    monkeypatch.setattr(limits, "SECONDS", 1.0)

    class Walk(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, following):
            ctx.save_for_backward(following)
            total, at = x[0] * 0, 0
            while at != -1:
                total, at = total + x[at], int(following[at])
            return total

        @staticmethod
        def backward(ctx, d):
            (following,) = ctx.saved_tensors
            dx, at = d.new_zeros(len(following)), 0
            while at != -1:
                dx[at] += d
                at = int(following[at])
            return dx, None

    report = manualnn.check(Walk, normal(4), torch.tensor([2, 3, 1, -1]), skip=QUICK)
    assert not [line for line in report.lines if line.status == FAILED], str(report)
