"""manualnn.check finds what is wrong, names it, and finds nothing where all is right."""

import io
import json

import faults
import pytest
import torch

import manualnn
from manualnn import Activation, Function, nn
from manualnn.tools.checks import CheckError
from manualnn.tools.checks.report import DECLARED, FAILED, NOTE, PASSED, UNSUPPORTED, Line, Report

x, W, b, z = faults.x, faults.W, faults.b, faults.z


@pytest.mark.parametrize("fault", faults.FAULTS)
@pytest.mark.one_in(3)
def test_a_planted_fault_is_found_and_named(fault):
    target, inputs, options, name, diagnosis = faults.FAULTS[fault]
    report = manualnn.check(target, *inputs, **options)
    assert not report
    line = report[name]
    assert line.status in (FAILED, UNSUPPORTED), report
    assert diagnosis and diagnosis in f"{line.detail} {line.where}", report


def test_the_first_thing_that_is_wrong_is_reported_first():
    report = manualnn.check(faults.changed(dW=0.25), x, W, b)
    assert report.failures[0].name == "backward against central differences"
    where = report.failures[0].where
    assert where.startswith("dW[") and "analytic" in where and "numeric" in where
    assert str(report).splitlines()[0].endswith("dW is 4× too small: divided by the batch twice?")


def test_the_worst_element_and_both_its_values():
    class Off(Function):
        @staticmethod
        def forward(x):
            return x * 3

        @staticmethod
        def setup_context(ctx, inputs, output):
            pass

        @staticmethod
        def backward(ctx, d):
            d = d * 3
            d[2, 1] += 1
            return d

    line = manualnn.check(Off, x, only=["backward against central differences"]).lines[0]
    assert line.where.startswith("dx[2, 1]: analytic")
    analytic, given = (float(part.split()[-1]) for part in line.where.split(",")[-2:])
    assert analytic - given == pytest.approx(1, abs=1e-6)
    assert "wrong at 1 of 12 elements" in line.detail


@pytest.mark.parametrize(
    ("target", "inputs"),
    [
        (torch.nn.functional.gelu, (z,)),
        (torch.nn.functional.linear, (x, W, b)),
        (torch.nn.Linear(3, 5), (x,)),
        (lambda a: (a * 2, a.sin()), (z,)),
        (lambda a, k, word: a * k if word == "times" else a, (z, 3, "times")),
        (lambda y, i: y[i], (x, torch.tensor([0, 2]))),
    ],
)
def test_what_is_right_passes(target, inputs):
    report = manualnn.check(target, *inputs)
    assert report, report
    assert not report.failures and report.raise_for_failures() is None
    statuses = {line.status for line in report.lines}
    assert statuses <= {PASSED, NOTE}


def test_an_undeclared_kink_in_the_way_is_no_fault():
    # 0 lies within the first step of the differences.
    points = torch.tensor([[5e-4, -3e-4, 2e-6, 1.0]], dtype=torch.float64)
    report = manualnn.check(lambda x: torch.relu(x) * 2, points)
    assert report, report


def test_random_inputs_are_kept_away_from_declared_kinks():
    report = manualnn.check(
        torch.relu, torch.zeros(3, 4), kinks=(0.0,), reference=torch.nn.functional.relu
    )
    assert report and report["kinks"].status == PASSED


def test_large_inputs_are_sampled():
    report = manualnn.check(
        torch.nn.functional.silu,
        torch.randn(300, 400),
        only=["backward against central differences"],
    )
    assert report


def test_the_random_state_is_left_alone():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    manualnn.check(manualnn.functional.dropout, z)
    assert torch.equal(before, torch.get_rng_state())


def test_it_works_in_any_region():
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert manualnn.check(manualnn.functional.tanh, z, only=["forward mode", "float32"])


def test_the_figures_of_cost():
    report = manualnn.check(manualnn.functional.dropout, z, reference=torch.nn.functional.dropout)
    saved, time = report["bytes saved for backward"], report["time, forward and backward"]
    assert saved.status == time.status == NOTE
    assert "24 bytes, the reference 96: 0.25×" in saved.detail
    assert "the reference" in time.detail


def test_the_name_that_the_line_of_bytes_had_before():
    old, new = "bytes kept for backward", "bytes saved for backward"
    with pytest.warns(
        DeprecationWarning, match=f"the line '{old}' is called '{new}' now"
    ) as warned:
        report = manualnn.check(manualnn.functional.tanh, z, only=[old])
    assert [line.name for line in report.lines] == [new]
    assert warned[0].filename == __file__
    with pytest.warns(DeprecationWarning) as warned:
        assert report[old] is report[new]
    assert warned[0].filename == __file__
    with pytest.warns(DeprecationWarning):
        assert not manualnn.check(manualnn.functional.tanh, z, only=[new], skip=[old]).lines


# The report.


def made(*statuses):
    return Report("Op", [Line(f"line {i}", s) for i, s in enumerate(statuses)])


def test_truth_and_failures():
    assert made(PASSED, NOTE, DECLARED)
    for status in (FAILED, UNSUPPORTED):
        report = made(PASSED, status)
        assert not report and [line.name for line in report.failures] == ["line 1"]
        with pytest.raises(CheckError, match="line 1"):
            report.raise_for_failures()
    assert not made()
    with pytest.raises(KeyError):
        made(PASSED)["no such line"]


def test_json():
    content = json.loads(manualnn.check(faults.changed(dx=-1.0), x, W, b).to_json())
    assert content["passed"] is False and content["target"] == "Linear"
    bad = [line for line in content["lines"] if line["status"] == FAILED]
    assert bad[0]["detail"] == "dx has the wrong sign" and bad[0]["error"] == pytest.approx(2)


def test_a_rich_table():
    rich = pytest.importorskip("rich.console")
    console = rich.Console(width=140, record=True, file=open("/dev/null", "w"))
    console.print(manualnn.check(faults.changed(dx=-1.0), x, W, b))
    text = console.export_text()
    assert "dx has the wrong sign" in text and "not supported" not in text


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_it_is_coloured_on_a_terminal_and_plain_elsewhere(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    report, terminal, file = made(PASSED, FAILED), Terminal(), io.StringIO()
    report.print(terminal)
    report.print(file)
    assert "\x1b[" in terminal.getvalue() and "line 1" in terminal.getvalue()
    assert file.getvalue() == f"{report}\n"


# What cannot be checked.


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: manualnn.check(3, x), "not int"),
        (lambda: manualnn.check(torch.relu), "needs inputs"),
        (lambda: manualnn.check(torch.relu, torch.arange(3)), "floating tensor"),
    ],
)
def test_what_cannot_be_checked_is_refused(call, message):
    with pytest.raises(TypeError, match=message):
        call()


def test_a_line_that_there_is_not():
    for option in ("skip", "only"):
        with pytest.raises(ValueError, match="no line is called 'vmpa'"):
            manualnn.check(torch.relu, z, **{option: ["vmpa"]})
    assert [line.name for line in manualnn.check(torch.tanh, z, only=["vmap"]).lines] == ["vmap"]
    with pytest.raises(KeyError):
        manualnn.check(torch.tanh, z, skip=["vmap"])["vmap"]


# Whole models.


def network():
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Linear(5, 4),
        torch.nn.Tanh(),
        torch.nn.Linear(4, 4),
        torch.nn.GELU(),
        torch.nn.Linear(4, 2),
    )


@pytest.mark.parametrize("build", [network, lambda: manualnn.convert(network())])
@pytest.mark.one_in(2)
def test_a_model_against_its_twin(build):
    report = manualnn.check(build(), torch.randn(3, 5))
    assert report, report
    assert "6 calls of layers, 6 parameters" in report["layer by layer"].detail


def test_a_single_node_against_its_layers():
    report = manualnn.check(nn.MLP([5, 4, 4, 2], "relu"), torch.randn(3, 5))
    assert report and report["layer by layer"].status == PASSED


class WrongTanh(torch.nn.Module):
    class Wrong(Activation):
        def g(z):
            return torch.tanh(z)

        def g_prime(z):
            return 1 - torch.tanh(z)

    def forward(self, z):
        return self.Wrong.apply(z)


def test_the_first_layer_whose_gradient_departs_is_named():
    wrong, right = network(), network()
    wrong[1] = WrongTanh()
    report = manualnn.check(wrong, torch.randn(3, 5), reference=right)
    line = report.failures[0]
    assert line.name == "layer by layer"
    assert line.detail.endswith("1 (WrongTanh) is the first layer whose gradient departs")
    assert line.where.startswith("the gradient of its input")


def test_the_first_layer_whose_output_departs_is_named():
    wrong, right = network(), network()
    wrong[3] = torch.nn.GELU("tanh")
    line = manualnn.check(wrong, torch.randn(3, 5), reference=right).failures[0]
    assert "going forward, 3 (GELU) is the first layer whose output departs" in line.detail


def test_a_models_state_is_left_alone():
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.ReLU())
    before = {k: v.clone() for k, v in model.state_dict().items()}
    classes = [type(m) for m in model.modules()]
    manualnn.check(model, torch.randn(6, 3), only=["layer by layer", "backward twice"])
    assert classes == [type(m) for m in model.modules()]
    for k, v in model.state_dict().items():
        assert torch.equal(v, before[k])
    assert all(p.grad is None for p in model.parameters())


def test_what_backward_twice_lacks_as_well_is_seen_in_nested_forward_mode():
    class Gate(Function):
        """z = x σ(y), of which σ(y) exists for backward alone: its derivative is forgotten."""

        outputs = 1

        @staticmethod
        def forward(x, y):
            s = torch.sigmoid(y)
            return x * s, s

        @staticmethod
        def save(needs, output, x, y):
            return (x, output[1]), ()

        @staticmethod
        def gradients(needs, dz, x, s):
            return dz * s, dz * x * s * (1 - s)

        @staticmethod
        def tangent(step, x, s):
            moved = 0 if step.x is None else step.x * s
            return moved if step.y is None else moved + step.y * x * s * (1 - s)

    report = manualnn.check(Gate, torch.randn(3), torch.randn(3))
    assert report["backward against central differences"].status == PASSED
    assert report["nested forward mode"].status == FAILED
