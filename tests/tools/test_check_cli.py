"""``python -m manualnn check``: targets by name, exit status, JSON, and one line for a mistake."""

import json

import pytest
import torch
from tool_helpers import module_of_ones_own, runner

from manualnn.__main__ import main

MODULE = """
import torch
from manualnn import Activation

class Cube(Activation):
    def g(z):
        return z ** 3

    def g_prime(z):
        return 3 * z ** 2

class Wrong(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, W):
        ctx.save_for_backward(x, W)
        return x @ W.T

    @staticmethod
    def backward(ctx, dz):
        x, W = ctx.saved_tensors
        return dz @ W, -dz.T @ x

def product(x, W):
    return x @ W.T

def build():
    return torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.GELU())

def number():
    return 3
"""


theirs = module_of_ones_own("their_ops", MODULE)
run = runner("check")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["their_ops:Cube"], "Cube: right"),
        (["torch.nn:Linear(3, 5, bias=False)", "--input", "4,3"], "Linear: right"),
        (["their_ops:build", "--input", "2,4"], "Sequential: right"),
        (["their_ops:product", "--input", "4,3", "--input", "5,3"], "product: right"),
        (
            ["torch.nn.functional:leaky_relu", "--input", "4,3", "--input", "=0.2"],
            "leaky_relu: right",
        ),
        (
            ["torch.nn.functional:cross_entropy", "--input", "4,3", "--input", "4:3"],
            "cross_entropy: right",
        ),
        (
            ["torch.nn.functional:relu6", "--input", "4,3", "--kinks", "0,6"]
            + ["--reference", "manualnn.functional:relu6"],
            "kinks",
        ),
    ],
    ids=str,
)
@pytest.mark.one_in(3)
def test_what_is_right(arguments, message, theirs, capsys):
    status, out, err = run(capsys, *arguments)
    assert status == 0 and message in out, out + err


def test_what_is_wrong(theirs, capsys):
    arguments = ["their_ops:Wrong", "--input", "4,3", "--input", "5,3", "--json", "report.json"]
    status, out, _ = run(capsys, *arguments)
    assert status == 1 and "dW has the wrong sign" in out.splitlines()[0]
    content = json.loads((theirs / "report.json").read_text())
    assert content["target"] == "Wrong" and not content["passed"]


def test_json_on_the_output_is_nothing_but_json(theirs, capsys):
    status, out, err = run(capsys, "their_ops:Cube", "--json", "-", "--only", "vmap")
    assert status == 0 and json.loads(out)["passed"] and "Cube: right" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["their_ops"], "it reads package.module:Name"),
        (["no_such_package:X"], "no_such_package cannot be imported"),
        (["their_ops:Nothing"], "their_ops has no Nothing"),
        (["their_ops:number"], "number() returns int"),
        (["their_ops:Wrong"], "needs inputs"),
        (["their_ops:Wrong", "--input", "4,a"], "--input 4,a"),
        (["their_ops:Wrong", "--input", "4,3"], "their_ops:Wrong cannot be checked"),
        (["their_ops:Cube", "--only", "vmpa"], "no line is called 'vmpa'"),
        (["their_ops:Cube", "--kinks", "x"], "--kinks x"),
        (["torch.nn:Linear(3)", "--input", "4,3"], "cannot be made"),
        (["torch.nn:Linear(a, b)", "--input", "4,3"], "no list of plain values"),
        (["torch.nn:Linear(3, 5)+1", "--input", "4,3"], "(3, 5)+1 is no list of plain values"),
        (["torch.nn:Linear({[]: 1})", "--input", "4,3"], "({[]: 1}) is no list of plain values"),
        (["their_ops:Wrong", "--input", "={[]: 1}"], "--input ={[]: 1}: unhashable type: 'list'"),
        (["their_ops:Cube", "--only", "vmap", "--json", "no/such/folder/x"], "cannot be written"),
        (["their_ops:Cube", "--matrix"], "leave the target out"),
    ],
    ids=str,
)
def test_a_mistake_is_one_line(arguments, message, theirs, capsys):
    status, _, err = run(capsys, *arguments)
    assert status == 2
    assert message in err and len(err.strip().splitlines()) == 1, err


def test_all_of_our_own(capsys):
    lines = ("vmap", "backward against the reference", "bfloat16")
    status, out, _ = run(capsys, *(word for line in lines for word in ("--only", line)))
    assert status == 0 and out.strip().endswith("0 not right")
    assert {"gelu: right", "cross_entropy: right", "dropout2d: right", "MLP, relu: right"} <= set(
        out.splitlines()
    )


def test_the_matrix(capsys):
    status, out, _ = run(capsys, "--matrix", "--only", "vmap")
    assert status == 0
    header, _, row = out.strip().splitlines()
    assert header.startswith("| | linear | activations") and row.startswith("| vmap | 2 |")


def test_a_wrong_op_of_our_own_is_reported(capsys, monkeypatch):
    from manualnn.tools.checks import command

    wrong = {"linear": [("wrong", lambda x: x.detach() * x, (torch.randn(3),), {})]}
    monkeypatch.setattr(command, "catalogue", lambda: wrong)
    status, out, _ = run(capsys)
    assert status == 1 and "1 checked, 1 not right" in out


def test_help_and_no_tool(capsys):
    for arguments, status in ((["--help"], 0), (["check", "--help"], 0), ([], 2), (["chekc"], 2)):
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert stop.value.code == status
    assert "examples:" in capsys.readouterr().out
