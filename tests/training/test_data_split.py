"""Which pictures of a folder train, validate and test: a matter of each, and nothing trained on is tested."""

import os
import random
import shutil
from collections import Counter
from pathlib import Path

import pytest
import torchvision_files as files
from data_helpers import ready, refusal, served

from manualnn.training.data import DataError, ImageData
from manualnn.training.data.split import split

NAMES = [f"{c}/{i:04}.png" for c in ("cat", "dog") for i in range(300)]
LABELS = [int(name.startswith("dog")) for name in NAMES]


def drawn(names, labels=None, seed=0, val=0.1, test=0.1):
    labels = [int(name.startswith("dog")) for name in names] if labels is None else labels
    return dict(zip(names, split(names, labels, seed, val, test), strict=True))


# The rule.


@pytest.mark.parametrize("fractions", [(0.1, 0.1), (0.3, 0.0), (0.0, 0.5), (0.45, 0.45)])
def test_pictures_that_come_and_go_move_no_other(fractions):
    draw = random.Random(0)
    whole = drawn(NAMES, None, 0, *fractions)
    for count in (100, 300, 599):
        some = draw.sample(NAMES, count)  # in another order, too
        assert drawn(some, None, 0, *fractions).items() <= whole.items()
    more = drawn([*NAMES, "elk/1.png", "cat/0000a.png"], [*LABELS, 2, 0], 0, *fractions)
    assert whole.items() <= more.items()


def test_another_validation_fraction_changes_no_test_picture():
    tests = [{n for n, p in drawn(NAMES, val=val).items() if p == "test"} for val in (0, 0.1, 0.8)]
    assert tests[0] == tests[1] == tests[2]
    assert drawn(NAMES, seed=1) != drawn(NAMES)


def test_each_class_has_the_parts_that_were_asked_for():
    names = [f"{c}/{i}.jpg" for c in ("cat", "dog") for i in range(20000)]
    counts = Counter((name[:3], part) for name, part in drawn(names, val=0.25, test=0.2).items())
    for name in ("cat", "dog"):
        assert counts[name, "test"] / 20000 == pytest.approx(0.2, abs=0.012)  # four deviations
        assert counts[name, "val"] / 20000 == pytest.approx(0.2, abs=0.012)  # of 0.8 a quarter


@pytest.mark.parametrize("seed", range(20))
def test_every_class_trains_and_no_part_is_empty(seed):
    names = [f"cat/{i}" for i in range(3)] + ["dog/0", "elk/0"]
    labels = [0, 0, 0, 1, 2]
    found = drawn(names, labels, seed, 0.5, 0.5)
    assert {name[:3] for name, part in found.items() if part == "train"} == {"cat", "dog", "elk"}
    assert set(drawn(names, labels, seed, 0.01, 0.01).values()) == {"train", "val", "test"}


@pytest.mark.parametrize("seed", range(10))
def test_small_classes_have_their_share_beside_large_ones(seed):
    names = [f"cat/{i}" for i in range(400)] + [f"dog/{i}" for i in range(10)]
    counts = Counter((name[:3], part) for name, part in drawn(names, seed=seed).items())
    assert all(counts["dog", part] >= 1 for part in ("train", "val", "test"))
    tiny = [f"{c:02}/{i}" for c in range(40) for i in range(3)]  # each is due 0.3 of one
    counts = Counter(split(tiny, [int(name[:2]) for name in tiny], seed, 0.1, 0.1))
    assert counts["train"] > 80


def test_the_same_name_from_a_mac_is_the_same_name():
    for number in range(20):
        composed, apart = f"caf\u00e9/{number}.png", f"cafe\u0301/{number}.png"
        rest = [f"z/{i}" for i in range(300)]
        labels = [0] + [1] * 300
        assert drawn([composed, *rest], labels)[composed] == drawn([apart, *rest], labels)[apart]


def test_a_class_of_one_picture_trains(tmp_path):
    files.pictures(tmp_path, {"cat": 20, "dog": 20, "elk": 1})
    for seed in range(12):
        data = ImageData(dataset="ImageFolder", root=str(tmp_path), seed=seed)
        assert 2 in {label for _, label in data.folder.parts[0]}
    data = ready(dataset="ImageFolder", root=str(tmp_path))
    assert "no test picture of elk" in data.folder.summary(fitting=True)


def test_parts_that_cannot_be_filled_are_refused(tmp_path):
    files.pictures(tmp_path, {"cat": 1, "dog": 1})
    options = {"dataset": "ImageFolder", "root": str(tmp_path), "batch_size": 1}
    assert "test_fraction 0.1 of 2 images is 0" not in refusal(**options, test_fraction=0)
    assert "val_fraction 0.1 of 2 images is 0" in refusal(**options, test_fraction=0)
    assert "test_fraction 0.1 of 2 images is 0" in refusal(**options, val_fraction=0)
    assert len(ready(**options, val_fraction=0, test_fraction=0)._train) == 2


# With a checkpoint.


def trained(root, **options):
    """The state of a run on this folder, and what it was trained on or chosen by: paths -> content."""
    data = ready("fit", dataset="ImageFolder", root=str(root), **options)
    train, val, _ = data.folder.parts
    return data.state_dict(), {open(path, "rb").read() for path, _ in [*train, *val]}


def measured(state, root, predict=False, **options):
    """(the files that a test takes, in words which they are)."""
    data = ImageData(dataset="ImageFolder", root=str(root), batch_size=4, **options)
    data.prepare_data()
    data.setup("predict" if predict else "test")
    data.load_state_dict(state)
    loader = data.predict_dataloader() if predict else data.test_dataloader()
    pictures, words = data.folder.measured("test", for_figures=not predict)
    assert served(loader)[1].tolist() == [label for _, label in pictures]
    return {path: open(path, "rb").read() for path, _ in pictures}, words


@pytest.mark.parametrize("options", [{}, {"memory_gib": 0, "num_workers": 0}])
def test_a_picture_that_was_trained_on_is_never_tested(tmp_path, options):
    files.pictures(tmp_path / "d", {"cat": 30, "dog": 30})
    root = tmp_path / "d"
    state, seen = trained(root, **options)
    before, words = measured(state, root, **options)
    assert words == f"the {len(before)} test pictures of the run's split"
    assert not seen & set(before.values())
    assert len(seen) + len(before) == 60

    changed = tmp_path / "changed"
    shutil.copytree(root, changed)
    for path in sorted((changed / "cat").iterdir()):
        path.rename(path.with_name(f"renamed-{path.name}"))
    for where in (root, changed):
        for other in ({}, {"seed": 5}, {"test_fraction": 0.9}, {"val_fraction": 0.0}):
            content, words = measured(state, where, **options, **other)
            assert content
            assert not seen & set(content.values())
    assert "left out: " in words and "that the run was trained on" in words


def test_where_only_trained_pictures_are_left_nothing_is_tested(tmp_path):
    files.pictures(tmp_path, {"cat": 12, "dog": 12})
    state, _ = trained(tmp_path)
    for path in measured(state, tmp_path)[0]:
        os.remove(path)
    with pytest.raises(DataError, match="nothing is left for the test"):
        measured(state, tmp_path)


@pytest.mark.parametrize("name", ["Test", "test"])
def test_of_another_folder_all_is_tested(tmp_path, name):
    files.pictures(tmp_path / "d", {"cat": 20, "dog": 20})
    state, seen = trained(tmp_path / "d")
    files.pictures(tmp_path / "both", {"cow": 0, "emu": 0, "cat": 3, "dog": 2})  # other pixels
    for animal in ("cat", "dog"):
        shutil.move(tmp_path / "both" / animal, tmp_path / "new" / animal)
    shutil.copytree(tmp_path / "new", tmp_path / "only" / name)
    content, words = measured(state, tmp_path / "new")
    assert len(content) == 5
    assert words == (
        f"all 5 pictures in {tmp_path / 'new'}, which is another folder than the run's"
    )
    content, words = measured(state, tmp_path / "only")
    assert len(content) == 5
    assert words == f"all 5 pictures in {tmp_path / 'only' / name}"
    shutil.copy(next((tmp_path / "d/cat").iterdir()), tmp_path / "new/cat/known.png")
    assert len(measured(state, tmp_path / "new")[0]) in (5, 6)  # it may have been a test picture
    assert len(measured(state, tmp_path / "new", predict=True)[0]) == 6


def begun(root, **options):
    return ready("fit", dataset="ImageFolder", root=str(root), image_size=8, **options)


def going_on(root, state, **options):
    """The data of a run that goes on from the checkpoint on what lies in the folder now."""
    options = {"image_size": 8, **options}
    data = ImageData(dataset="ImageFolder", root=str(root), batch_size=4, **options)
    data.setup("fit")
    data.load_state_dict(state)
    return data


def contents(data):
    """The content of the pictures of each part, in order."""
    return [[open(path, "rb").read() for path, _ in part] for part in data.folder.parts]


@pytest.mark.parametrize("options", [{}, {"memory_gib": 0, "num_workers": 0}])
@pytest.mark.parametrize("parts", [False, True])
def test_going_on_sees_the_same_pictures_in_the_same_order_whatever_they_are_called(
    tmp_path, options, parts
):
    root = tmp_path / "d"
    for part in ("train", "val") if parts else ("",):
        files.pictures(root / part, {"cat": 30, "dog": 30}, size=(9, 9 + len(part)))
    copied = root / ("train" if parts else "")
    for label, name in enumerate(("cat", "dog")):  # copies, and one in two classes
        shutil.copy(copied / name / "003.png", copied / name / "copy.png")
        shutil.copy(copied / "cat/007.png", copied / name / f"both{label}.png")
    before = begun(root, **options)
    state, known = before.state_dict(), contents(before)
    images = [served(before._loader(part)) for part in (before._train, before._val)]
    draw = random.Random(0)
    for path in sorted(root.rglob("*.png")):
        path.rename(path.with_name(f"{draw.random()}.png"))
    shutil.move(root, tmp_path / "moved")
    data = going_on(tmp_path / "moved", state, **options, seed=9)
    assert contents(data) == known
    for part, (pixels, labels) in zip((data._train, data._val), images, strict=True):
        now = served(data._loader(part))
        assert now[0].equal(pixels) and now[1].equal(labels)
    later = data.state_dict()["folder"]
    assert all(later[part].equal(state["folder"][part]) for part in ("train", "val", "test"))
    # Of an older version, whose checkpoints kept neither the order nor the classes.
    del state["folder"]["labels"]
    older = going_on(tmp_path / "moved", state, **options, seed=9)
    assert [sorted(part) for part in contents(older)] == [sorted(part) for part in known]


@pytest.mark.parametrize("parts", [False, True])
def test_going_on_with_other_pictures_is_refused_with_how_many_there_are_of_which_kind(
    tmp_path, parts
):
    train = "train" if parts else ""
    files.pictures(tmp_path / "d" / train, {"cat": 20, "dog": 20})
    if parts:
        files.pictures(tmp_path / "d/val", {"cat": 20, "dog": 20}, size=(9, 9))
    files.pictures(tmp_path / "more", {"cat": 3, "dog": 0}, size=(7, 7))
    state = begun(tmp_path / "d").state_dict()

    def refused(change):
        shutil.rmtree(tmp_path / "now", ignore_errors=True)
        shutil.copytree(tmp_path / "d", tmp_path / "now")
        change(tmp_path / "now" / train)
        with pytest.raises(DataError) as refusal:
            going_on(tmp_path / "now", state)
        return str(refusal.value).removeprefix(f"the pictures in {tmp_path / 'now'} are not ")

    def added(root):
        shutil.copytree(tmp_path / "more/cat", root / "cat/more")

    def gone(root):
        (root / "cat/003.png").unlink()
        (root / "dog/004.png").unlink()

    def relabelled(root):
        (root / "dog/005.png").rename(root / "cat/new.png")

    def all_of_them(root):
        added(root)
        gone(root)
        relabelled(root)

    def copied(root):
        shutil.copy(root / "dog/006.png", root / "cat/new.png")

    what = (
        "those of the run: {}. A run goes on with the pictures it was begun with: put them back, "
    )
    what += "or start a new run without --ckpt_path"
    assert refused(added) == what.format("3 more")
    assert refused(gone) == what.format("2 gone")
    assert refused(relabelled) == what.format("1 in another class")
    assert refused(all_of_them) == what.format("3 more, 2 gone, 1 in another class")
    assert refused(copied) == what.format("1 more")
    if parts:

        def moved(root):
            (root / "dog/007.png").rename(root.parent / "val/dog/new.png")

        assert refused(moved) == what.format("1 in another part")
    for stage in ("validate", "test"):  # they measure what is there
        data = ImageData(dataset="ImageFolder", root=str(tmp_path / "now"), image_size=8)
        data.setup(stage)
        data.load_state_dict(state)


def test_validation_leaves_each_picture_in_its_part(tmp_path):
    files.pictures(tmp_path / "d", {"cat": 40, "dog": 40})
    before = ready("fit", dataset="ImageFolder", root=str(tmp_path / "d"))
    shutil.move(tmp_path / "d", tmp_path / "moved")
    data = ImageData(dataset="ImageFolder", root=str(tmp_path / "moved"), batch_size=4, seed=9)
    data.setup("validate")
    data.load_state_dict(before.state_dict())
    parts = zip(data.folder.parts, before.folder.parts, strict=True)
    for now, then in parts:
        assert [Path(path).name for path, _ in now] == [Path(path).name for path, _ in then]
    assert "left out: " in data.folder.measured("val")[1]  # of another folder all, but for the rest


def test_copies_of_a_picture_are_in_one_part(tmp_path):
    files.pictures(tmp_path, {"cat": 30, "dog": 30})
    for path in sorted(tmp_path.rglob("*.png")):
        for number in range(3):
            shutil.copy(path, path.with_name(f"{path.stem}-{number}.png"))
    data = ready("fit", dataset="ImageFolder", root=str(tmp_path), val_fraction=0.4)
    parts = [{open(path, "rb").read() for path, _ in part} for part in data.folder.parts]
    assert all(parts) and len(set.union(*parts)) == sum(map(len, parts))


def test_a_validation_measures_nothing_trained_on(tmp_path):
    files.pictures(tmp_path / "d", {"cat": 30, "dog": 30})
    before = ready("fit", dataset="ImageFolder", root=str(tmp_path / "d"))
    shutil.copytree(tmp_path / "d", tmp_path / "d2")
    shutil.copytree(tmp_path / "d", tmp_path / "own/val")
    files.pictures(tmp_path / "d2", {"cat": 3, "dog": 3}, size=(9, 9))  # in the place of others
    trained_on = {open(path, "rb").read() for path, _ in before.folder.parts[0]}
    words = {}
    for name in ("d", "d2", "own"):
        options = {"dataset": "ImageFolder", "root": str(tmp_path / name), "image_size": 8}
        data = ImageData(**options, batch_size=4, seed=9, val_fraction=0.3)
        data.setup("validate")
        data.load_state_dict(before.state_dict())
        pictures, words[name] = data.folder.measured("val")
        content = {open(path, "rb").read() for path, _ in pictures}
        assert served(data.val_dataloader())[1].tolist() == [label for _, label in pictures]
        assert bool(content & trained_on) == (name == "own")
    assert words["d"] == f"the {len(before._val)} validation pictures of the run's split"
    assert "another folder than the run's; left out: " in words["d2"]
    assert "of them the run was trained on, or keeps for its test" in words["own"]


def test_another_seed_validates_no_image_that_a_named_set_was_trained_on():
    state = ready("fit", dataset="Digits").state_dict()
    for options in ({"seed": 9}, {"val_fraction": 0.5}):
        data = ready("validate", dataset="Digits", **options)
        with pytest.raises(DataError, match="with --data.seed 0 and --data.val_fraction 0.1; "):
            data.load_state_dict(state)
        ready("test", dataset="Digits", **options).load_state_dict(state)
    ready("validate", dataset="Digits").load_state_dict(state)


def test_a_test_part_of_a_persons_own_is_measured_whole_and_said(tmp_path):
    for part in ("train", "test"):
        files.pictures(tmp_path / part, {"cat": 8, "dog": 8})  # the same pictures
    state, seen = trained(tmp_path)
    content, words = measured(state, tmp_path)
    assert len(content) == 16
    assert words == (
        f"all 16 pictures in {tmp_path / 'test'}; 16 of them the run was trained on, or chosen by"
    )


def test_copies_of_training_pictures_in_a_part_of_a_persons_own_are_said_at_the_start(tmp_path):
    files.pictures(tmp_path / "train", {"cat": 8, "dog": 8})
    files.pictures(tmp_path / "val", {"cat": 3, "dog": 3}, size=(9, 9))
    for number in range(2):
        shutil.copy(tmp_path / "train/cat/000.png", tmp_path / f"val/cat/copy{number}.png")
    shutil.copy(tmp_path / "train/cat/001.png", tmp_path / "train/dog/cat.png")
    options = {"root": str(tmp_path), "test_fraction": 0.0, "image_size": 8}
    data = ready("fit", dataset="ImageFolder", **options)
    said = "; train 17, val 8, test 0 (in more than one class: 1 pictures) "
    said += "(2 of the validation pictures are trained on, too)"
    assert said in data.folder.summary(fitting=True)


def test_checkpoints_that_do_not_fit_the_folder(tmp_path):
    files.pictures(tmp_path, {"cat": 12, "dog": 12})
    state, _ = trained(tmp_path)
    with pytest.raises(DataError, match="does not say which pictures it was trained on"):
        measured({**state, "folder": None}, tmp_path)
    with pytest.raises(DataError, match="was trained with --data.exif false"):
        measured(state, tmp_path, exif=True)


@pytest.mark.parametrize(
    ("stage", "fraction"), [("validate", "val"), ("test", "test"), ("predict", "test")]
)
def test_to_measure_on_no_images_is_refused(tmp_path, stage, fraction):
    files.pictures(tmp_path, {"cat": 8, "dog": 8})
    options = {"dataset": "ImageFolder", "root": str(tmp_path), "batch_size": 4}
    data = ImageData(**options, **{f"{fraction}_fraction": 0.0})
    data.setup("fit")
    loader = {"val": "val_dataloader"}.get(fraction, f"{stage}_dataloader")
    if stage != "predict":
        assert getattr(data, loader)() == []
    data.setup(stage)
    with pytest.raises(
        DataError, match=f"^there are no .* images; --data.{fraction}_fraction is 0$"
    ):
        getattr(data, loader)()
    if stage == "validate":
        named = ImageData("Digits", val_fraction=0.0)
        named.setup("validate")
        with pytest.raises(DataError, match="there are no validation images"):
            named.val_dataloader()
