"""Kill -9 at any moment: the run goes on to the same weights and curves, from whole checkpoints."""

import os
import random
import signal
import stat
import time
from pathlib import Path

import pytest
from forked import server
from stopped_runs import (
    ARGS,
    LAST,
    RUN,
    STEPS,
    checkpoint,
    checkpoints_are_whole,
    curves,
    go_on,
    same,
    wait_for,
)

from manualnn.tools.files import replacing, replacing_all

COUNT = int(os.environ.get("KILL_COUNT", 4))


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[Path, float]:
    """The run that nothing happens to, and how long it takes from when its folder is there."""
    folder = tmp_path_factory.mktemp("whole")
    run = server().start(folder, ARGS)
    wait_for(folder / RUN)
    started = time.monotonic()
    assert run.wait() == 0, run.err
    return folder / RUN, time.monotonic() - started


SEED = int(os.environ.get("KILL_SEED", random.SystemRandom().randrange(2**32)))


@pytest.mark.parametrize("number", range(COUNT))
@pytest.mark.one_in(2)
def test_killed_at_a_random_moment(tmp_path, whole, number):
    reference, seconds = whole
    # One moment in each stretch of the run, so that all of it is tried.
    moment = (number + random.Random(SEED + number).random()) / COUNT * seconds
    print(f"seed {SEED}, killed {moment:.3f} s after the folder was there, of {seconds:.3f}")
    run = server().start(tmp_path, ARGS)
    wait_for(tmp_path / RUN)
    time.sleep(moment)
    os.kill(run.pid, signal.SIGKILL)
    assert run.wait() in (-signal.SIGKILL, 0)
    checkpoints_are_whole(tmp_path)
    same(go_on(tmp_path), reference)


# best.ckpt, last.ckpt of each epoch, in turn: the first two leave no checkpoint, or only best.ckpt.
@pytest.mark.parametrize(
    "plant",
    [
        ["in_save", 1],
        ["in_save", 2],
        ["in_save", 6],
        ["at_replace", 1, "best.ckpt", False],
        ["at_replace", 1, "last.ckpt", False],
        ["at_replace", 3, "last.ckpt", False],
        ["at_replace", 1, "best.ckpt", True],
        ["at_replace", 2, "last.ckpt", True],
        ["at_replace", 1, "config.yaml", False],
    ],
    ids=lambda plant: "-".join(map(str, plant)),
)
@pytest.mark.one_in(2)
def test_killed_at_the_worst_moment(tmp_path, whole, plant):
    status, run = server().run(tmp_path, *ARGS, plant=plant)
    assert status == -signal.SIGKILL, run.err
    checkpoints_are_whole(tmp_path)
    same(go_on(tmp_path), whole[0])


def test_killed_again_and_again(tmp_path, whole):
    plants = [
        ["at_replace", 3, "last.ckpt", False],
        # When it goes on: the curves that are cut, its configuration, the checkpoint.
        ["at_replace", 1, "events", False],
        ["at_replace", 1, "events", True],
        ["at_replace", 1, "config.yaml", False],
        ["in_save", 1],
        ["at_replace", 1, "last.ckpt", True],
    ]
    status, run = server().run(tmp_path, *ARGS, plant=plants[0])
    for plant in plants[1:]:
        assert status == -signal.SIGKILL, run.err
        checkpoints_are_whole(tmp_path)
        status, run = server().run(tmp_path, *LAST, plant=plant)
    assert status == -signal.SIGKILL, run.err
    same(go_on(tmp_path), whole[0])


def test_a_file_is_replaced_when_it_is_complete(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), replacing(path) as file:
        file.write(b"ne")
        file.flush()
        assert path.read_text() == "old"
        raise ZeroDivisionError
    assert [path.read_text(), *os.listdir(tmp_path)] == ["old", "file"]
    with replacing(path) as file:
        file.write(b"new")
    assert [path.read_text(), *os.listdir(tmp_path)] == ["new", "file"]


def test_what_is_no_file_is_not_replaced_by_one(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    kept = {"pipe": stat.S_ISFIFO, "folder": stat.S_ISDIR}
    if os.getuid() == 0:
        os.mknod(tmp_path / "null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
        kept["null"] = stat.S_ISCHR
    for name, kind in kept.items():
        for writer in (replacing, replacing_all):
            with pytest.raises(OSError, match="is a") as refusal, writer(tmp_path / name):
                raise AssertionError
            assert refusal.value.filename == str(tmp_path / name)
            assert kind(os.lstat(tmp_path / name).st_mode)


def test_a_link_that_a_person_names_is_followed_and_one_in_a_run_is_replaced(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    target, link = tmp_path / "elsewhere/target", tmp_path / "link"
    target.write_text("old")
    link.symlink_to("further")
    (tmp_path / "further").symlink_to(target)
    for text in ("new", "made anew"):
        with replacing_all(link) as new:
            new.write_text(text)
        assert (target.read_text(), link.is_symlink()) == (text, True)
        target.unlink()
    assert sorted(os.listdir(tmp_path)) == ["elsewhere", "further", "link"]
    (tmp_path / "further").unlink()
    os.mkfifo(tmp_path / "further")
    with pytest.raises(OSError, match="is a pipe"), replacing_all(link):
        raise AssertionError
    with replacing(link) as file:  # of a stranger's folder it may lead anywhere
        file.write(b"own")
    assert (link.read_text(), link.is_symlink()) == ("own", False)
    assert stat.S_ISFIFO((tmp_path / "further").stat().st_mode)


def test_the_bytes_are_on_the_disk_before_the_name_is(tmp_path, monkeypatch):
    done = []
    fsync, replace = os.fsync, os.replace
    kind = {True: "folder", False: "file"}

    def synced(handle):
        done.append(kind[stat.S_ISDIR(os.fstat(handle).st_mode)])
        done.append(os.fstat(handle).st_size if done[-1] == "file" else None)
        fsync(handle)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", lambda *names: (done.append("replaced"), replace(*names)))
    with replacing(tmp_path / "file") as file:
        file.write(b"new")
    assert done == ["file", 3, "replaced", "folder", None]


def test_a_run_that_still_goes_on_is_left_alone(tmp_path):
    run = server().start(tmp_path, [*ARGS, "--trainer.max_epochs", "-1"])
    wait_for(tmp_path / RUN / "checkpoints/last.ckpt")
    status, other = server().run(tmp_path, *LAST)
    assert status == 2
    assert other.message == f"train.py: the run {RUN} is still going on, in another process"
    os.kill(run.pid, signal.SIGKILL)
    run.wait()
    status, other = server().run(tmp_path, *LAST, "--trainer.max_epochs", "1")
    assert "still going on" not in other.err


def test_a_run_that_was_moved_keeps_its_best_epoch(tmp_path):
    # The first epoch has the largest loss.
    args = [*ARGS, "--checkpoint.monitor", "train/loss", "--checkpoint.mode", "max"]
    assert server().run(tmp_path, *args, "--trainer.max_epochs", "2")[0] == 0
    moved = tmp_path / RUN.with_name("version_3")
    (tmp_path / RUN).rename(moved)
    assert server().run(tmp_path, *LAST, "--trainer.max_epochs", "3")[0] == 0
    assert checkpoint(moved / "checkpoints/last.ckpt")["global_step"] == 3 * STEPS
    assert checkpoint(moved / "checkpoints/best.ckpt")["global_step"] == STEPS


def test_the_same_folder_by_another_name_is_the_same(tmp_path):
    # Without validation each epoch's best.ckpt replaces the one before, whose name is another now.
    args = [*ARGS, "--data.val_fraction", "0", "--trainer.max_epochs", "1"]
    assert server().run(tmp_path, *args)[0] == 0
    elsewhere = ["--trainer.logger.save_dir", tmp_path / "logs", "--trainer.max_epochs", "2"]
    assert server().run(tmp_path, *LAST, *elsewhere)[0] == 0
    for name in ("last", "best"):
        steps = checkpoint(tmp_path / RUN / f"checkpoints/{name}.ckpt")["global_step"]
        assert steps == 2 * 23  # of all 1437 images


def test_a_run_that_ended_within_an_epoch_goes_on(tmp_path):
    assert server().run(tmp_path, *ARGS, "--trainer.max_steps", STEPS + 5)[0] == 0
    status, run = server().run(tmp_path, *LAST, "--trainer.max_steps", 2 * STEPS)
    assert status == 0, run.err
    assert checkpoint(tmp_path / RUN / "checkpoints/last.ckpt")["global_step"] == 2 * STEPS
    steps = [step for step, _ in curves(tmp_path / RUN)["train/loss"]]
    assert steps == sorted(set(steps))
