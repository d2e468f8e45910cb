"""The trained classifiers that the tests of `predict` and `export` use."""

import pytest
import torchvision_files as files
from command_line import SMALL, train
from PIL import Image

from manualnn.training import ImageData

QUICK = ["--trainer.accelerator", "cpu", "--trainer.max_epochs", "1"]
QUICK += ["--trainer.enable_progress_bar", "false"]
CNN_PATH = "manualnn.training.networks.CNN"


def trained_in(folder):
    """A run on Digits, one on pictures in colour, and test images as PNG files, in this folder."""
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
        options += f" --data.batch_size 6 --model.network {CNN_PATH} --experiment pictures"
        options += " --model.network.channels [2,3] --model.network.units 5"
        assert train(folder, "fit", *options.split(), *QUICK, monkeypatch=patch) == 0
    return folder


def checkpoint(place, name="Digits"):
    return place / f"logs/{name}/version_0/checkpoints/best.ckpt"
