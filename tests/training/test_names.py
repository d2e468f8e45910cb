"""Names from anywhere, as they are printed and written: what a terminal or a spreadsheet obeys is not."""

import csv
import os
import shutil

import pytest
import torch
import torchvision_files as files
from battery import EVERY_ROW
from command_line import SMALL, message, train
from data_helpers import ready, refusal
from forked import server
from PIL import Image
from trained_runs import QUICK, checkpoint

from manualnn.training.text.messages import one_line
from manualnn.training.text.names import brief, cell, few, shown

EVIL = "=cmd|'/C calc'!A0\x1b]0;owned\x07\x9b2J\u202e"


@pytest.fixture
def run(place, monkeypatch):
    return lambda line: train(place, *line.split(), monkeypatch=monkeypatch)


@pytest.mark.parametrize(
    ("name", "want"),
    [
        ("cat 1.png", "cat 1.png"),
        ("café/猫 ❤️👩‍🚀.png", "café/猫 ❤️👩‍🚀.png"),
        ("a\x1b[2Jb\x07\x7f\x9b\r\n\t", r"a\x1b[2Jb\x07\x7f\x9b\r\n\t"),
        (os.fsdecode(b"caf\xe9"), r"caf\udce9"),
        ("\u202egnp.exe\u2028\u2066", r"\u202egnp.exe\u2028\u2066"),
    ],
)
def test_what_a_terminal_obeys_is_shown_escaped(name, want):
    assert shown(name) == want
    assert shown(shown(name)) == want
    shown(name).encode()


@pytest.mark.parametrize("name", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1"])
def test_no_cell_of_a_table_begins_as_a_formula(name):
    assert cell(name)[0] in "'\\"
    assert cell(f"a{name}") == shown(f"a{name}")
    assert few(["a", name]) == f"a, {shown(name)}"


@pytest.mark.parametrize("form", ["table", "csv", "json"])
def test_class_names_of_a_strangers_checkpoint(run, place, tmp_path, capsys, form):
    content = torch.load(checkpoint(place), weights_only=True)
    content["ImageData"]["reading"]["class_names"] = [EVIL] * 10
    torch.save(content, tmp_path / "evil.ckpt")
    Image.new("L", (8, 8)).save(tmp_path / "a\x1b[2J.png")
    assert run(f"predict --ckpt_path {tmp_path}/evil.ckpt --image {tmp_path} --format {form}") == 0
    printed = capsys.readouterr().out
    assert all(character.isprintable() for character in printed.replace("\n", ""))
    assert "x1b]0;owned" in printed
    if form == "csv":
        row = next(csv.DictReader(printed.splitlines()))
        assert row["class"].startswith("'=cmd")
    assert (
        run(f"test --ckpt_path {tmp_path}/evil.ckpt --data.dataset Digits {' '.join(SMALL)}") == 2
    )
    assert r"=cmd|'/C calc'!A0\x1b]0;owned" in message(capsys)


def test_of_a_long_message_the_middle_is_left_out(run, tmp_path, capsys):
    long = "a\x07" * 50000
    assert run("test --ckpt_path " + long.replace("\x07", "_")) == 2
    said = message(capsys)
    assert len(said) < 2100 and "characters ...]" in said
    assert one_line(ValueError(long)).startswith(r"a\x07a\x07")
    assert brief("b" * 2000) == "b" * 2000


def test_names_that_are_no_utf8_and_names_that_act(tmp_path, monkeypatch, capsys):
    """Trained with all pictures of the monitors, tested, predicted and exported."""
    raw = os.fsdecode(b"caf\xe9")
    names = [raw, "=cmd\x1b[2J", "-dog"]
    files.pictures(tmp_path / "d", dict.fromkeys(names, 12))
    for path in list((tmp_path / "d" / raw).iterdir()):
        path.rename(path.with_name(os.fsdecode(b"\xff") + path.name))
    options = [
        "--data.dataset",
        "ImageFolder",
        "--data.root",
        tmp_path / "d",
        "--data.batch_size",
        "8",
    ]
    options += [
        "--model.hidden_units",
        "[4]",
        "--monitor.embedding",
        "true",
        "--monitor.every",
        "2",
    ]
    assert (
        train(tmp_path, "fit", *options, *QUICK, "--test_best", "true", monkeypatch=monkeypatch)
        == 0
    )
    (tmp_path / "elsewhere").mkdir()
    files.pictures(tmp_path / "elsewhere/test", dict.fromkeys(names, 3))
    other = ["--data.root", tmp_path / "elsewhere"]
    for rest in ([], other):
        line = ["predict", "--ckpt_path", "last", "--experiment", "ImageFolder", *rest]
        assert train(tmp_path, *line, monkeypatch=monkeypatch) == 0
    printed = capsys.readouterr()
    assert r"36 pictures, 3 classes: -dog, =cmd\x1b[2J, caf\udce9; training" in printed.out
    assert "9 predictions, of all 9 pictures in" in printed.out
    assert "\x1b[2J" not in printed.out + printed.err
    table = tmp_path / "logs/ImageFolder/version_0/predictions.csv"
    with table.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 9
    assert {row["class"] for row in rows} <= {"'-dog", r"'=cmd\x1b[2J", r"caf\udce9"}
    line = ["export", "--ckpt_path", checkpoint(tmp_path, "ImageFolder"), "--output", "model.pt2"]
    assert train(tmp_path, *line, monkeypatch=monkeypatch) == 0


def test_a_root_that_no_configuration_could_keep_is_refused(tmp_path):
    root = tmp_path / os.fsdecode(b"caf\xe9")
    files.pictures(root, {"cat": 12, "dog": 12})
    assert r"caf\udce9, which is no UTF-8" in refusal(dataset="ImageFolder", root=str(root))
    (tmp_path / "link").symlink_to(root)
    data = ready(dataset="ImageFolder", root=str(tmp_path / "link"))
    torch.save(data.state_dict(), tmp_path / "state")
    data.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
    assert data.predicted_words().endswith("of the run's split")


def test_predictions_are_written_whole_or_not_at_all(place, tmp_path):
    shutil.copytree(place / "logs", tmp_path / "logs")
    args = ["predict", "--ckpt_path", "best", "--experiment", "Digits", *QUICK[:2], *QUICK[4:]]
    table = tmp_path / "logs/Digits/version_0/predictions.csv"
    table.unlink(missing_ok=True)  # another test may have made one
    for kept in ("", "what was there") if EVERY_ROW else ("what was there",):
        if kept:
            table.write_text(kept)
        status, run = server().run(tmp_path, *args, plant=["small_files", 4096])
        assert status == 2
        assert "predictions.csv could not be written: File too large" in run.message
        assert table.exists() == bool(kept)
        assert not kept or table.read_text() == kept
        assert not list(table.parent.glob(".*.part"))
