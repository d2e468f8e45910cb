"""Mistakes of a person at the command line: each ends in one short line that says what to do."""

import shutil
import subprocess
import sys

import pytest
from command_line import ROOT, SMALL, message

from manualnn.training import ImageClassifier, ImageData, TrainingError

OWN = """
import torch

class Narrow(torch.nn.Sequential):
    def __init__(self):
        super().__init__(torch.nn.Flatten(), torch.nn.Linear(63, 10))

class Buggy(torch.nn.Linear):
    def __init__(self):
        super().__init__(64, 10)

    def forward(self, images):
        return self.nowhere(images)
"""
SHORT = "OneCycleLR --lr_scheduler.max_lr 0.1 --lr_scheduler.total_steps 5"


def test_the_model_and_the_data_are_beside_each_other():
    assert ImageClassifier.__module__ == "manualnn.training.classifier"
    assert ImageData.__module__ == "manualnn.training.data.module"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--no_such_option 1", "no option is called --no_such_option; --help lists all"),
        ("--data.batch_sise 5", "did you mean --data.batch_size?"),
        ("--batch_size 5", "did you mean --data.batch_size?"),
        ("--lr 5", "did you mean --optimizer.lr?"),
        ("--model.hidden_units 5", "--model.hidden_units 5: needed is a list of whole numbers"),
        ("--data.flip maybe", "--data.flip maybe: needed is true or false"),
        ("--model.loss foo", "--model.loss foo: needed is one of cross_entropy, quadratic"),
        ("--optimizer.lr abc", "--optimizer.lr abc: needed is a number"),
        ("--optimizer.learning 5", "SGD has no option --optimizer.learning; it has lr, momentum"),
        ("--optimizer Sdg", "--optimizer Sdg: no class is called so; did you mean SGD?"),
        ("--lr_scheduler StepLR", "StepLR needs --lr_scheduler.step_size"),
        ("--model.network torch.nn.Nope", "--model.network torch.nn.Nope: module 'torch.nn' has"),
    ],
)
def test_what_the_parser_refuses_is_one_short_line(run, capsys, options, words):
    assert run("fit", *SMALL, *options.split()) == 2
    said = message(capsys)
    assert words in said
    assert len(said) < 200


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--lr_scheduler StepLR --lr_scheduler.step_size 0", "StepLR fails at move 1 of the 10"),
        (f"--lr_scheduler {SHORT}", "OneCycleLR fails at move 6 of the 10 of this run: Tried"),
        (f"--lr_scheduler_interval step --lr_scheduler {SHORT}", "fails at move 6 of the 30"),
        ("--lr_scheduler ReduceLROnPlateau --lr_scheduler.monitor val/los", "known: train/loss"),
        ("--checkpoint.monitor val/accuracy", "known: train/loss, train/acc, val/loss, val/acc"),
        ("--data.batch_size 5000", "5000"),
        ("--experiment my/../../x", "--experiment my/../../x leads out of logs/"),
        ("--experiment /x", "--experiment /x leads out of logs/"),
        ("--trainer.logger.save_dir /proc/nope", "the log folder /proc/nope/Digits cannot be"),
        ("--trainer.logger.save_dir file", "the log folder file/Digits cannot be written: Not a"),
    ],
)
def test_a_start_that_fails_is_one_line_and_leaves_no_folder(run, tmp_path, capsys, options, words):
    (tmp_path / "file").write_text("")
    assert run("fit", *SMALL, *options.split()) == 2
    assert words in message(capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    "options",
    [
        "ModelCheckpoint --trainer.callbacks.filename best",
        "ModelCheckpoint --trainer.callbacks.save_last true",
        "OnExceptionCheckpoint --trainer.callbacks.dirpath logs/Digits/version_0/checkpoints "
        "--trainer.callbacks.filename averaged",
    ],
)
def test_another_callback_that_would_write_the_runs_own_checkpoints(run, tmp_path, capsys, options):
    args = [*SMALL, "--trainer.max_epochs", "1", "--trainer.callbacks+"]
    assert run("fit", *args, *options.split()) == 2
    assert "checkpoint: give it another filename or dirpath" in message(capsys)
    assert not list(tmp_path.glob("logs/**/*.ckpt"))
    elsewhere = options.split()[0], "--trainer.callbacks.dirpath", "mine"
    named = "--trainer.callbacks.filename", "best"
    assert run("fit", *args, *elsewhere, *named) == 0


def test_a_log_folder_that_is_a_file(run, tmp_path, capsys):
    (tmp_path / "logs").write_text("")
    assert run("fit", *SMALL) == 2
    assert "the log folder logs/Digits cannot be written" in message(capsys)


def test_a_failed_start_leaves_the_runs_that_were_there(run, tmp_path):
    assert run("fit", *SMALL, "--trainer.max_epochs", "1") == 0
    before = sorted(tmp_path.rglob("*"))
    assert run("fit", *SMALL, "--data.batch_size", "5000") == 2
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("steps", ["2", "0"])
def test_a_network_of_another_size_is_told_the_images(run, tmp_path, capsys, monkeypatch, steps):
    (tmp_path / "my_networks.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    options = ["--data.batch_size", "512", "--trainer.accelerator", "cpu"]
    options += ["--trainer.num_sanity_val_steps", steps]
    assert run("fit", "--model.network", "my_networks.Narrow", *options) == 2
    said = message(capsys)
    size = "(144, 1, 8, 8)" if steps == "2" else "(512, 1, 8, 8)"
    assert f"the network fails on its first images, {size}" in said
    assert "RuntimeError" in said
    assert "63" in said
    assert (tmp_path / "logs").exists() == (steps == "0")  # there the training had begun
    with pytest.raises(AttributeError, match="nowhere"):
        run("fit", "--model.network", "my_networks.Buggy", *options)
    del sys.modules["my_networks"]


@pytest.mark.parametrize("name", ["glu", "softmax2d", "threshold", "GLU", "rellu"])
def test_activations_that_no_hidden_layer_can_have(name):
    with pytest.raises(TrainingError) as refused:
        ImageClassifier(hidden_units=[8], activation=name)
    known = str(refused.value).split("known: ")[1].split(", ")
    assert {"ReLU", "LeakyReLU", "GELU", "PReLU"} <= set(known)
    assert not {"GLU", "Softmax2d", "Threshold"} & set(known)
    for other in known:
        ImageClassifier(hidden_units=[8], activation=other)


def test_a_message_starts_on_a_line_of_its_own(run, capsys):
    assert run("fit", *SMALL, "--optimizer.lr", "1e30") == 2
    assert capsys.readouterr().out.endswith("\n")


def test_without_tensorboard_it_is_not_advertised(run, capsys):
    assert run("fit", *SMALL, "--trainer.max_epochs", "1", "--trainer.logger", "CSVLogger") == 0
    printed = capsys.readouterr().out
    assert "tensorboard" not in printed
    assert "curves" in printed


def test_help_is_not_a_list_of_every_module(run, capsys):
    with pytest.raises(SystemExit):
        run("fit", "--help")
    assert "torch.nn.Conv2d" not in capsys.readouterr().out


SLOW = """
import os, signal, time

try:
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(60)
except KeyboardInterrupt:
    pass  # as libraries do that try one import after another

def main():
    return 0
"""


def test_ctrl_c_while_importing(tmp_path):
    package = tmp_path / "manualnn" / "training"
    package.mkdir(parents=True)
    for folder in (package.parent, package):
        (folder / "__init__.py").touch()
    (package / "cli.py").write_text(SLOW)
    shutil.copy(ROOT / "train.py", tmp_path)
    command = [sys.executable, str(tmp_path / "train.py")]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 130
    assert ended.stderr == "interrupted\n"
