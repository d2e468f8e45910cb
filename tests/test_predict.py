"""A trained classifier in use: `predict --image` and `export`, and the numbers of the training in both."""

import csv
import json
import os
import shutil
import sys

import numpy as np
import onnxruntime
import pytest
import torch
import torchvision_files as files
import yaml
from command_line import SMALL, message, train
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

import manualnn
from manualnn.training import DataError, ImageClassifier, ImageData, Trained, TrainingError
from manualnn.training.networks import CNN

QUICK = ["--trainer.accelerator", "cpu", "--trainer.max_epochs", "1"]
QUICK += ["--trainer.enable_progress_bar", "false"]
CNN_PATH = "manualnn.training.networks.CNN"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a run on Digits, one on pictures in colour, and test images as PNG files."""
    folder = tmp_path_factory.mktemp("trained")
    digits = ImageData(batch_size=512)
    digits.setup("test")
    (folder / "digits").mkdir()
    for number, image in enumerate(next(iter(digits.test_dataloader()))[0][:70]):
        Image.fromarray(image[0].numpy()).save(folder / f"digits/{number:02}.png")
    with pytest.MonkeyPatch.context() as patch:
        enough = ["--data.batch_size", "16"]  # steps, so that no two images have the same scores
        assert train(folder, "fit", *SMALL, *QUICK, *enough, monkeypatch=patch) == 0
        # Of several sizes, so that they are scaled and cut; in JPEG too.
        files.pictures(folder / "pictures", {"cat": 9, "dog": 9}, size=(12, 10))
        files.pictures(folder / "pictures", {"elk": 9}, size=(14, 20), ending="jpg")
        options = "--data.dataset ImageFolder --data.root pictures --data.image_size [8,9]"
        options += f" --data.batch_size 8 --model.network {CNN_PATH} --experiment pictures"
        options += " --model.network.channels [2,3] --model.network.units 5"
        assert train(folder, "fit", *options.split(), *QUICK, monkeypatch=patch) == 0
    return folder


@pytest.fixture
def run(place, monkeypatch):
    return lambda line: train(place, *line.split(), monkeypatch=monkeypatch)


def checkpoint(place, name="Digits"):
    return place / f"logs/{name}/version_0/checkpoints/best.ckpt"


def trained_by_hand(model, path, data, batches):
    """What the run's own classes make of its own tensors, by way of nothing that is under test."""
    model.load_state_dict(torch.load(path, weights_only=True)["state_dict"])
    with torch.inference_mode():
        return torch.cat([model.eval().predict_step(data.scale(x), 0) for x in batches])


# The same numbers.


def test_a_test_image_as_a_file_gets_the_scores_of_the_data_modules_tensor(place):
    data = ImageData(batch_size=64)
    data.setup("test")
    model = ImageClassifier(hidden_units=[8], image_shape=(1, 8, 8))
    batch = next(iter(data.test_dataloader()))[0]
    want = trained_by_hand(model, checkpoint(place), data, [batch])
    trained = Trained.load(checkpoint(place))
    got = trained.predict([place / f"digits/{i:02}.png" for i in range(64)])
    assert torch.equal(got, want)
    assert len(want.unique(dim=0)) == 64
    assert trained.class_names == tuple("0123456789")
    assert not trained.model.training


def test_pictures_are_scaled_and_cut_as_in_training_without_the_training_images(
    place, tmp_path, monkeypatch
):
    monkeypatch.chdir(place)
    options = {"dataset": "ImageFolder", "root": "pictures", "image_size": [8, 9]}
    data = ImageData(**options, batch_size=5, test_fraction=0.4)  # another part, for more of them
    data.setup("test")
    names, batches = data.predict_names(), [images for images, _ in data.test_dataloader()]
    data = ImageData(**options, batch_size=8)  # of the run: its mean and deviation
    data.setup("fit")
    network = CNN(3, (3, 8, 9), (2, 3), 5)
    model = ImageClassifier(3, (3, 8, 9), network=network)
    want = trained_by_hand(model, checkpoint(place, "pictures"), data, batches)
    assert len(want) == len(names) == 11
    assert {name.rpartition(".")[2] for name in names} == {"png", "jpg"}

    moved = tmp_path / "elsewhere"
    shutil.copytree("pictures", moved / "pictures")
    shutil.copytree("logs/pictures/version_0", moved / "run")
    monkeypatch.chdir(moved)
    shutil.rmtree("run/checkpoints", ignore_errors=False)
    shutil.copy(checkpoint(place, "pictures"), "best.ckpt")
    trained = Trained.load("best.ckpt", config="run/config.yaml")
    shutil.move("pictures", "renamed")
    names = [name.replace("pictures", "renamed") for name in names]
    got = [trained.predict(names[start : start + 5]) for start in range(0, 11, 5)]
    assert torch.equal(torch.cat(got), want)
    assert len(want.unique(dim=0)) == 11
    assert trained.class_names == ("cat", "dog", "elk")


def test_another_precision_and_loss(tmp_path, place, monkeypatch):
    options = ["--trainer.precision", "64-true", "--model.loss", "quadratic"]
    assert train(tmp_path, "fit", *SMALL, *QUICK, *options, monkeypatch=monkeypatch) == 0
    trained = Trained.load(checkpoint(tmp_path))
    data = ImageData(batch_size=4)
    data.setup("test")
    model = ImageClassifier(hidden_units=[8], image_shape=(1, 8, 8), loss="quadratic").double()
    model.load_state_dict(torch.load(checkpoint(tmp_path), weights_only=True)["state_dict"])
    images = data.scale(next(iter(data.test_dataloader()))[0]).double()
    want = torch.sigmoid(model.eval()(images)).float()
    assert torch.equal(trained.predict([place / f"digits/{i:02}.png" for i in range(4)]), want)
    line = f"export --ckpt_path {checkpoint(tmp_path)} --output d.pt2"
    assert train(tmp_path, *line.split(), monkeypatch=monkeypatch) == 0


def test_loading_draws_nothing_from_the_generator(place):
    state = torch.get_rng_state()
    Trained.load(checkpoint(place))
    assert torch.equal(torch.get_rng_state(), state)


def test_the_scores_are_those_of_predict_without_images(run, place, capsys):
    assert run("predict --ckpt_path best --experiment Digits") == 0
    with open(place / "logs/Digits/version_0/predictions.csv", newline="") as file:
        want = [(row["class"], row["probability"]) for row in csv.DictReader(file)][:70]
    capsys.readouterr()
    assert run("predict --ckpt_path best --experiment Digits --image digits --format csv") == 0
    rows = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    assert [(row["class"], f"{float(row['probability']):.4f}") for row in rows] == want


# What is printed and written.


def test_table_csv_and_json_say_the_same(run, place, capsys):
    line = f"predict --ckpt_path {checkpoint(place)} --image digits/00.png digits/01.png"
    assert run(f"{line} --image digits/02.png --top 3") == 0
    table = capsys.readouterr().out.splitlines()
    assert run(f"{line} --image digits/02.png --top 3 --format csv") == 0
    rows = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    assert run(f"{line} --image digits/02.png --top 3 --output three.json") == 0
    assert capsys.readouterr().out == "3 predictions: three.json\n"
    listed = json.loads((place / "three.json").read_text())
    names = [f"digits/0{i}.png" for i in range(3)]
    scores = Trained.load(checkpoint(place)).predict([place / name for name in names])
    best = scores.topk(3)
    for i, (name, entry) in enumerate(zip(names, listed, strict=True)):
        pairs = [(p["class"], p["probability"]) for p in entry["predictions"]]
        assert entry["image"] == name
        assert [cls for cls, _ in pairs] == [str(j) for j in best.indices[i].tolist()]
        assert torch.equal(torch.tensor([p for _, p in pairs]), best.values[i])
        part = rows[3 * i : 3 * i + 3]
        assert [(row["class"], float(row["probability"])) for row in part] == pairs
        assert {row["image"] for row in part} == {name}
        words = [line.split() for line in table[1 + 3 * i : 4 + 3 * i]]
        assert words[0] == [name, pairs[0][0], f"{pairs[0][1]:.4f}"]
        assert words[1:] == [[cls, f"{p:.4f}"] for cls, p in pairs[1:]]


def test_a_folder_is_read_with_all_below_it_in_order(run, place, tmp_path, capsys):
    (tmp_path / "b/deep").mkdir(parents=True)
    for name in ("b/deep/1.png", "c.png", "a.PNG", ".hidden.png"):
        shutil.copy(place / "digits/00.png", tmp_path / name)
    (tmp_path / "b/notes.txt").write_text("")
    os.symlink(tmp_path, tmp_path / "b/round")  # leads back up
    assert run(f"predict --ckpt_path {checkpoint(place)} --image {tmp_path} --format csv") == 0
    printed = capsys.readouterr()
    names = [row["image"] for row in csv.DictReader(printed.out.splitlines())]
    assert names == [str(tmp_path / name) for name in ("a.PNG", "c.png", "b/deep/1.png")]
    assert printed.err == "note: files without the ending of a picture, passed over: 1\n"


# Pictures that are not as the training's.


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


# Mistakes.


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("predict --image digits", "predict needs a trained model: --ckpt_path best, last or a"),
        ("predict --ckpt_path best --image", "--image: expected at least one argument"),
        ("predict --ckpt_path best --image digits --top 11", "--top 11: there are"),
        ("predict --ckpt_path best --image digits --top 0", "--top: 0 is no whole number above 0"),
        ("predict --ckpt_path best --image digits --topp 2", "did you mean --top?"),
        ("predict --ckpt_path best --image digits --format xml", "choose from 'table', 'csv',"),
        ("predict --ckpt_path best --image digits --device abacus", "--device abacus: Expected"),
        ("predict --ckpt_path best --image digits --output no/a.csv", "no/a.csv cannot be written"),
        ("predict --ckpt_path gone.ckpt --image digits", "there is no checkpoint gone.ckpt"),
        ("predict --ckpt_path last --experiment no --image digits", "no run in logs/no has left"),
        ("predict --ckpt_path best --imag digits", "did you mean --image?"),
        ("export --ckpt_path best", "--format is needed: onnx, pt2, safetensors"),
        ("export --format onnx", "export needs a trained model: --ckpt_path"),
        ("export --ckpt_path best --format exe", "choose from 'onnx', 'pt2', 'safetensors'"),
        ("export --ckpt_path best --format onnx --output a.pt2", "a.pt2 must end in .onnx"),
        ("export --ckpt_path best --output no/a.pt2", "no/a.pt2 cannot be written: there is no"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(run, capsys, line, words):
    assert run(line) == 2
    assert words in message(capsys)


def test_help_is_short_and_names_the_commands(run, capsys):
    for line, words in (
        ("predict --help", "--image PATH"),
        ("export --help", "--format {onnx,pt2,safetensors}"),
        ("--help", "export --ckpt_path CKPT"),
    ):
        with pytest.raises(SystemExit) as left:
            run(line)
        assert left.value.code == 0
        printed = " ".join(capsys.readouterr().out.split())
        assert words in printed


class Code:
    def __reduce__(self):
        return (open, ("ran", "w"))


def test_checkpoints_that_are_refused(run, place, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content = torch.load(checkpoint(place), weights_only=True)
    for name, change, words in (
        ("code", {"more": Code()}, "code.ckpt"),
        ("old", {"ImageData": {"order_seed": 0}}, "old.ckpt says neither how its training scaled"),
        ("reading", {"ImageData": {"reading": {}}}, "was written by another version"),
        ("option", {"hyper_parameters": {"hidden_units": [8], "units": 3}}, "by another version"),
        ("own", {"hyper_parameters": {"hidden_units": None}}, "--config names the configuration"),
        ("other", {"state_dict": {}}, "the checkpoint does not fit the model"),
    ):
        torch.save({**content, **change}, tmp_path / f"{name}.ckpt")
        assert run(f"predict --ckpt_path {tmp_path}/{name}.ckpt --image digits") == 2, name
        assert words in message(capsys)
    assert not (place / "ran").exists()
    with pytest.raises(TrainingError, match="is of a run without a network of its own"):
        config = place / "logs/Digits/version_0/config.yaml"
        Trained.load(checkpoint(place, "pictures"), config=config)
    (tmp_path / "list.yaml").write_text("- 1")
    with pytest.raises(TrainingError, match=r"list\.yaml is not the configuration of a run"):
        Trained.load(checkpoint(place, "pictures"), config=tmp_path / "list.yaml")


@pytest.mark.parametrize(
    ("form", "package"), [("safetensors", "safetensors.torch"), ("onnx", "onnxscript")]
)
def test_a_package_that_is_not_there_is_named(run, place, capsys, monkeypatch, form, package):
    monkeypatch.setitem(sys.modules, package, None)
    assert run(f"export --ckpt_path {checkpoint(place)} --output a.{form}") == 2
    assert f"pip install {package.partition('.')[0]}" in message(capsys)


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
    assert "the classes cat, dog, elk; these images have bee, cat, dog" in message(capsys)


# Exported from the command line.


@pytest.fixture(scope="module")
def exported(place):
    for ending in ("onnx", "pt2", "safetensors"):
        with pytest.MonkeyPatch.context() as patch:
            line = f"export --ckpt_path {checkpoint(place, 'pictures')} --format {ending}"
            assert train(place, *line.split(), monkeypatch=patch) == 0
    return place / "logs/pictures/version_0/checkpoints"


def test_exported_programs_take_pixels_in_0_to_1(place, exported):
    trained = Trained.load(checkpoint(place, "pictures"))
    levels = torch.arange(5 * 3 * 8 * 9).view(5, 3, 8, 9).remainder(256).to(torch.uint8)
    want = trained.probabilities(levels)
    program = torch.export.load(exported / "best.pt2").module()
    session = onnxruntime.InferenceSession(exported / "best.onnx")
    for count in (5, 1):
        images = levels[:count] / 255
        assert torch.allclose(program(images), want[:count], rtol=0, atol=1e-6)
        (got,) = session.run(["probabilities"], {"images": images.numpy()})
        assert torch.allclose(torch.from_numpy(got), want[:count], rtol=0, atol=1e-5)


def test_a_classifier_is_exported_as_it_is(place, tmp_path):
    model = Trained.load(checkpoint(place, "pictures")).model
    images = torch.randn(4, 3, 8, 9)
    manualnn.export(model, tmp_path / "scores.pt2", images)
    program = torch.export.load(tmp_path / "scores.pt2").module()
    assert torch.allclose(program(images), model(images), atol=1e-6)


def test_every_level_is_itself_again_inside_the_program():
    levels = torch.arange(256).to(torch.uint8)
    assert torch.equal(levels / 255 * 255, levels.float())
    assert torch.equal(torch.from_numpy(np.arange(256) / 255).float() * 255, levels.float())


def test_exported_weights_are_torchs(place, exported):
    network = manualnn.revert(CNN(3, (3, 8, 9), (2, 3), 5))
    network.load_state_dict(load_file(exported / "best.safetensors"))
    trained = Trained.load(checkpoint(place, "pictures"))
    images = torch.randn(4, 3, 8, 9)
    assert torch.equal(network.eval()(images), trained.model(images))


def test_metadata_says_what_the_file_takes_and_gives(place, exported):
    with safe_open(exported / "best.safetensors", "pt") as file:
        weights = file.metadata()
    graph = onnxruntime.InferenceSession(exported / "best.onnx").get_modelmeta().custom_metadata_map
    extra = {"metadata.json": ""}
    torch.export.load(exported / "best.pt2", extra_files=extra)
    assert json.loads(extra["metadata.json"]) == graph
    data = ImageData("ImageFolder", str(place / "pictures"), image_size=[8, 9], batch_size=8)
    data.setup("fit")
    mean, std = data._training_statistics()
    for said in (weights, graph):
        assert json.loads(said["classes"]) == ["cat", "dog", "elk"]
        assert json.loads(said["mean"]) == pytest.approx(mean.tolist(), rel=1e-6)
        assert json.loads(said["std"]) == pytest.approx(std.tolist(), rel=1e-6)
        assert "(batch, 3, 8, 9), red, green, blue" in said["input"]
    assert "applied inside" in graph["input"] and "minus mean, over std" in weights["input"]
    assert "Conv2d(3, 2" in weights["network"]


def test_a_file_that_differs_from_the_checkpoint_is_not_left(
    run, place, tmp_path, monkeypatch, capsys
):
    whole = manualnn.export

    def wrong(model, path, *args, **options):
        model.network[1][0].weight.data += 1
        written = whole(model, path, *args, **options)
        model.network[1][0].weight.data -= 1
        return written

    monkeypatch.setattr(manualnn, "export", wrong)
    assert run(f"export --ckpt_path {checkpoint(place)} --output {tmp_path}/a.pt2") == 2
    assert "what was written differs from the checkpoint by" in message(capsys)
    assert not list(tmp_path.iterdir())


def test_a_run_goes_on_from_a_checkpoint_of_before(place, tmp_path, monkeypatch):
    """A checkpoint without the reading is still one to go on from."""
    shutil.copytree(place / "logs", tmp_path / "logs")
    path = tmp_path / "logs/Digits/version_0/checkpoints/last.ckpt"
    content = torch.load(path, weights_only=True)
    content["ImageData"].pop("reading")
    torch.save(content, path)
    line = f"fit --ckpt_path {path} --trainer.max_epochs 2"
    assert train(tmp_path, *line.split(), monkeypatch=monkeypatch) == 0
    assert Trained.load(path).class_names == tuple("0123456789")
    config = yaml.safe_load((path.parent.parent / "config.yaml").read_text())
    assert config["trainer"]["max_epochs"] == 2
