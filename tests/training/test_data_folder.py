"""ImageData on a folder of pictures: what is read, in memory and streamed, what is refused."""

import numpy as np
import pytest
import torch
import torchvision_files as files
from data_helpers import ready, refusal, served

from manualnn.training.data import DataError


def in_memory_and_streamed(**options):
    yield ready(dataset="ImageFolder", **options)
    yield ready(dataset="ImageFolder", memory_gib=0, num_workers=1, **options)


@pytest.mark.parametrize(("mode", "channels"), [("RGB", 3), ("L", 1)])
def test_one_folder_is_split_in_three(tmp_path, mode, channels):
    pictures = files.pictures(tmp_path, {"cat": 12, "dog": 8, ".hidden": 3}, mode=mode)
    truth = {
        image.numpy().tobytes(): (path.parent.name == "dog")
        for path, image in pictures.items()
        if path.parent.name != ".hidden"
    }
    for data in in_memory_and_streamed(root=str(tmp_path), channels=channels):
        assert data.class_names == ("cat", "dog")
        assert data.image_shape == (channels, 12, 10)
        loaders = (data.train_dataloader(), data.val_dataloader(), data.test_dataloader())
        parts = [served(loader) for loader in loaders]
        assert all(labels.unique().tolist() == [0, 1] for _, labels in parts)
        assert len(parts[0][0]) > len(parts[1][0]) + len(parts[2][0])
        images, labels = (torch.cat(column) for column in zip(*parts, strict=True))
        found = {x.numpy().tobytes(): y for x, y in zip(images, labels.tolist(), strict=True)}
        assert found == truth
        assert data.scale(parts[0][0]).mean().abs() < 1e-5


def test_folders_of_its_own_for_each_part(tmp_path):
    for part, count in (("train", 5), ("val", 3), ("test", 2)):
        files.pictures(tmp_path / part, {"cat": count, "dog": count})
    data = ready(dataset="ImageFolder", root=str(tmp_path))
    assert [len(part) for part in (data._train, data._val, data._test)] == [10, 6, 4]
    assert served(data.test_dataloader())[1].tolist() == [0, 0, 1, 1]


def test_pictures_are_brought_to_one_size(tmp_path):
    from PIL import Image

    files.pictures(tmp_path, {"cat": 6, "dog": 6})
    wide = np.zeros((10, 40, 3), np.uint8)
    wide[:, 12:28] = 200  # the middle is what is kept
    Image.fromarray(wide).save(tmp_path / "cat" / "000.png")
    for data in in_memory_and_streamed(root=str(tmp_path), image_size=[5, 5], val_fraction=0.25):
        images = torch.cat(
            [served(d)[0] for d in (data.train_dataloader(), data.val_dataloader())]
            + [served(data.test_dataloader())[0]]
        )
        assert images.shape == (12, 3, 5, 5)
        assert sum(bool((image == 200).all()) for image in images) == 1


def streamed_error(num_workers=0, **options) -> str:
    options = {"memory_gib": 0, "num_workers": num_workers, "normalize": None, **options}
    with pytest.raises(DataError) as caught:
        served(ready(dataset="ImageFolder", **options).train_dataloader())
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("ending", ["png", "jpg"])
@pytest.mark.parametrize("damage", ["truncated", "empty", "text"])
def test_damaged_picture_is_named(tmp_path, ending, damage):
    files.pictures(tmp_path, {"cat": 6, "dog": 6}, size=(40, 40), ending=ending)
    bad = tmp_path / "dog" / f"003.{ending}"
    content = bad.read_bytes()
    bad.write_bytes(
        {"truncated": content[: len(content) // 2], "empty": b"", "text": b"hello"}[damage]
    )
    options = {"root": str(tmp_path), "val_fraction": 0, "test_fraction": 0}
    assert str(bad) in refusal(dataset="ImageFolder", **options)
    assert str(bad) in streamed_error(**options)


def test_another_size_is_named(tmp_path):
    files.pictures(tmp_path, {"cat": 6, "dog": 6})
    files.pictures(tmp_path, {"elk": 1}, size=(12, 11))
    options = {"root": str(tmp_path), "val_fraction": 0, "test_fraction": 0}
    stream = [streamed_error(num_workers=workers, **options) for workers in (0, 1)]
    for message in (refusal(dataset="ImageFolder", **options), *stream):
        assert str(tmp_path / "elk" / "000.png") in message
        assert "12 x 11" in message
        assert "image_size" in message


def test_deep_pictures_are_refused(tmp_path):
    from PIL import Image

    files.pictures(tmp_path, {"cat": 6, "dog": 6})
    Image.fromarray(np.full((12, 10), 40000, np.uint16)).save(tmp_path / "cat" / "000.png")
    options = {"root": str(tmp_path), "val_fraction": 0, "test_fraction": 0}
    assert "8 bits" in refusal(dataset="ImageFolder", **options)


def test_folders_that_hold_no_classes(tmp_path):
    def folder(root):
        return refusal(dataset="ImageFolder", root=str(root))

    assert "does not exist" in folder(tmp_path / "nowhere")
    assert "holds no class" in folder(tmp_path)
    files.pictures(tmp_path / "loose", {".": 2})
    assert "pictures directly in it are not read, by predict neither" in folder(tmp_path / "loose")
    files.pictures(tmp_path / "one", {"cat": 3})
    assert "one class only (cat)" in folder(tmp_path / "one")
    (tmp_path / "one" / "dog").mkdir()
    assert "dog holds no picture" in folder(tmp_path / "one")
    (tmp_path / "file").write_text("")
    assert "cannot be read" in folder(tmp_path / "file")
    files.pictures(tmp_path / "odd" / "train", {"cat": 3, "dog": 3})
    files.pictures(tmp_path / "odd" / "test", {"elk": 3})
    assert "elk: no class of that name" in folder(tmp_path / "odd")
