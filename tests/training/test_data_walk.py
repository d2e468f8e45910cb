"""Which files of a folder of pictures are meant: parts, classes, what is passed over, what is said."""

import os
import shutil
import socket
from collections import Counter

import pytest
import torchvision_files as files
from data_helpers import ready, refusal

from manualnn.training.data import DataError, ImageData
from manualnn.training.data.folder import part_of, scan


def folder(root) -> str:
    return refusal(dataset="ImageFolder", root=str(root))


# Parts.


@pytest.mark.parametrize(
    ("names", "part"),
    [
        (
            "train Train TRAIN training Training training_set train2017 Train_data train-images",
            "train",
        ),
        ("val valid Validation VAL validation_set val2017 valid_1", "val"),
        ("test Test testing Testing test1 test_set test_1 TestSet", "test"),
    ],
)
def test_parts_are_known_by_the_names_that_people_give_them(names, part):
    assert {part_of(name) for name in names.split()} == {part}


@pytest.mark.parametrize(
    "name",
    ["trainer", "valley", "testament", "contest", "tester", "trains", "value", "latest", "1"],
)
def test_classes_that_only_sound_like_parts(name):
    assert part_of(name) is None


@pytest.mark.parametrize(
    "called",
    [("train", "val", "test"), ("Training", "Validation", "Testing"), ("TRAIN", "valid", "test1")],
)
def test_parts_are_taken_as_they_are(tmp_path, called):
    for name, count in zip(called, (5, 3, 2), strict=True):
        files.pictures(tmp_path / name, {"cat": count, "dog": count})
    found = scan(tmp_path)
    assert found.class_names == ("cat", "dog")
    assert [len(part) for part in (found.train, found.val, found.test)] == [10, 6, 4]
    data = ready(dataset="ImageFolder", root=str(tmp_path))
    assert [len(part) for part in (data._train, data._val, data._test)] == [10, 6, 4]
    assert data.has_part("val") and data.has_part("test")
    counts = ", ".join(f"{name} {n}" for name, n in zip(called, (10, 6, 4), strict=True))
    said = f"20 pictures, 2 classes: cat, dog; {counts}"
    for kind, copies in (("validation", 6), ("test", 4)):  # the helper draws the same ones
        said += f" ({copies} of the {kind} pictures are trained on, too)"
    assert data.folder.summary(fitting=True) == said


def test_parts_that_contradict_are_refused_in_one_line(tmp_path):
    files.pictures(tmp_path / "kaggle", {"train": 4, "test1": 3})
    assert "train holds no class, its pictures lie straight in it" in folder(tmp_path / "kaggle")
    files.pictures(tmp_path / "class", {"train": 4, "car": 3})
    assert "holds car beside train, which is the name of a part" in folder(tmp_path / "class")
    assert "Call it val or test if it is one of them" in folder(tmp_path / "class")
    shutil.copytree(tmp_path / "class/car", tmp_path / "wrapped/data/test/car")
    assert "is PLACE/data meant, which holds test?".replace(
        "PLACE", str(tmp_path / "wrapped")
    ) in folder(tmp_path / "wrapped")
    files.pictures(tmp_path / "linked/train", {"cat": 4, "dog": 3})
    for target in ("train", "nowhere"):
        (tmp_path / "linked/test").symlink_to(target)
        assert "linked/test is a link that leads nowhere, or to" in folder(tmp_path / "linked")
        (tmp_path / "linked/test").unlink()
    files.pictures(tmp_path / "nested/train", {"Train": 4, "dog": 3})
    assert "nested/train/Train would be a class called like a part" in folder(tmp_path / "nested")
    for name in ("train", "test", "test1"):
        files.pictures(tmp_path / "two" / name, {"cat": 3, "dog": 3})
    assert "test, test1, train: two of them are the same part" in folder(tmp_path / "two")
    for name in ("cat", "dog"):
        files.pictures(tmp_path / "above" / name, {"train": 3, "test": 3})
    assert "they lie above the classes" in folder(tmp_path / "above")
    files.pictures(tmp_path / "unlabelled/train", {"cat": 3, "dog": 3})
    files.pictures(tmp_path / "unlabelled", {"test": 3})
    assert "predict --image" in folder(tmp_path / "unlabelled")
    files.pictures(tmp_path / "held/test", {"cat": 3, "dog": 3})
    assert "holds no part to train on, only test" in folder(tmp_path / "held")


# What is passed over.


def test_what_is_no_picture_is_passed_over_and_counted(tmp_path, monkeypatch):
    files.pictures(tmp_path, {"cat": 6, "dog": 6, ".git": 2, "__MACOSX": 2})
    for name in ("._000.png", ".DS_Store", "Thumbs.db", "desktop.ini"):
        (tmp_path / "cat" / name).write_bytes(b"\0\5\x16\7")
    for name in ("a.heic", "b.HEIC", "notes.txt", "README"):
        (tmp_path / "dog" / name).write_bytes(b"")
    (tmp_path / "loose.png").write_bytes(b"")
    os.mkfifo(tmp_path / "dog/pipe.png")
    (tmp_path / "dog/gone.png").symlink_to("nowhere.png")
    (tmp_path / "dog/itself.png").symlink_to("itself.png")
    monkeypatch.chdir(tmp_path / "dog")  # the name of a socket must be short
    with socket.socket(socket.AF_UNIX) as made:
        made.bind("socket.png")
        found = scan(tmp_path)
    assert [os.path.basename(path) for path, _ in found.train] == [
        f"{i:03d}.png" for i in range(6)
    ] * 2
    assert found.left_out == {
        "hidden": 6,
        ".heic": 2,
        ".txt": 1,
        "without an ending": 1,
        "outside the class folders": 1,
        "no file (a pipe, a socket, a device)": 2,
        "with a broken link": 2,
    }
    data = ready(dataset="ImageFolder", root=str(tmp_path))
    assert "12 pictures, 2 classes: cat, dog; training " in data.folder.summary(fitting=True)
    assert "2 .heic" in data.folder.summary(fitting=True)


@pytest.mark.parametrize("link", ["..", ".", "../dog", "../..", "{root}", "../cat"])
def test_a_link_that_leads_back_gives_no_class_the_pictures_of_another(tmp_path, link):
    root = tmp_path / "deep" / "pictures"
    files.pictures(root, {"cat": 6, "dog": 6})
    for name in ("one", "two"):
        (root / "cat" / name).symlink_to(link.format(root=root))
    found = scan(root)
    assert Counter(label for _, label in found.train) == {0: 6, 1: 6}
    assert all(("/dog/" in path) == bool(label) for path, label in found.train)
    assert found.left_out == {"linked back": 2}


def test_a_class_that_is_a_link_to_a_class_is_none(tmp_path):
    files.pictures(tmp_path, {"cat": 6, "dog": 6})
    (tmp_path / "kitten").symlink_to("cat")
    (tmp_path / "dog/cat.png").symlink_to("../cat/000.png")
    assert scan(tmp_path).class_names == ("cat", "dog")
    assert Counter(label for _, label in scan(tmp_path).train) == {0: 6, 1: 6}


def test_links_to_pictures_that_lie_elsewhere_are_followed(tmp_path):
    files.pictures(tmp_path / "store", {"cats": 6, "dogs": 5})
    files.pictures(tmp_path / "pictures", {".annex": 3, "dog": 1})
    (tmp_path / "store/cats/round").symlink_to("../cats")
    (tmp_path / "pictures/cat").symlink_to("../store/cats")
    (tmp_path / "pictures/dog/more").symlink_to("../../store/dogs")
    (tmp_path / "pictures/dog/again").symlink_to("../../store/dogs")
    (tmp_path / "pictures/dog/kept.png").symlink_to("../.annex/000.png")
    (tmp_path / "by another name").symlink_to("pictures")
    for root in ("pictures", "by another name"):
        found = scan(tmp_path / root)
        assert Counter(label for _, label in found.train) == {0: 6, 1: 7}


def test_a_folder_below_a_class_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    files.pictures(tmp_path, {"cat": 3, "dog": 3, "dog/closed": 2})
    scandir = os.scandir

    def refuse(place):
        if str(place).endswith("closed"):
            raise PermissionError(13, "Permission denied")
        return scandir(place)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match="dog/closed cannot be read: Permission denied"):
        scan(tmp_path)


def test_many_classes_are_not_all_listed(tmp_path):
    files.pictures(tmp_path, {f"{i:02}": 2 for i in range(30)})
    data = ImageData(dataset="ImageFolder", root=str(tmp_path))
    assert data.folder.summary(fitting=False).endswith("18, 19 and 10 more")


def test_names_of_classes_lead_nowhere_else(tmp_path):
    files.pictures(tmp_path / "p", {"cat": 3, "dog": 2, ".dog": 2})
    files.pictures(tmp_path, {"fox": 4})
    for strange in ("..", "../fox", "", ".dog", str(tmp_path / "fox")):
        found = scan(tmp_path / "p", ["dog", "cat", strange])
        assert Counter(label for _, label in found.train) == {1: 3, 0: 2}
    assert "holds dog; the classes are cat, elk" in refusal(
        dataset="ImageFolder", root=str(tmp_path / "p"), classes=["cat", "elk"]
    )
    assert "each once" in refusal(dataset="ImageFolder", classes=["cat", "cat"])
