"""What is printed to a reader that goes away, or to a terminal that knows no letter but ASCII's."""

import os

import pytest
import torch
import torchvision_files as files
from command_line import SMALL, launch
from forked import server

from manualnn.training.cli import command as cli

CLASSES = {"k\u00e4se": 8, "\u732b": 8}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a run whose classes have other letters, made where only ASCII can be printed."""
    folder = tmp_path_factory.mktemp("printing")
    files.pictures(folder / "pictures", CLASSES)
    args = "--data.dataset ImageFolder --data.root pictures --experiment a --data.batch_size 8"
    small = [*SMALL[:2], *SMALL[4:], "--trainer.max_epochs", "1"]
    status, ended = in_ascii(folder, "fit", *args.split(), *small)
    assert status == 0, ended.err
    assert r"classes: k\xe4se, \u732b" in ended.out
    return folder


def in_ascii(folder, *args):
    return server().run(folder, *args, plant=["ascii_alone"])


@pytest.mark.parametrize("form", ["table", "json"])
def test_a_class_name_that_cannot_be_printed(run, form):
    args = ["--ckpt_path", "best", "--image", "pictures", "--format", form, "--top", "2"]
    status, ended = in_ascii(run, "predict", *args)
    assert status == 0, ended.err
    assert ended.out.count(r"k\xe4se") >= 16 and ended.out.count(r"\u732b") >= 16


def test_a_refusal_that_cannot_be_printed(run):
    status, ended = in_ascii(run, "predict", "--ckpt_path", "best", "--image", "\u732b.png")
    assert status == 2
    assert ended.err == "train.py: there is no picture \\u732b.png\n"


@pytest.mark.parametrize("unbuffered", [False, True], ids=["", "1"])
def test_a_run_whose_reader_goes(run, tmp_path, unbuffered):
    args = ["--data.dataset", "ImageFolder", "--data.root", run / "pictures"]
    small = [*SMALL[:2], *SMALL[4:], "--data.batch_size", "4", "--trainer.max_epochs", "2"]
    args = ["fit", *args, *small, "--trainer.enable_progress_bar", "false"]
    os.mkfifo(tmp_path / "pipe")
    going = server().start(tmp_path, args, plant=["into_pipe", "pipe", unbuffered])
    with open(tmp_path / "pipe") as reader:
        if unbuffered:
            assert "classes: " in reader.readline()  # the run goes on printing
    assert going.wait(100) == 141
    assert "Traceback" not in going.err and "BrokenPipe" not in going.err
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
