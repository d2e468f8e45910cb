"""`train.py export`: the file takes pictures, and gives what the checkpoint gives."""

import json
import sys

import numpy as np
import onnxruntime
import pytest
import torch
from command_line import message, train
from safetensors import safe_open
from safetensors.torch import load_file
from trained_runs import checkpoint

import manualnn
from manualnn.training import ImageData, Trained
from manualnn.training.networks import CNN


@pytest.fixture
def run(place, monkeypatch):
    return lambda line: train(place, *line.split(), monkeypatch=monkeypatch)


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


@pytest.mark.parametrize(
    ("form", "package"), [("safetensors", "safetensors.torch"), ("onnx", "onnxscript")]
)
def test_a_package_that_is_not_there_is_named(run, place, capsys, monkeypatch, form, package):
    monkeypatch.setitem(sys.modules, package, None)
    assert run(f"export --ckpt_path {checkpoint(place)} --output a.{form}") == 2
    assert f"pip install {package.partition('.')[0]}" in message(capsys)
