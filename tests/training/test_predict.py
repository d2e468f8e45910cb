"""`predict --image`: the numbers of the training, what is printed and written, mistakes."""

import csv
import json
import os
import shutil
import stat
from functools import partial

import pytest
import torch
import yaml
from command_line import SMALL, message, train
from trained_runs import QUICK, checkpoint

from manualnn.training import ImageClassifier, ImageData, Trained, TrainingError
from manualnn.training.networks import CNN


@pytest.fixture
def run(place, monkeypatch):
    return lambda line: train(place, *line.split(), monkeypatch=monkeypatch)


def trained_by_hand(model, path, data, batches):
    """What the run's own classes make of its own tensors, by way of nothing that is under test."""
    model.load_state_dict(torch.load(path, weights_only=True)["state_dict"])
    with torch.inference_mode():
        return torch.cat(
            [model.eval().predict_step(data.scale(x), 0).probabilities for x in batches]
        )


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
    assert len(want) == len(names) == 13
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
    got = [trained.predict(names[start : start + 5]) for start in range(0, 13, 5)]
    assert torch.equal(torch.cat(got), want)
    assert len(want.unique(dim=0)) >= 10
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
    assert printed.err == "note: left out: 1 hidden, 1 .txt, 1 linked back\n"


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


@pytest.mark.parametrize(
    ("name", "form", "words"),
    [
        ("picture.png", "", "and the command reads it"),
        ("link.txt", "", "and the command reads it"),
        ("best.ckpt", "", "and the command reads it"),
        ("other.ckpt", "", "and what is there is no table"),
        ("notes.txt", "", "and what is there is no table"),
        ("table.csv", "", "and what is there is no csv"),
        ("new.png", "", "what is written is table, no .png file"),
        ("new.ckpt", "", "what is written is table, no .ckpt file"),
        ("new.json", "--format csv", "what is written is csv, no .json file"),
    ],
)
def test_no_other_file_is_written_over(run, place, tmp_path, capsys, name, form, words):
    best, picture = tmp_path / "best.ckpt", tmp_path / "picture.png"
    shutil.copy(checkpoint(place), best)
    shutil.copy(checkpoint(place), tmp_path / "other.ckpt")
    shutil.copy(place / "digits/00.png", picture)
    os.symlink(picture, tmp_path / "link.txt")
    (tmp_path / "notes.txt").write_text("what I wrote")
    (tmp_path / "table.csv").write_text("a,b\n1,2\n")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    line = f"predict --ckpt_path {best} --image {picture} {form} --output {tmp_path}/"
    assert run(line + name) == 2
    assert words in message(capsys)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    for mine in ("mine", "mine.csv", "mine.json"):
        for _ in range(2):  # what the command itself has written it may write again
            assert run(line.replace(form, "") + mine) == 0


def test_no_pipe_and_no_device_is_written_over_and_a_link_is_followed(run, place, tmp_path, capsys):
    def commands(output):
        predict = f"predict --ckpt_path {checkpoint(place)} --image digits/00.png --output {output}"
        return (
            f"{predict} --format csv",
            f"export --ckpt_path {checkpoint(place)} --format safetensors --output {output}",
        )

    os.mkfifo(tmp_path / "x.csv")
    os.mkfifo(tmp_path / "x.safetensors")
    names = [["x.csv"], ["x.safetensors"]]
    if os.getuid() == 0:
        for name, other in zip(names, ("null.csv", "null.safetensors"), strict=True):
            os.mknod(tmp_path / other, 0o666 | stat.S_IFCHR, os.makedev(1, 3))
            name.append(other)
    for number, known in enumerate(names):
        for name in known:
            path = tmp_path / name
            before = path.stat()
            capsys.readouterr()
            assert run(commands(path)[number]) == 2
            said = f"--output {path} is a pipe, a socket or a device, and no file"
            assert message(capsys) == said
            assert path.stat().st_ino == before.st_ino
    (tmp_path / "kept").mkdir()
    for ending, command in zip(("csv", "safetensors"), commands("{}"), strict=True):
        link, target = tmp_path / f"link.{ending}", tmp_path / f"kept/target.{ending}"
        link.symlink_to(target)
        for _ in range(2):
            assert run(command.format(link)) == 0
            assert link.is_symlink() and target.stat().st_size
            os.truncate(target, 0)


@pytest.mark.parametrize("form", ["pt2", "safetensors"])
def test_an_export_writes_over_an_export_alone(run, place, tmp_path, capsys, form):
    line = f"export --ckpt_path {checkpoint(place)} --output {tmp_path}/a.{form}"
    shutil.copy(checkpoint(place), tmp_path / f"a.{form}")
    assert run(line) == 2
    assert f"and what is there is no {form}" in message(capsys)
    (tmp_path / f"a.{form}").unlink()
    for _ in range(2):
        assert run(line) == 0
    own = tmp_path / "b.pt2"
    shutil.copy(checkpoint(place), own)
    assert run(f"export --ckpt_path {own} --format pt2") == 2
    assert "and the command reads it" in message(capsys)


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


PLAIN = """
import torch

class Plain(torch.nn.Sequential):
    def __init__(self, num_classes, units=7, *rest):
        layers = torch.nn.Linear(64, units), torch.nn.ReLU(), torch.nn.Linear(units, num_classes)
        super().__init__(torch.nn.Flatten(), *layers)

class Needs(Plain):
    def __init__(self, units):
        super().__init__(10, units)
"""


@pytest.mark.parametrize("name", ["Plain", "Needs"])
def test_a_network_without_type_hints_is_read_as_fit_reads_it(
    place, tmp_path, monkeypatch, capsys, name
):
    (tmp_path / "plain_networks.py").write_text(PLAIN)
    monkeypatch.syspath_prepend(tmp_path)
    options = ["--model.network", f"plain_networks.{name}", "--model.network.units", "5"]
    run = partial(train, tmp_path, monkeypatch=monkeypatch)
    assert run("fit", *options, "--data.batch_size", "512", *QUICK) == 0
    config = ["--ckpt_path", "last", "--config", "logs/Digits/version_0/config.yaml"]
    capsys.readouterr()
    assert run("predict", *config, "--image", place / "digits/00.png") == 0
    assert "00.png" in capsys.readouterr().out
    assert run("export", *config, "--format", "safetensors") == 0


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
