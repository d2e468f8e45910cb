"""Pictures that are not as the training's: read as they were there, brought to its size, or refused."""

import csv

import numpy as np
import pytest
import torch
from command_line import message, train
from PIL import Image
from trained_runs import checkpoint

from manualnn.training import DataError, ImageData, Trained


@pytest.fixture
def run(place, monkeypatch):
    return lambda line: train(place, *line.split(), monkeypatch=monkeypatch)


def saved(place, tmp_path, kind):
    """A test image of Digits, and one more, in another guise."""
    first, second = (Image.open(place / f"digits/0{i}.png") for i in range(2))
    path, levels = tmp_path / "a.png", np.array(first)
    if kind == "colour":
        first.convert("RGB").save(path)
    elif kind == "palette":
        first.convert("P").save(path)
    elif kind == "opaque":
        first.convert("RGBA").save(path)
    elif kind == "transparent":
        clear = first.convert("RGBA")
        clear.putpixel((0, 0), (0, 0, 0, 254))
        clear.save(path)
    elif kind == "deep":
        Image.fromarray(levels.astype(np.uint16) * 257).save(path)
    elif kind == "animated":
        first.save(path := tmp_path / "a.gif", save_all=True, append_images=[second])
    elif kind == "turned":
        exif = Image.Exif()
        exif[0x0112] = 6
        first.save(path, exif=exif)
    elif kind == "upright":
        exif = Image.Exif()
        exif[0x0112] = 1
        first.save(path, exif=exif)
    elif kind == "large":
        first.resize((16, 24), Image.Resampling.NEAREST).save(path)
    elif kind == "truncated":
        path.write_bytes((place / "digits/00.png").read_bytes()[:-30])
    elif kind == "text":
        path.write_text("no picture")
    elif kind == "postscript":  # Pillow would give it to Ghostscript
        path.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n")
    elif kind == "folder":
        (path := tmp_path / "empty").mkdir()
    return path


@pytest.mark.parametrize("kind", ["colour", "palette", "opaque", "upright"])
def test_a_grey_image_in_another_mode_is_the_same_image(place, tmp_path, kind):
    trained = Trained.load(checkpoint(place))
    path = saved(place, tmp_path, kind)
    assert torch.equal(trained.predict([path]), trained.predict([place / "digits/00.png"]))


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("transparent", "a.png has transparency, which the images of Digits have not"),
        ("animated", "a.gif has further frames, which"),
        ("turned", "a.png has an EXIF orientation, which"),
        ("deep", "a.png has more than 8 bits a channel"),
        ("large", "a.png is 24 x 16 (height x width); the network was trained on 8 x 8 (Digits)"),
        ("truncated", "a.png cannot be read: "),
        ("text", "a.png cannot be read: "),
        ("postscript", "a.png cannot be read: its content is of no format that is read"),
        ("folder", "empty holds no picture (.jpg, "),
        ("missing", "there is no picture "),
    ],
)
def test_a_picture_that_does_not_fit_is_one_line(run, place, tmp_path, capsys, kind, words):
    path = saved(place, tmp_path, kind)
    line = f"predict --ckpt_path {checkpoint(place)} --image digits {path}"
    assert run(f"{line} --output {tmp_path / 'out.csv'}") == 2
    assert words in message(capsys)
    assert not (tmp_path / "out.csv").exists()


def test_what_the_training_left_out_of_a_picture_is_left_out_and_said(run, place, tmp_path, capsys):
    shapes = {}
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        turned, pixels = (
            Image.Exif(),
            np.random.default_rng(0).integers(0, 256, (9, 9, 4), np.uint8),
        )
        turned[0x0112] = 6
        Image.fromarray(pixels).save(tmp_path / name / "clear.png", exif=turned)
        Image.fromarray(pixels[:, :, :3]).save(tmp_path / name / "plain.png")
        shapes[name] = tmp_path / name
    ckpt = checkpoint(place, "pictures")
    assert run(f"predict --ckpt_path {ckpt} --image {tmp_path} --format csv") == 0
    printed = capsys.readouterr()
    rows = list(csv.DictReader(printed.out.splitlines()))
    assert len({row["probability"] for row in rows}) == 1
    notes = printed.err.splitlines()
    first = tmp_path / "one/clear.png"
    assert notes == [
        f"note: 2 pictures, {first} first, have {what}, which is not used, as in training"
        for what in ("an EXIF orientation", "transparency")
    ]


def test_resize_and_invert(run, place, tmp_path, capsys):
    large = saved(place, tmp_path, "large")
    Image.fromarray(255 - np.array(Image.open(place / "digits/00.png"))).save(tmp_path / "dark.png")
    line = f"predict --ckpt_path {checkpoint(place)} --format csv --image "
    said = []
    for rest in ("digits/00.png", f"{tmp_path / 'dark.png'} --invert"):
        assert run(line + rest) == 0
        said.append(capsys.readouterr().out.splitlines()[1].split(",")[1:])
    assert said[0] == said[1]
    assert run(f"{line}{large} --resize") == 0
    with Image.open(large) as picture:  # 24 x 16: the middle is kept
        middle = picture.resize((8, 8), Image.Resampling.BILINEAR, box=(0, 4, 16, 20))
    levels = torch.from_numpy(np.array(middle))[None, None]
    want = Trained.load(checkpoint(place)).probabilities(levels).max()
    row = capsys.readouterr().out.splitlines()[1]
    assert float(row.rpartition(",")[2]) == pytest.approx(want.item())


def test_pictures_that_are_asked_for_in_python(place):
    trained = Trained.load(checkpoint(place))
    assert trained.predict([]).shape == (0, 10)
    with pytest.raises(DataError, match="gone"):
        trained.predict(["gone.png"])


def test_other_images_are_scaled_as_the_training_images_were(run, place, tmp_path, capsys):
    for name in ("cat", "dog", "elk"):
        (tmp_path / name).mkdir()
        for i in range(4):  # dark, each channel of its own
            pixels = np.random.default_rng(i).integers(0, [9, 40, 80], (12, 10, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{i}.png")
    options = {"dataset": "ImageFolder", "image_size": [8, 9], "batch_size": 2}
    content = torch.load(checkpoint(place, "pictures"), weights_only=True)["ImageData"]
    scaled = []
    for root, state in ((tmp_path, content), (place / "pictures", None), (tmp_path, None)):
        data = ImageData(root=str(root), **options)
        data.setup("test")
        if state:
            data.load_state_dict(state)
        scaled.append(data.scale(torch.full((1, 3, 8, 9), 7, dtype=torch.uint8)))
    assert torch.equal(scaled[0], scaled[1])
    assert not torch.allclose(scaled[0], scaled[2], atol=0.1)
    (tmp_path / "elk").rename(tmp_path / "bee")
    assert run(f"test --ckpt_path {checkpoint(place, 'pictures')} --data.root {tmp_path}") == 2
    assert "holds bee; the classes are cat, dog, elk" in message(capsys)
