"""``python -m manualnn ledger``: models by name, its options, and one line for a mistake."""

import json
import os
import sys

import pytest
from tool_helpers import module_of_ones_own, runner

from manualnn.__main__ import main

MODULE = """
import torch

def make_model():
    return torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.GELU(), torch.nn.Linear(8, 2))

def number():
    return 3

name = "no model"
"""
INPUT = ("--input", "16,4")


theirs = module_of_ones_own("their_models", MODULE)
run = runner("ledger")


def test_a_model_of_torchvision(theirs, capsys):
    files = ("--json", "saved.json", "--plot", "saved.png")
    options = ("--size", "64", "--batch", "3", "--autocast", "bf16", "--memory", "24GiB")
    status, out, err = run(capsys, "torchvision:resnet18", *options, *files)
    assert status == 0 and not err
    assert out.startswith("resnet18, batch 3, autocast bfloat16: ") and "largest batch" in out
    assert json.loads((theirs / "saved.json").read_text())["target"] == "resnet18"
    assert (theirs / "saved.png").stat().st_size > 1000


def test_a_model_of_ones_own(theirs, capsys):
    sizes = {}
    for keep in ((), ("--keep", "less"), ("--keep", "all")):
        status, out, _ = run(capsys, "their_models:make_model", *INPUT, *keep, "--json", "-")
        assert status == 0
        sizes[keep] = json.loads(out)["ours"]["total"]
    assert sizes[()] == sizes["--keep", "less"] == 512
    assert sizes["--keep", "all"] == 1024
    status, out, _ = run(capsys, "torch.nn:Linear(4, 8)", *INPUT, "--eval", "--all")
    assert status == 0 and "the model's input" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["torchvision:resnet51"], "no model 'resnet51'; close to it: resnet"),
        (["torchvision:"], "torchvision has no model ''"),
        (["their_models"], "it reads package.module:Name"),
        (["their_models:nothing"], "their_models has no nothing"),
        (["their_models:number"], "number() returns int"),
        (["their_models:name"], "is str, not a model"),
        (["torch.nn:Linear"], "torch.nn:Linear is a class: give its arguments"),
        (["no_such_package:f"], "no_such_package cannot be imported"),
        (["their_models:make_model", "--input", "16,5"], "cannot be measured: "),
        (["their_models:make_model", "--input", "a"], "--input a"),
        (["their_models:make_model", "--memory", "much"], "--memory: 'much' is no size"),
        (["their_models:make_model", *INPUT, "--json", "no/such/x"], "cannot be written"),
        (["their_models:make_model", *INPUT, "--plot", "no/such/x.png"], "cannot be written"),
        (["their_models:make_model", *INPUT, "--plot", "x.what"], "cannot be written"),
        (["their_models:make_model", *INPUT, "--device", "what"], "--device what"),
    ],
    ids=str,
)
def test_a_mistake_is_one_line(arguments, message, theirs, capsys):
    status, _, err = run(capsys, *arguments)
    assert status == 2
    assert message in err and len(err.strip().splitlines()) == 1, err


@pytest.mark.parametrize(
    ("missing", "arguments", "message"),
    [
        ("torchvision", ["torchvision:resnet18"], "pip install torchvision"),
        (
            "matplotlib.figure",
            ["torch.nn:Linear(4, 8)", *INPUT, "--plot", "x.png"],
            "pip install matplotlib",
        ),
    ],
)
def test_what_is_not_installed(missing, arguments, message, theirs, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, missing, None)
    status, _, err = run(capsys, *arguments)
    assert status == 2 and message in err and len(err.strip().splitlines()) == 1


def test_options_that_cannot_be(capsys):
    for wrong in (
        ["--batch", "0"],
        ["--size", "x"],
        ["--autocast", "int8"],
        ["--keep", "some"],
        [],
    ):
        with pytest.raises(SystemExit) as stop:
            main(["ledger", *(["torchvision:resnet18"] if wrong else []), *wrong])
        assert stop.value.code == 2
    with pytest.raises(SystemExit) as stop:
        main(["ledger", "--help"])
    assert stop.value.code == 0 and "examples:" in capsys.readouterr().out


def test_a_reader_that_has_seen_enough_gets_no_traceback(monkeypatch, capfd):
    """As `| head` does."""
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w", closefd=False) as nobody:
        monkeypatch.setattr(sys, "stdout", nobody)
        assert main(["ledger", "torchvision:squeezenet1_1", "--size", "64", "--batch", "1"]) == 141
    os.close(write)
    assert "Traceback" not in capfd.readouterr().err
