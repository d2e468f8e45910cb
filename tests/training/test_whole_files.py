"""A file is what was written, or is refused; a disk that takes no more costs nothing that was whole."""

import os
import random
import shlex
import tempfile
import threading
import zipfile
from pathlib import Path

import pytest
import torch
from command_line import SMALL, message
from forked import server
from sweep_helpers import FOLDER, study_in, without_training, written

from manualnn.training.data import catalogue
from manualnn.training.deploy import Trained
from manualnn.training.errors import DiskError, TrainingError
from manualnn.training.experiments import study as studies
from manualnn.training.run.configuration import check_writable
from manualnn.training.run.folder import alone, locked, new_run, remove_unused
from manualnn.training.run.saving import verify

RUN = "logs/Digits/version_0"
LAST = f"{RUN}/checkpoints/last.ckpt"
ONE_EPOCH = [*SMALL, "--trainer.max_epochs", "1", "--monitor.every", "off"]


# Checkpoints.


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    status, run = server().run(folder, "fit", *ONE_EPOCH)
    assert status == 0, run.err
    return folder / LAST


def test_a_flipped_bit_is_refused_or_harmless(checkpoint, tmp_path):
    raw, draw = checkpoint.read_bytes(), random.Random(1)
    want = torch.load(checkpoint, weights_only=True)["state_dict"]
    path, refused = tmp_path / "flipped.ckpt", 0
    for _ in range(150):
        at = draw.randrange(len(raw))
        path.write_bytes(raw[:at] + bytes([raw[at] ^ 1 << draw.randrange(8)]) + raw[at + 1 :])
        try:
            got = Trained.load(path).model.state_dict()
        except TrainingError as error:
            assert str(error).startswith(f"{path} cannot be read as a checkpoint")
            refused += 1
        else:
            assert all(torch.equal(got[name], want[name]) for name in want)
    assert refused > 20


def test_a_bit_of_a_weight_is_refused_by_every_command(checkpoint, tmp_path, run, capsys):
    raw = bytearray(checkpoint.read_bytes())
    with zipfile.ZipFile(checkpoint) as archive:
        record = max(archive.infolist(), key=lambda record: record.file_size)
    raw[record.header_offset + 200] ^= 1
    (tmp_path / "flipped.ckpt").write_bytes(raw)
    for subcommand in ("fit", "test", "validate", "predict", "export"):
        form = ["--format", "safetensors"] if subcommand == "export" else ONE_EPOCH
        capsys.readouterr()
        assert run(subcommand, "--ckpt_path", "flipped.ckpt", *form) == 2
        assert "flipped.ckpt cannot be read as a checkpoint: it is damaged, in " in message(capsys)


def test_a_packed_archive_is_refused_before_it_is_unpacked(tmp_path):
    path = tmp_path / "packed.ckpt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(10**6))
    with pytest.raises(TrainingError, match="what torch.save does not write"):
        verify(path)


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c.pop("state_dict"),
        lambda c: c.pop("loops"),
        lambda c: c.update(loops={"fit_loop": 3}),
        lambda c: c.update(global_step="3"),
        lambda c: c.update(optimizer_states=[]),
        lambda c: c["optimizer_states"][0].pop("param_groups"),
        lambda c: c.update(callbacks=[1]),
        lambda c: c.update(lr_schedulers=[{}]),
        lambda c: c.update(settings=4),
        lambda c: c.update({"pytorch-lightning_version": "x"}),
        lambda c: c.update({"pytorch-lightning_version": None}),
        lambda c: c.update({"pytorch-lightning_version": "0.1", "callbacks": None}),
    ],
)  # fmt: skip
@pytest.mark.one_in(3)
def test_a_malformed_state_is_refused_before_the_first_step(
    checkpoint, run, tmp_path, capsys, change
):
    (tmp_path / "run").mkdir()
    path = tmp_path / "run/malformed.ckpt"
    content = torch.load(checkpoint, weights_only=True)
    change(content)
    torch.save(content, path)
    args = [*SMALL, "--monitor.every", "off", "--trainer.max_epochs", "2"]
    assert run("fit", *args, "--ckpt_path", path) == 2
    assert str(path) in message(capsys)
    assert not list(tmp_path.glob("logs/**/*.ckpt"))


# Runs that are started at once.


def test_each_of_several_gets_a_folder(tmp_path):
    numbers, barrier, parent = [], threading.Barrier(8), tmp_path / "logs/a"

    def begin():
        barrier.wait()
        with new_run(parent) as number:
            numbers.append(number)
            barrier.wait()

    threads = [threading.Thread(target=begin) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(numbers) == list(range(8))


def test_fits_in_processes_of_their_own(tmp_path):
    runs = [server().start(tmp_path, ["fit", *ONE_EPOCH]) for _ in range(4)]
    assert [run.wait() for run in runs] == [0] * 4, [run.err for run in runs]
    assert len(list(tmp_path.glob("logs/Digits/version_[0-3]/checkpoints/last.ckpt"))) == 4


def test_a_folder_that_goes_while_it_is_waited_for(tmp_path):
    with alone(tmp_path / "a"):
        (tmp_path / "a").rmdir()
        with alone(tmp_path / "a"):
            assert (tmp_path / "a").is_dir()


@pytest.fixture
def goes_once(monkeypatch):
    """Lets a folder go right after it was made, once: another run that had failed removes it."""

    def arm(folder):
        made, gone = Path.mkdir, []

        def mkdir(self, *args, **options):
            made(self, *args, **options)
            if self == folder and not gone:
                gone.append(self)
                self.rmdir()

        monkeypatch.setattr(Path, "mkdir", mkdir)
        return gone

    return arm


@pytest.mark.parametrize(
    "enter",
    [
        lambda folder: alone(folder),
        lambda folder: locked(folder),
        lambda folder: locked(folder / "version_0"),
        lambda folder: new_run(folder),
        lambda folder: catalogue._workplace(folder),
    ],
)
@pytest.mark.parametrize("part", ["logs/a", "logs"])
def test_a_folder_that_goes_when_it_was_just_made(tmp_path, goes_once, enter, part):
    gone = goes_once(tmp_path / part)
    with enter(tmp_path / "logs/a"):
        assert gone and (tmp_path / "logs/a").is_dir()


def test_looking_whether_a_run_can_be_written_makes_and_removes_nothing(tmp_path, monkeypatch):
    for name in ("mkdir", "rmdir"):
        monkeypatch.setattr(Path, name, None)
    check_writable(tmp_path / "logs/a")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_goes_while_it_is_looked_whether_it_can_be_written(tmp_path, monkeypatch):
    folder, real, tried = tmp_path / "logs/a", tempfile.TemporaryFile, []
    folder.mkdir(parents=True)

    def file(dir):
        if not tried:
            folder.rmdir()
        tried.append(dir)
        return real(dir=dir)

    monkeypatch.setattr(tempfile, "TemporaryFile", file)
    check_writable(folder)
    assert tried == [folder, folder.parent]


@pytest.mark.parametrize("kind", ["a link to nothing", "a file", "a file above"])
def test_where_no_folder_can_be_made(tmp_path, kind):
    place = tmp_path / ("logs" if kind == "a file above" else "logs/a")
    place.parent.mkdir(exist_ok=True)
    place.symlink_to("nowhere") if kind == "a link to nothing" else place.write_text("")
    with pytest.raises(DiskError, match="logs/a cannot be written: "):
        check_writable(tmp_path / "logs/a")


def test_a_failed_run_leaves_the_folder_to_one_that_starts(tmp_path):
    parent = tmp_path / "logs/a"
    with alone(parent):
        (parent / "version_0").mkdir()
        failed = threading.Thread(target=remove_unused, args=[parent / "version_0"])
        failed.start()
        failed.join(0.3)
        assert parent.is_dir()  # in it a run makes a folder of its own now
    failed.join()
    assert not (tmp_path / "logs").exists()


# A disk that takes no more.


def sweep_args(folder) -> list:
    return ["sweep", "--config", written(folder, sweep={"n_trials": 3}), "--monitor.every", "off"]


def test_a_trial_that_the_disk_ended_is_not_spent(tmp_path):
    args = sweep_args(tmp_path)
    status, run = server().run(tmp_path, *args, plant=["full_disk", ".part", 5])
    assert status == 2, run.err
    assert "No space left on device; " in run.message
    done = run.message.partition("No space left on device; ")[2]
    assert done.endswith(shlex.join(["python", "train.py", *map(str, args)]))
    status, run = server().run(tmp_path, *args)
    assert status == 0, run.err
    assert "3 trials: 3 complete" in run.out
    assert len(list((tmp_path / FOLDER).glob("trials.csv"))) == 1


def test_a_trial_of_which_nothing_could_be_written_is_not_spent(tmp_path, run, monkeypatch):
    ends = without_training(monkeypatch)
    ends[1] = DiskError("the disk is full")
    monkeypatch.setattr(studies, "_requeue", lambda *given: None)
    args = ["sweep", "--config", written(tmp_path), "--trainer.max_epochs", "1"]
    assert run(*args) == 2
    ends.clear()
    assert run(*args) == 0
    counting = studies.standing(study_in(tmp_path)).counting
    assert [trial.state.name for trial in counting] == ["COMPLETE"] * 3


@pytest.mark.parametrize("number", [5, 7, 2])  # in a run, the table, the first run
@pytest.mark.one_in(2)
def test_a_comparison_goes_on_when_there_is_room(tmp_path, number):
    vary = ["--vary", "model.activation", "[relu, tanh]", "--seeds", "1"]
    args = ["compare", *ONE_EPOCH, "--experiment", "small", *vary]
    status, run = server().run(tmp_path, *args, plant=["full_disk", ".part", number])
    assert status == 2, run.err
    assert "of 2 runs are done; go on with: python train.py compare" in run.message
    status, run = server().run(tmp_path, *args)
    assert status == 0, run.err
    assert [path.name for path in (tmp_path / "logs/small-compare").iterdir()] == ["version_0"]
    assert (tmp_path / "logs/small-compare/version_0/curves.png").stat().st_size > 10_000


# What begins as such a file does: another one is not written over.
OLDER = {"onnx": b"\x08an older one", "pt2": b"PK, an older one", "safetensors": b"12345678{older"}


@pytest.mark.parametrize("form", ["onnx", "pt2", "safetensors"])
@pytest.mark.one_in(3)
def test_an_export_that_finds_no_room_leaves_the_one_there_was(checkpoint, tmp_path, form):
    path = tmp_path / f"digits.{form}"
    path.write_bytes(OLDER[form])
    args = ["export", "--ckpt_path", checkpoint, "--output", path]
    status, run = server().run(tmp_path, *args, plant=["small_files", 1500])
    assert status == 2, run.err
    assert run.message == f"train.py: {path} cannot be written: File too large"
    assert path.read_bytes() == OLDER[form]
    assert sorted(x.name for x in tmp_path.iterdir() if x.name.startswith(".")) == []


def test_predictions_that_find_no_room_leave_those_there_were(tmp_path):
    status, run = server().run(tmp_path, "fit", *ONE_EPOCH)
    assert status == 0, run.err
    args = ["predict", "--ckpt_path", "last"]
    assert server().run(tmp_path, *args)[0] == 0
    before = (tmp_path / RUN / "predictions.csv").read_bytes()
    status, run = server().run(tmp_path, *args, plant=["full_disk", ".part", 1])
    assert status == 2, run.err
    assert "predictions.csv" in run.message and "No space left on device" in run.message
    assert (tmp_path / RUN / "predictions.csv").read_bytes() == before


@pytest.mark.parametrize("option", ["--experiment", "--ckpt_path", "--config", "--data.root"])
def test_a_name_that_is_too_long(run, tmp_path, capsys, option):
    assert run("fit", *ONE_EPOCH, option, "x" * 256) in (0, 2)  # Digits lie in no folder
    if option != "--data.root":
        assert "File name too long" in message(capsys) or option == "--config"


# What is printed.


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("mysql://me:secret@h/db", "mysql://me:***@h/db"),
        ("postgresql://h/db?user=u&password=secret", "postgresql://h/db?password=***&user=***"),
        ("postgresql//u:secret@h/db", "that --sweep.storage names"),
        ("postgresql://u:secret@h:port/db", "that --sweep.storage names"),
        ("postgresql://u:p@secret@h/db", "that --sweep.storage names"),
        ("postgresql://u:p@x/secret@h/db", "that --sweep.storage names"),
        ("postgresql://u:p@x?secret@h/db", "that --sweep.storage names"),
        ("mysql+pymysql://u:secret@h/d@b", "that --sweep.storage names"),
        ("postgresql://u:%40@h:5432/db", "postgresql://u:***@h:5432/db"),
        ("sqlite:///logs/a b/study.db", "sqlite:///logs/a b/study.db"),
        ("sqlite:///me@home/study.db", "sqlite:///me%40home/study.db"),
    ],
)
@pytest.mark.one_in(2)
def test_no_password_is_printed(run, tmp_path, capsys, url, shown):
    assert studies.shown_url(url) == shown
    said = f"connection to '{url}' failed: password 'secret'"
    assert "secret" not in studies.hide_secrets(said, url) or "secret" not in url
    if url.startswith("sqlite"):
        return
    assert run(*sweep_args(tmp_path), "--sweep.storage", url) == 2
    printed = capsys.readouterr()
    assert "secret" not in printed.out + printed.err and "train.py: " in printed.err


def test_a_command_in_a_message_is_one_for_the_shell(run, tmp_path, capsys):
    name = "my run; echo 'oops'"
    assert run("fit", *ONE_EPOCH, "--experiment", name) == 0
    last = f"logs/{name}/version_0/checkpoints/last.ckpt"
    os.remove(tmp_path / last.replace("last", "best"))
    os.remove(tmp_path / last)
    capsys.readouterr()
    assert run("fit", "--ckpt_path", "last", "--experiment", name) == 2
    words = shlex.split(message(capsys).partition("python train.py ")[2])
    assert words == ["fit", "--config", f"logs/{name}/version_0/config.yaml"]
