"""A disk that takes no more, a log folder that takes nothing, Ctrl-C: one line, the last checkpoint kept."""

import errno
import os
import re

import pytest
import torch
from command_line import SMALL, message
from forked import server

from manualnn.training.run.saving import cause_of, disk_fault

RUN = "logs/Digits/version_0"
LAST = f"{RUN}/checkpoints/last.ckpt"
ARGS = ["fit", *SMALL, "--trainer.max_epochs", "4"]  # 3 steps an epoch
HINT = f"kept: {LAST}; go on with: python train.py fit --ckpt_path {LAST}"


def last_step(folder) -> int:
    return torch.load(folder / LAST, weights_only=True)["global_step"]


def test_a_disk_that_is_full_at_a_checkpoint(tmp_path):
    # The configuration; then best.ckpt and last.ckpt at the end of each epoch.
    status, run = server().run(tmp_path, *ARGS, plant=["full_disk", ".part", 5])
    assert status == 2, run.err
    said = r"train.py: logs\S+/(best|last).ckpt could not be written: No space left on device; "
    assert re.match(said, run.message)
    assert run.message.endswith(HINT)
    assert last_step(tmp_path) in (3, 6)
    assert not list((tmp_path / RUN).rglob("*.part"))
    # There is room again.
    assert server().run(tmp_path, "fit", "--ckpt_path", "last")[0] == 0
    assert last_step(tmp_path) == 12


@pytest.mark.parametrize("number", [2, 25])
def test_a_disk_that_is_full_for_the_curves(tmp_path, number):
    status, run = server().run(tmp_path, *ARGS, plant=["full_disk", "tfevents", number])
    assert status == 2, run.err
    assert run.message.startswith(
        f"train.py: the run's folder {RUN} could not be written: No space"
    )
    if number == 2:
        assert run.message.endswith(
            "no checkpoint was written yet, it comes at the end of an epoch"
        )
    else:
        assert run.message.endswith(HINT)
        assert 0 < last_step(tmp_path) < 12
        assert server().run(tmp_path, "fit", "--ckpt_path", "last")[0] == 0


def test_a_disk_that_is_full_already(tmp_path):
    status, run = server().run(tmp_path, *ARGS, plant=["small_files", 1000])
    assert status == 2, run.err
    assert "the log folder logs/Digits cannot be written: File too large" in run.message
    assert not (tmp_path / "logs").exists()


def test_a_limit_of_the_system_on_the_size_of_a_file(tmp_path):
    # Larger than what the curves need, smaller than a checkpoint; the monitor writes as the clock allows.
    args = [*ARGS, "--monitor.every", "off"]
    status, run = server().run(tmp_path, *args, plant=["small_files", 8000])
    assert status == 2, run.err
    assert (
        f"{RUN}/checkpoints/best.ckpt could not be written: File too large; no checkpoint"
        in run.message
    )
    assert not list((tmp_path / RUN).rglob("*.part")) + list((tmp_path / RUN).rglob("*.ckpt"))


def test_ctrl_c_while_a_checkpoint_is_written(tmp_path):
    status, run = server().run(tmp_path, *ARGS, plant=["ctrl_c_in_write", 4])
    assert status == 130, run.err
    assert "Traceback" not in run.err
    assert run.err.splitlines()[-1] == f"interrupted; {HINT}"
    assert last_step(tmp_path) == 3
    assert not list((tmp_path / RUN).rglob("*.part"))


def test_ctrl_c_while_the_first_checkpoint_is_written(tmp_path):
    status, run = server().run(tmp_path, *ARGS, plant=["ctrl_c_in_write", 1])
    assert status == 130
    assert run.err.splitlines()[-1].startswith("interrupted; no checkpoint was written yet")


def test_a_log_folder_that_cannot_be_written(run, tmp_path, capsys):
    # Root may write where permissions say no; a file in the way stops everyone.
    (tmp_path / "logs").write_text("a file")
    assert run(*ARGS) == 2
    assert message(capsys).startswith("the log folder logs/Digits cannot be written: ")
    (tmp_path / "logs").unlink()
    assert run("fit", *SMALL, "--trainer.max_epochs", "1") == 0
    before = last_step(tmp_path)
    (tmp_path / RUN / "config.yaml").unlink()
    (tmp_path / RUN / "config.yaml").mkdir()
    capsys.readouterr()
    assert run("fit", *SMALL, "--ckpt_path", LAST, "--trainer.max_epochs", "2") == 2
    assert f"{RUN}/config.yaml is not the configuration of a run: it is no file" in message(capsys)
    assert last_step(tmp_path) == before


def test_a_log_folder_that_goes_while_the_run_is_on(tmp_path):
    status, run = server().run(tmp_path, *ARGS, plant=["folder_goes", RUN, 7])
    assert status == 2, run.err
    assert f"{RUN}" in run.message and "could not be written: " in run.message
    assert run.message.endswith(
        f"; the checkpoints are no longer there: {RUN}/checkpoints was removed"
    )


def test_only_a_file_that_could_not_be_written_counts(tmp_path):
    fault = OSError(errno.ENOSPC, "No space left on device")
    try:
        try:
            raise fault
        except OSError as error:
            raise ValueError("you tried to log 0.5 which is currently not supported") from error
    except ValueError as error:
        assert cause_of(error, OSError) is fault
        assert disk_fault(error, tmp_path).endswith("could not be written: No space left on device")
    gone = FileNotFoundError(errno.ENOENT, "No such file or directory", "elsewhere/picture.png")
    assert disk_fault(gone, tmp_path) == disk_fault(KeyError("a"), tmp_path) == ""
    assert os.fspath(tmp_path) in disk_fault(
        FileNotFoundError(errno.ENOENT, "No such file or directory", str(tmp_path / "x")), tmp_path
    )
