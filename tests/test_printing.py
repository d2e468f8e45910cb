"""What is printed to a reader that goes away, or to a terminal that knows no letter but ASCII's."""

import os
import subprocess
import sys

import pytest
import torch
import torchvision_files as files
from command_line import ROOT, SMALL, launch

from manualnn.training.cli import main as cli

CLASSES = {"k\u00e4se": 8, "\u732b": 8}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a run whose classes have other letters, made where only ASCII can be printed."""
    folder = tmp_path_factory.mktemp("printing")
    files.pictures(folder / "pictures", CLASSES)
    args = "--data.dataset ImageFolder --data.root pictures --experiment a --data.batch_size 8"
    small = [*SMALL[:2], *SMALL[4:], "--trainer.max_epochs", "1"]
    ended = in_ascii(folder, "fit", *args.split(), *small)
    assert ended.returncode == 0, ended.stderr
    assert r"classes: k\xe4se, \u732b" in ended.stdout
    return folder


def in_ascii(folder, *args):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, str(ROOT / "train.py"), *args], cwd=folder, text=True, capture_output=True,
        env={**environment, "PYTHONIOENCODING": "ascii"},
    )  # fmt: skip


@pytest.mark.parametrize("form", ["table", "json"])
def test_a_class_name_that_cannot_be_printed(run, form):
    args = ["--ckpt_path", "best", "--image", "pictures", "--format", form, "--top", "2"]
    ended = in_ascii(run, "predict", *args)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count(r"k\xe4se") >= 16 and ended.stdout.count(r"\u732b") >= 16


def test_a_refusal_that_cannot_be_printed(run):
    ended = in_ascii(run, "predict", "--ckpt_path", "best", "--image", "\u732b.png")
    assert ended.returncode == 2
    assert ended.stderr == "train.py: there is no picture \\u732b.png\n"


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_run_whose_reader_goes(run, tmp_path, monkeypatch, unbuffered):
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
    args = ["--data.dataset", "ImageFolder", "--data.root", run / "pictures"]
    small = [*SMALL[:2], *SMALL[4:], "--data.batch_size", "4", "--trainer.max_epochs", "2"]
    process = launch(["fit", *args, *small, "--trainer.enable_progress_bar", "false"], tmp_path)
    if unbuffered:
        assert "classes: " in process.stdout.readline()  # the run goes on printing
    process.stdout.close()
    assert process.wait(100) == 141
    assert "Traceback" not in (said := process.stderr.read()) and "BrokenPipe" not in said
    for path in (paths := [*tmp_path.rglob("*.ckpt")]):
        assert torch.load(path, weights_only=True)["global_step"] > 0
    assert paths and not [*tmp_path.rglob("*.part")]


def test_a_broken_pipe_of_something_else_is_a_fault(monkeypatch):
    def fail(args):
        raise BrokenPipeError

    monkeypatch.setattr(cli, "_status", fail)
    with pytest.raises(BrokenPipeError):
        cli.main(["fit"])


def test_help_whose_reader_goes(tmp_path):
    process = launch(["fit", "--help"], tmp_path)
    process.stdout.close()
    assert process.wait(100) == 141
    assert process.stderr.read() == ""
