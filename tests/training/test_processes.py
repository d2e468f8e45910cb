"""Two processes share a run: the weights of one with the joined batch; when one dies, the other ends."""

import os
import signal
import socket
import time
from pathlib import Path

import pytest
import torch
from command_line import SMALL
from forked import server

from manualnn.training.data.batches import EpochShuffle, Share

LAST = "logs/Digits/version_0/checkpoints/last.ckpt"
# 1408 of the 1437 training images: 44 batches of 32, which two processes share evenly.
STEPS = 50
ARGS = (
    "fit --model.hidden_units [16] --model.activation tanh --optimizer.momentum 0.9 "
    f"--data.val_fraction 0.0202 --trainer.max_steps {STEPS} --trainer.precision 64-true "
    "--trainer.accelerator cpu"
).split()
DDP = "--trainer.strategy ddp --trainer.devices 2".split()
TWO = ["fit", *SMALL, *DDP, "--trainer.max_epochs", "-1"]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    content = torch.load(folder / LAST, weights_only=True)
    assert content["global_step"] == STEPS
    return content["state_dict"]


def test_two_processes_end_with_the_weights_of_one_with_the_joined_batch(tmp_path):
    env = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
    env["NODE_RANK"] = "0"
    both = [
        server().start(
            tmp_path / "two", [*ARGS, *DDP, "--data.batch_size", "16"],
            env={**env, "LOCAL_RANK": str(rank)},
        )
        for rank in range(2)
    ]  # fmt: skip
    for run in both:
        assert run.wait(120) == 0, run.err
    status, run = server().run(tmp_path / "one", *ARGS, "--data.batch_size", "32")
    assert status == 0, run.err
    ours, theirs = weights(tmp_path / "two"), weights(tmp_path / "one")
    assert ours.keys() == theirs.keys() and len(ours) >= 4
    start = server().run(tmp_path / "start", *ARGS, "--trainer.max_steps", "1")[1]
    moved = torch.load(start.folder / LAST, weights_only=True)["state_dict"]
    for name, value in ours.items():
        if value.is_floating_point():
            assert value.dtype == torch.float64
        assert torch.allclose(value, theirs[name], rtol=1e-6, atol=1e-9), name
    weight = "network.1.0.weight"
    assert (ours[weight] - moved[weight]).abs().max() > 0.01  # it has learned meanwhile


@pytest.mark.parametrize(("count", "processes", "batch"), [(96, 2, 8), (96, 3, 4), (97, 2, 8)])
def test_what_the_processes_take_is_what_one_would_take(count, processes, batch):
    images = range(count)
    whole, epoch = EpochShuffle(images, 5), 3
    whole.set_epoch(epoch)
    order = list(whole)
    shares = []
    for rank in range(processes):
        share = Share(images, processes, rank, 5)
        share.set_epoch(epoch)
        shares.append(list(share))
    assert len({len(share) for share in shares}) == 1
    for i in range(0, len(shares[0]), batch):
        taken = [index for share in shares for index in share[i : i + batch]]
        joined = order[i * processes : (i + batch) * processes]
        assert sorted(index for index in taken if index >= 0) == sorted(joined)
    # Each image once, and none in the place of what cannot be shared evenly.
    assert sorted(index for share in shares for index in share if index >= 0) == list(images)


def started(folder: Path, plant: list, more: list = ()):
    """A run of two processes that has left its first checkpoint, and the second one's pid."""
    run = server().start(folder, [*TWO, *more], plant)
    end = time.monotonic() + 120
    while not (folder / LAST).exists():
        assert time.monotonic() < end, run.err
        time.sleep(0.01)
    return run, int((folder / "pid.1").read_text())


def wait_until_gone(pid: int) -> None:
    end = time.monotonic() + 60
    while is_there(pid):
        assert time.monotonic() < end, pid
        time.sleep(0.02)


def is_there(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_the_first_process_ends_when_another_is_killed(tmp_path):
    run, second = started(tmp_path, ["forking_launcher"])
    os.kill(second, signal.SIGKILL)
    assert run.wait(60) == 1
    assert run.message == (
        "train.py: process 1 of the run's 2 (0 to 1) died: SIGKILL; "
        f"kept: {LAST}; go on with: python train.py fit --ckpt_path {LAST}"
    )
    step = torch.load(tmp_path / LAST, weights_only=True)["global_step"]
    args = ["fit", "--ckpt_path", "last", *DDP, "--trainer.max_steps", step + 2]
    status, run = server().run(tmp_path, *args, plant=["forking_launcher"])
    assert status == 0, run.err
    assert torch.load(tmp_path / LAST, weights_only=True)["global_step"] == step + 2


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.one_in(2)
def test_a_process_that_was_stopped_ends_the_run(tmp_path, first):
    run, second = started(tmp_path, ["forking_launcher", None, 1.0])
    os.kill(run.pid if first else second, signal.SIGSTOP)
    try:
        wait_until_gone(second)
        assert run.wait(60) == (-signal.SIGKILL if first else 1)
    finally:
        if is_there(second):
            os.kill(second, signal.SIGKILL)
    number = "0 of the run" if first else "1 of the run's 2 (0 to 1)"
    assert f"process {number} was stopped; kept: {LAST}" in run.err


def test_a_process_that_hangs_is_waited_for_as_long_as_the_strategy_says(tmp_path):
    more = ["--trainer.strategy", "DDPStrategy", "--trainer.strategy.timeout", "0:00:05"]
    run, second = started(tmp_path, ["hangs_at_step", 10], more)
    assert run.wait(60) == 1
    wait_until_gone(second)
    assert run.message.startswith("train.py: another process of the run hangs; kept: ")


@pytest.mark.parametrize(
    ("rank", "at_work", "hook"),
    [
        ("1", False, "training_step"),
        ("0", True, "training_step"),
        ("1", False, "on_train_epoch_end"),
        ("0", True, "validation_step"),
        ("1", True, "validation_step"),
    ],
)
@pytest.mark.one_in(3)
def test_a_process_that_hangs_ends_the_run(tmp_path, rank, at_work, hook):
    run, second = started(tmp_path, ["hangs_at_step", 10, rank, at_work, hook])
    assert run.wait(60) == 1
    wait_until_gone(second)
    assert run.message.startswith("train.py: no process of the run has got on for 4 s: one of them")
    assert f"; kept: {LAST}; go on with: " in run.message


@pytest.mark.parametrize(
    ("hook", "how", "seconds"),
    [
        ("training_step", "itself", (0.8, 1.0, 1.0, 1.0)),  # as long as always
        ("on_train_epoch_end", "itself", (0.0, 0.0, 6.0)),  # a callback works now and then
        ("on_train_epoch_end", "below", (0.0, 0.0, 6.0)),
        ("on_train_epoch_end", "many", (0.0, 0.0, 6.0)),
    ],
)
@pytest.mark.one_in(3)
def test_a_process_that_takes_its_time_does_not_hang(tmp_path, hook, how, seconds):
    args = ["fit", *SMALL, *DDP, "--trainer.max_steps", "12"]
    status, run = server().run(tmp_path, *args, plant=["slow_steps", hook, how, *seconds])
    assert status == 0, run.err


def test_the_others_end_when_the_first_is_killed(tmp_path):
    run, second = started(tmp_path, ["forking_launcher"])
    os.kill(run.pid, signal.SIGKILL)
    assert run.wait(60) == -signal.SIGKILL
    wait_until_gone(second)
    assert run.message.startswith(f"train.py: process 0 of the run died; kept: {LAST}; ")


def test_one_that_dies_before_it_takes_part_is_not_waited_for(tmp_path):
    run = server().start(tmp_path, TWO, ["forking_launcher", 3])
    assert run.wait(60) == 3
    assert run.message.startswith(
        "train.py: process 1 of the run's 2 (0 to 1) died: exit status 3; no checkpoint"
    )


def test_ctrl_c_ends_both_with_one_message(tmp_path):
    run, second = started(tmp_path, ["forking_launcher"])
    for pid in (second, run.pid):  # as a terminal does
        os.kill(pid, signal.SIGINT)
    assert run.wait(60) == 130
    wait_until_gone(second)
    said = f"interrupted; kept: {LAST}; go on with: python train.py fit --ckpt_path {LAST}"
    assert run.err.splitlines().count(said) == 1
    assert "Traceback" not in run.err and "train.py: " not in run.err


def test_two_processes_that_are_stopped_go_on_as_if_they_were_not(tmp_path):
    args = [*ARGS, *DDP, "--model.dropout", "0.2", "--data.batch_size", "16"]
    last = {}
    for name, plants in {
        "whole": [["forking_launcher"]],
        "stopped": [["both_at_step", "training_step", 21, "SIGTERM"], ["forking_launcher"]],
    }.items():
        for more, plant in zip((args, ["fit", "--ckpt_path", "last"]), plants, strict=False):
            run = server().start(tmp_path / name, more, plant)
            assert run.wait(120) == (143 if plant[0] == "both_at_step" else 0), run.err
        last[name] = torch.load(tmp_path / name / LAST, weights_only=True)
    ours, theirs = last["stopped"], last["whole"]
    assert ours["global_step"] == theirs["global_step"] == STEPS
    assert ours["place"] == theirs["place"]
    for name, value in ours["state_dict"].items():
        assert torch.equal(value, theirs["state_dict"][name]), name
