"""Picture files: endings, frames, EXIF, damage; what of them is left out, and said truly."""

import os
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision_files as files
from command_line import SMALL, message, train
from data_helpers import ready, refusal, served
from PIL import Image, features

from manualnn.training.data import DataError, reading
from manualnn.training.data.reading import decode, left_out


def turned(path, orientation, **options):
    exif = Image.Exif()
    exif[0x0112] = orientation
    with Image.open(path) as picture:
        picture.load()
        picture.save(path, exif=exif, **options)


# Kinds of files.


@pytest.mark.parametrize("ending", ["jfif", "gif", "webp", "avif", "JPG", "TIFF", "bmp"])
def test_endings_that_people_have(tmp_path, ending):
    if ending == "avif" and not features.check("avif"):
        pytest.skip("this Pillow reads no AVIF")
    files.pictures(tmp_path, {"cat": 6, "dog": 6})
    form = {"jfif": "JPEG", "JPG": "JPEG"}.get(ending, ending.upper())
    for path in (tmp_path / "dog").iterdir():
        with Image.open(path) as picture:
            picture.save(path.with_suffix(f".{ending}"), format=form)
        path.unlink()
    data = ready(dataset="ImageFolder", root=str(tmp_path))
    kinds = f"6 .png, 6 .{ending.lower()}"
    assert data.folder.summary(False) == f"12 pictures ({kinds}), 2 classes: cat, dog"
    paths = [path for path, label in data.folder.listing.pictures if label]
    for path in paths:
        with Image.open(path) as picture:
            want = np.asarray(picture.convert("RGB")).transpose(2, 0, 1)
        assert np.array_equal(decode(path, 3), want)


def test_an_ending_that_pillow_cannot_read_is_left_out(tmp_path, monkeypatch):
    from manualnn.training.data import folder

    monkeypatch.setattr(features, "check", lambda name: False)
    folder.endings.cache_clear()
    try:
        files.pictures(tmp_path, {"cat": 6, "dog": 6})
        (tmp_path / "cat/a.avif").write_bytes(b"")
        assert folder.scan(tmp_path).left_out == {".avif": 1}
    finally:
        folder.endings.cache_clear()


def postscript(path, command):
    """A program for Ghostscript, under the name of a picture, and a `gs` that tells when it is started."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 12\n%%EndComments\nshowpage\n%%EOF\n"
    )
    command.write_text(f"#!/bin/sh\ntouch {command}.started\nexit 1\n")
    command.chmod(0o755)


@pytest.fixture
def ghostscript(tmp_path, monkeypatch):
    """A `gs` on the path; whether it was started."""
    from PIL import EpsImagePlugin

    command = tmp_path / "commands/gs"
    command.parent.mkdir()
    monkeypatch.setenv("PATH", f"{command.parent}:{os.environ['PATH']}")
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)  # whether there is one is not known yet
    yield command
    assert not Path(f"{command}.started").exists()


def test_postscript_under_a_pictures_name_starts_no_program(
    tmp_path, ghostscript, monkeypatch, capsys
):
    root = tmp_path / "pictures"
    files.pictures(root, {"cat": 6, "dog": 6})
    postscript(root / "cat/z.png", ghostscript)
    refused = "z.png cannot be read: its content is of no format that is read"
    assert refused in refusal(dataset="ImageFolder", root=str(root))
    options = ["--data.dataset", "ImageFolder", "--data.root", root]
    assert train(tmp_path, "fit", *SMALL, *options, monkeypatch=monkeypatch) == 2
    assert refused in message(capsys)


@pytest.mark.parametrize("kind", ["EPS", "TGA", "PCX", "JPEG2000"])
def test_only_the_formats_of_the_endings_are_read(tmp_path, ghostscript, kind):
    """By what is in the file: the documented ones, whatever else this Pillow knows."""
    known = {"BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP"}
    assert {*reading.formats()} - {"AVIF"} == known
    path = tmp_path / "a.png"
    if kind == "EPS":
        postscript(path, ghostscript)
    else:
        Image.new("RGB", (10, 12)).save(path, format=kind)
    for read in (lambda: decode(str(path), 3), lambda: left_out(path)):
        with pytest.raises(DataError, match="of no format that is read"):
            read()


def test_the_first_frame_is_read_and_the_others_are_counted(tmp_path):
    files.pictures(tmp_path, {"cat": 6, "dog": 6})
    first, second = (Image.new("RGB", (10, 12), colour) for colour in ("red", "blue"))
    first.save(tmp_path / "cat/film.gif", save_all=True, append_images=[second])
    assert np.array_equal(decode(str(tmp_path / "cat/film.gif"), 3)[:, 0, 0], [255, 0, 0])
    data = ready(dataset="ImageFolder", root=str(tmp_path))
    (tmp_path / "cat/b.txt").write_text("")
    data = ready(dataset="ImageFolder", root=str(tmp_path))
    said = data.folder.summary(False)  # the picture itself is not left out
    assert said.startswith("13 pictures") and said.endswith(
        "; left out: 1 .txt; read without: further frames (1)"
    )


# EXIF.


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_turns_a_picture_upright(tmp_path, orientation):
    from PIL import ImageOps

    pixels = np.random.default_rng(0).integers(0, 256, (8, 6, 3), np.uint8)
    path = tmp_path / "a.png"
    Image.fromarray(pixels).save(path)
    turned(path, orientation)
    with Image.open(path) as picture:
        want = np.asarray(ImageOps.exif_transpose(picture)).transpose(2, 0, 1)
    assert np.array_equal(decode(str(path), 3, exif=True), want)
    assert np.array_equal(decode(str(path), 3), pixels.transpose(2, 0, 1))
    assert left_out(path) == ([] if orientation == 1 else ["an EXIF orientation"])
    assert left_out(path, exif=True) == []


@pytest.mark.parametrize("options", [{}, {"memory_gib": 0, "num_workers": 0}])
def test_a_folder_is_turned_where_it_is_asked_for(tmp_path, options):
    files.pictures(tmp_path, {"cat": 8, "dog": 8}, ending="png")
    for path in tmp_path.rglob("*.png"):
        turned(path, 6)
    options = {"dataset": "ImageFolder", "root": str(tmp_path), "normalize": None, **options}
    plain, upright = ready(**options), ready(exif=True, **options)
    assert plain.image_shape == (3, 12, 10)
    assert upright.image_shape == (3, 10, 12)
    assert plain.folder.summary(False).endswith("cat, dog; read without: an EXIF orientation (16)")
    assert upright.folder.summary(False) == "16 pictures, 2 classes: cat, dog"
    pairs = zip(
        served(plain.test_dataloader())[0], served(upright.test_dataloader())[0], strict=True
    )
    assert all(torch.equal(a.rot90(-1, (1, 2)), b) for a, b in pairs)
    assert upright.state_dict()["reading"]["exif"] is True
    assert plain.reading.exif is False


def test_exif_is_of_pictures():
    assert "exif and classes are ImageFolder's" in refusal(exif=True)


# True reasons.


def bmp_565(path):
    head = struct.pack("<IiiHHIIiiII", 40, 8, 8, 1, 16, 3, 128, 2835, 2835, 0, 0)
    head += struct.pack("<III", 0xF800, 0x07E0, 0x001F)
    start = b"BM" + struct.pack("<IHHI", 14 + len(head) + 128, 0, 0, 14 + len(head))
    path.write_bytes(start + head + bytes(128))


def png_16(path, colour_type, channels):
    """A PNG of 16 bits a channel, which Pillow cannot write."""
    import zlib

    def chunk(name, content):
        body = name + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    rows = b"".join(b"\0" + bytes(range(4 * channels * 2)) for _ in range(4))
    head = struct.pack(">IIBBBBB", 4, 4, 16, colour_type, 0, 0, 0)
    content = chunk(b"IHDR", head)
    if colour_type == 0:
        content += chunk(b"tRNS", b"\0\1")
    content += chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + content)


def test_colours_of_fewer_bits_are_no_deep_ones(tmp_path):
    bmp_565(tmp_path / "a.bmp")
    assert left_out(tmp_path / "a.bmp") == []
    assert decode(str(tmp_path / "a.bmp"), 3).shape == (3, 8, 8)


@pytest.mark.parametrize(("colour_type", "channels"), [(2, 3), (6, 4), (4, 2)])
def test_sixteen_bits_a_channel_are_said(tmp_path, colour_type, channels):
    png_16(tmp_path / "a.png", colour_type, channels)
    assert "more than 8 bits a channel" in left_out(tmp_path / "a.png")


def test_grey_of_sixteen_bits_is_refused_for_that_alone(tmp_path):
    png_16(tmp_path / "a.png", 0, 1)
    assert left_out(tmp_path / "a.png") == []
    with pytest.raises(DataError, match=r"a\.png has more than 8 bits a channel"):
        decode(str(tmp_path / "a.png"), 3)


@pytest.mark.parametrize("value", [0, 9, 1000])
def test_an_orientation_that_is_none(tmp_path, value):
    Image.new("RGB", (8, 6)).save(tmp_path / "a.jpg")
    turned(tmp_path / "a.jpg", value)
    assert left_out(tmp_path / "a.jpg") == []
    assert decode(str(tmp_path / "a.jpg"), 3, exif=True).shape == (3, 6, 8)


def test_damaged_exif_beside_whole_pixels(tmp_path):
    Image.new("RGB", (8, 6)).save(tmp_path / "a.jpg", exif=b"Exif\0\0what is this")
    assert left_out(tmp_path / "a.jpg") == []
    assert decode(str(tmp_path / "a.jpg"), 3, exif=True).shape == (3, 6, 8)


# Damage.


@pytest.mark.parametrize("memory_gib", [2, 0])
@pytest.mark.parametrize("damage", ["truncated", "text", "empty"])
def test_all_damaged_pictures_are_named_at_once(tmp_path, memory_gib, damage):
    files.pictures(tmp_path, {"cat": 30, "dog": 30}, size=(40, 40))
    bad = [tmp_path / f"{c}/{i:03}.png" for c in ("cat", "dog") for i in (0, 7, 29)]
    for path in bad:
        content = path.read_bytes()
        path.write_bytes({"truncated": content[:999], "text": b"<html>", "empty": b""}[damage])
    options = {"dataset": "ImageFolder", "root": str(tmp_path), "memory_gib": memory_gib}
    with pytest.raises(DataError, match="6 pictures cannot be used: ") as caught:
        data = ready(num_workers=0, normalize=None, val_fraction=0, test_fraction=0, **options)
        served(data.train_dataloader())
    assert all(str(path) in str(caught.value) for path in bad)
    assert "\n" not in str(caught.value)


def test_of_very_many_the_first_are_named(tmp_path):
    files.pictures(tmp_path, {"cat": 30, "dog": 30})
    for path in tmp_path.rglob("*.png"):
        path.write_bytes(b"")
    message = refusal(dataset="ImageFolder", root=str(tmp_path))
    assert message.startswith("60 pictures cannot be used: ")
    assert message.endswith("; and 50 more")
    assert message.count("cannot be read: its content is of no format that is read") == 10
