"""``python -m manualnn explain``: its options, its exit status, and one line for a mistake."""

import json
import sys

import pytest
from explain_helpers import nothing_old_to_collect  # noqa: F401
from tool_helpers import module_of_ones_own, runner

from manualnn.__main__ import main
from manualnn.ops import activations

NET = ("--hidden_units", "[4, 3]", "--image_shape", "1,2,3", "--batch_size", "5")
MODULE = """
import torch
from manualnn import nn

def make_model():
    return nn.MLP([2, 3, 2], "tanh")

def number():
    return 3
"""


theirs = module_of_ones_own("their_nets", MODULE)
run = runner("explain")


def test_the_issues_example(theirs, capsys):
    status, out, err = run(capsys, "--hidden_units", "[128, 64]", "--dataset", "Digits")
    assert status == 0 and not err
    assert out.startswith(
        "Digits: 64 -> 128 -> 64 -> 10 units, m = 128 examples, float32, training"
    )
    assert "W[1], dW[1]" in out and "(128, 64)" in out and "17,226 parameters" in out


@pytest.mark.parametrize("spelled", ["[4, 3]", "4,3", "[4 3]"])
def test_a_network_without_the_training_part(spelled, theirs, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "lightning", None)
    options = ("--activation", "gelu", "--dropout", "0.25", "--num-classes", "2", "--eval")
    status, out, _ = run(capsys, "--hidden-units", spelled, "--image_shape", "6", *options)
    assert status == 0 and out.startswith("MLP: 6 -> 4 -> 3 -> 2 units") and "evaluation" in out
    assert "z Φ(z)" in out and "R[1]" not in out  # dropout does nothing in evaluation


def test_files_are_written(theirs, capsys):
    files = ("--json", "net.json", "--plot", "net.svg")
    status, out, err = run(capsys, *NET, "--dropout", "0.5", "--numbers", "--seed", "3", *files)
    assert status == 0 and not err and "R[1]" in out and "steps agree with autograd" in out
    written = json.loads((theirs / "net.json").read_text())
    assert written["sizes"] == [6, 4, 3, 10] and written["numbers"]["agrees"] is True
    assert (theirs / "net.svg").read_text().startswith("<?xml")
    status, out, err = run(capsys, *NET, "--json", "-")
    assert status == 0 and json.loads(out)["examples"] == 5 and err.startswith("MLP: ")


def test_numbers_alone_is_enough(theirs, capsys):
    status, out, _ = run(capsys, "--numbers")
    assert status == 0 and "MLP: 2 -> 3 -> 2 units" in out
    assert "the same, exactly" in out and "dW[2] = 1/m dZ[2] A[1]ᵀ" in out


def test_a_number_that_differs_is_exit_status_1(theirs, capsys, monkeypatch):
    monkeypatch.setattr(activations.Tanh, "g_prime_a", staticmethod(lambda a: 1 - a))
    status, out, _ = run(capsys, "--numbers", "--activation", "tanh", "--json", "net.json")
    assert status == 1 and "steps DIFFER from autograd: g′(Z[1]), dZ[1]" in out
    assert json.loads((theirs / "net.json").read_text())["numbers"]["agrees"] is False


def test_a_model_of_ones_own_and_of_torchvision(theirs, capsys):
    status, out, _ = run(capsys, "their_nets:make_model", "--input", "3,2", "--numbers")
    assert status == 0 and "make_model: 2 -> 3 -> 2 units, m = 3" in out
    options = ("--size", "32", "--batch", "2")
    status, out, _ = run(capsys, "torchvision:squeezenet1_1", *options)
    assert status == 0 and "Convolution, 26 times: manualnn.ops.convolutions" in out
    assert "Cat, 8 times: torch's own" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give --hidden_units"),
        (["--hidden_units", "4"], "give --dataset, such as Digits, or --image_shape"),
        (
            ["--hidden_units", "4", "--dataset", "Nope"],
            "no dataset is called 'Nope'; known: Digits",
        ),
        (["--hidden_units", "4", "--dataset", "ImageFolder"], "needs --root"),
        (["--hidden_units", "4", "--dataset", "Digits", "--num_classes", "3"], "leave them out"),
        (
            ["--hidden_units", "4", "--image_shape", "5", "--split", "letters"],
            "belongs to --dataset",
        ),
        ([*NET, "--activation", "what"], "unknown activation 'what'; known are CELU"),
        ([*NET, "--activation", "glu"], "activation 'glu' cannot be used in a hidden layer"),
        ([*NET, "--dropout", "2"], "dropout probability has to be between 0 and 1"),
        ([*NET, "--input", "3,4"], "--input is of a model"),
        ([*NET, "--plot", "net.what"], "--plot net.what: Format 'what' is not supported"),
        ([*NET, "--plot", "no/such/net.svg"], "cannot be written"),
        ([*NET, "--json", "no/such/net.json"], "cannot be written"),
        (["their_nets:make_model"], "make_model cannot be explained: "),
        (
            ["their_nets:make_model", "--hidden_units", "4"],
            "--hidden_units shapes a network of its own",
        ),
        (["their_nets:number"], "number() returns int"),
        (["torch.nn:LSTM(3, 4)", "--input", "2,3"], "no op that is written by hand"),
        (["torch.nn:Conv1d(1, 2, 3)", "--input", "2,1,5", "--numbers"], "only fully connected"),
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
        (
            "manualnn.training.data",
            ["--hidden_units", "4", "--dataset", "Digits"],
            "'manualnn[train]'",
        ),
        ("matplotlib.figure", [*NET, "--plot", "net.svg"], "pip install matplotlib"),
    ],
)
def test_what_is_not_installed(missing, arguments, message, theirs, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, missing, None)
    status, _, err = run(capsys, *arguments)
    assert status == 2 and message in err and len(err.strip().splitlines()) == 1


def test_options_that_cannot_be(capsys):
    for wrong in (
        ["--hidden_units", "[4"],
        ["--hidden_units", "[0]"],
        ["--image_shape", "1,2"],
        ["--batch_size", "0"],
        ["--dropout", "much"],
    ):
        with pytest.raises(SystemExit) as stop:
            main(["explain", *wrong])
        assert stop.value.code == 2
    with pytest.raises(SystemExit) as stop:
        main(["explain", "--help"])
    assert stop.value.code == 0 and "examples:" in capsys.readouterr().out


def test_ctrl_c(theirs, capsys, monkeypatch):
    from manualnn.tools.explanations import command

    def pressed(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "explain", pressed)
    status, _, err = run(capsys, *NET)
    assert status == 130 and err.strip() == "interrupted"
