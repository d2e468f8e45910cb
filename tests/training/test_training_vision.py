"""Networks of convolutions in training: both configurations, the same curve, what is said of bad input."""

import copy
import pickle

import pytest
import torch
import torchvision
import torchvision_files as files
import yaml
from command_line import ROOT, message
from lightning.pytorch import Callback, Trainer, seed_everything

import manualnn
from manualnn import nn
from manualnn.conversion.model import is_memory_saving
from manualnn.conversion.reasons import name_layer
from manualnn.training import ImageClassifier, ImageData
from manualnn.training.networks import CNN

CNN_CONFIG, RESNET_CONFIG = ROOT / "configs/mnist_cnn.yaml", ROOT / "configs/resnet18.yaml"
QUICK = ["--trainer.accelerator", "cpu", "--trainer.max_epochs", "1"]


def checkpoint(path) -> dict:
    return torch.load(path / "checkpoints/last.ckpt", weights_only=True)


# The network of configs/mnist_cnn.yaml.


def test_every_layer_of_the_cnn_is_manual():
    assert all(
        type(layer).__module__.startswith("manualnn.") for layer in CNN(num_classes=3).modules()
    )


def test_the_cnn_takes_other_pictures_and_classes():
    network = CNN(num_classes=3, image_shape=(3, 9, 14), channels=(4, 5), units=7)
    assert network(torch.zeros(2, 3, 9, 14)).shape == (2, 3)
    assert [tuple(p.shape) for p in network.parameters() if p.ndim == 4] == [
        (4, 3, 5, 5), (5, 4, 5, 5),
    ]  # fmt: skip


# Both configurations from the command line, on tiny data.


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_mnist_cnn_runs_from_start_to_end(run, tmp_path, capsys, precision):
    files.mnist(tmp_path / "data")
    small = ["--data.batch_size", "12", "--trainer.precision", precision]
    assert run("fit", "--config", CNN_CONFIG, *small, *QUICK, "--test_best", "true") == 0
    assert "test/acc" in capsys.readouterr().out
    assert checkpoint(tmp_path / "logs/mnist_cnn/version_0")["global_step"] == 3
    assert run("predict", "--ckpt_path", "best", "--experiment", "mnist_cnn") == 0


def pictures(root, size=(40, 36), count=12):
    files.pictures(root, {"cat": count, "dog": count, "elk": count}, size=size)
    return root


SMALL_RESNET = ["--data.batch_size", "5", "--data.image_size", "32", "--data.shift", "4"]


def test_resnet18_runs_on_a_folder_of_pictures(run, tmp_path, capsys):
    root = pictures(tmp_path / "data/pictures")
    args = ["--config", RESNET_CONFIG, *SMALL_RESNET, *QUICK]
    assert run("fit", *args, "--trainer.precision", "bf16-mixed", "--test_best", "true") == 0
    assert "test/acc" in capsys.readouterr().out
    folder = tmp_path / "logs/resnet18/version_0"
    network = yaml.safe_load((folder / "config.yaml").read_text())["model"]["network"]
    assert network["init_args"]["num_classes"] == 3
    # The keys are those of the model as torchvision makes it, so the weights can be had without us.
    weights = checkpoint(folder)["state_dict"]
    plain = torchvision.models.resnet18(num_classes=3)
    plain.load_state_dict({name.removeprefix("network."): w for name, w in weights.items()})
    # What a network keeps for backward changes nothing of what a checkpoint says.
    results = []
    for convert in ("less", "off"):
        path = ["--ckpt_path", folder / "checkpoints/best.ckpt", "--model.convert", convert]
        assert run("test", *path) == 0
        results.append([x for x in capsys.readouterr().out.splitlines() if "test/" in x])
    assert results[0] == results[1] != []
    assert run("predict", "--ckpt_path", "last", "--experiment", "resnet18") == 0
    written = capsys.readouterr().out.strip().rsplit(": ", 1)[1]
    lines = (tmp_path / written).read_text().splitlines()
    assert len(lines) == 1 + 8
    assert all(line.startswith(str(root.relative_to(tmp_path))) for line in lines[1:])
    assert {line.split(",")[1] for line in lines[1:]} <= {"cat", "dog", "elk"}


def test_a_run_goes_on_unconverted(run, tmp_path):
    pictures(tmp_path / "data/pictures", count=6)
    args = ["--config", RESNET_CONFIG, *SMALL_RESNET, "--trainer.accelerator", "cpu"]
    args += ["--trainer.limit_val_batches", "0", "--lr_scheduler.T_max", "60"]
    assert run("fit", *args, "--trainer.max_epochs", "1") == 0
    path = ["--ckpt_path", "logs/resnet18/version_0/checkpoints/last.ckpt"]
    more = [*args, "--trainer.max_epochs", "2"]
    assert run("fit", *more, *path, "--model.convert", "off", "--experiment", "gone_on") == 0
    assert run("fit", *more, "--experiment", "whole") == 0
    ends = [checkpoint(tmp_path / f"logs/{name}/version_0") for name in ("gone_on", "whole")]
    assert ends[0]["global_step"] == ends[1]["global_step"] > 0
    for name, value in ends[0]["state_dict"].items():
        assert torch.equal(value, ends[1]["state_dict"][name]), name


# The curve.


class Curve(Callback):
    def __init__(self):
        self.losses = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.losses.append(outputs["loss"].item())


def curve(root, convert) -> torch.Tensor:
    seed_everything(5, verbose=False)
    data = ImageData(
        dataset="ImageFolder", root=str(root), image_size=32, batch_size=4, flip=True, shift=2,
        val_fraction=0, test_fraction=0,
    )  # fmt: skip
    model = ImageClassifier(
        data.num_classes, data.image_shape, convert=convert,
        network=torchvision.models.resnet18(num_classes=3),
    )  # fmt: skip
    model.configure_optimizers = lambda: torch.optim.SGD(model.parameters(), 0.02, momentum=0.9)
    kept = Curve()
    Trainer(
        accelerator="cpu", precision="64-true", max_steps=20, callbacks=[kept], logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    ).fit(model, datamodule=data)  # fmt: skip
    return torch.tensor(kept.losses, dtype=torch.float64)


def test_twenty_steps_of_resnet18_have_the_loss_of_the_unconverted_one(tmp_path):
    root = pictures(tmp_path / "pictures")
    theirs, ours = curve(root, "off"), curve(root, "less")
    assert len(theirs) == 20
    assert theirs.std() > 0.01  # it does train
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-9)


# Bad input: the exception is torch's, its message starts with the layer.


class Tower(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = torch.nn.Conv2d(3, 4, 3)
        self.blocks = torch.nn.Sequential(
            torch.nn.Sequential(torch.nn.Conv2d(4, 4, 3, stride=2), torch.nn.ReLU()),
            torch.nn.Sequential(torch.nn.Conv2d(4, 4, 3), torch.nn.BatchNorm2d(4)),
        )
        self.pool = torch.nn.MaxPool2d(2)
        self.norm = torch.nn.BatchNorm1d(4)
        self.head = torch.nn.Linear(4, 2)

    def forward(self, x):
        x = self.pool(self.blocks(self.stem(x)))
        return self.head(self.norm(x.flatten(1)))


BAD = {
    "a channel more": ((2, 4, 13, 13), "stem"),
    "no picture": ((2,), "stem"),
    "smaller than the first kernel": ((2, 3, 2, 2), "stem"),
    "smaller than a later kernel": ((2, 3, 8, 8), "blocks.1.0"),
    "smaller than the window": ((2, 3, 9, 9), "pool"),
    "one value a channel": ((1, 3, 9, 9), "blocks.1.1"),
    "one value a unit": ((1, 3, 13, 13), "norm"),
    "too many units": ((2, 3, 17, 17), "norm"),
}


def raised(model, images) -> Exception:
    with pytest.raises((RuntimeError, ValueError, IndexError, TypeError)) as caught:
        model(images)
    return caught.value


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_as_by_torch_and_names_the_layer(name):
    shape, layer = BAD[name]
    plain = Tower()
    ours = manualnn.convert(copy.deepcopy(plain))
    images = torch.zeros(shape)
    theirs, error = raised(plain, images), raised(ours, images)
    assert type(error) is type(theirs)
    assert str(error) == f"{layer}: {theirs}"


def test_resnet18_names_its_layers():
    model = manualnn.convert(torchvision.models.resnet18(num_classes=3))
    error = raised(model, torch.zeros(1, 3, 32, 32))
    assert type(error) is ValueError
    assert str(error).startswith(
        "layer4.0.bn1: Expected more than 1 value per channel when training"
    )
    assert str(raised(model, torch.zeros(2, 1, 32, 32))).startswith("conv1: Given groups=1, weight")


def test_the_layer_is_named_in_evaluation_too():
    model = manualnn.convert(Tower()).eval()
    with torch.no_grad():
        assert str(raised(model, torch.zeros(2, 4, 13, 13))).startswith("stem: Given groups=1")


def test_a_converted_part_of_a_converted_model_is_named_once():
    outer = torch.nn.Sequential(torch.nn.Identity(), manualnn.convert(Tower()))
    assert str(raised(outer, torch.zeros(2, 4, 13, 13))).startswith("stem: Given groups=1")
    manualnn.convert(outer)
    message = str(raised(outer, torch.zeros(2, 4, 13, 13)))
    assert message.startswith("1.stem: Given groups=1")
    assert message.count("stem") == 1


class Raising(torch.nn.Module):
    def __init__(self, error):
        super().__init__()
        self.inner, self.error = torch.nn.Module(), error
        self.inner.forward = self.fail

    def fail(self, x):
        raise self.error

    def forward(self, x):
        return self.inner(x)


class Stop(Exception):
    pass


@pytest.mark.parametrize(
    "error",
    [Stop("enough"), KeyError("key"), ValueError(), ValueError(3), OSError(2, "no"), Stop()],
    ids=repr,
)
def test_an_exception_of_another_kind_is_left_as_it_is(error):
    args = error.args
    with pytest.raises(type(error)) as caught:
        manualnn.convert(torch.nn.Sequential(Raising(error)))(torch.zeros(1))
    assert caught.value is error
    assert error.args == args


def test_a_named_exception_can_be_pickled():
    error = raised(manualnn.convert(Tower()), torch.zeros(2, 4, 13, 13))
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_what_no_layer_raised_gets_no_name():
    error = ValueError("from elsewhere")
    name_layer(nn.Sequential(nn.Linear(1, 1)), error)
    assert str(error) == "from elsewhere"


@pytest.mark.parametrize("convert", ["less", "all", "off"])
def test_the_line_of_the_command_names_the_layer(run, tmp_path, capsys, convert):
    """In training, after the sanity check of the validation has gone well."""
    pictures(tmp_path / "data/pictures", count=3)
    args = ["--data.image_size", "32", "--data.batch_size", "1", "--model.convert", convert]
    assert run("fit", "--config", RESNET_CONFIG, *args, *QUICK) == 2
    said = message(capsys)
    assert "the network fails on images, (1, 3, 32, 32)" in said
    assert "ValueError: layer4.0.bn1: Expected more than 1 value per channel when training" in said
    assert "with another batch_size" in said
    grey = ["--data.image_size", "32", "--data.channels", "1", "--data.batch_size", "4"]
    assert run("fit", "--config", RESNET_CONFIG, *grey, *QUICK) == 2
    said = message(capsys)
    assert "its first images" in said
    assert "RuntimeError: conv1: Given groups=1, weight of size [64, 3, 7, 7]" in said


# The option.


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"hidden_units": [3], "convert": "off"}, "network` of your own"),
        ({"network": torch.nn.Flatten(), "convert": "some"}, "known: less, all, off"),
    ],
)
def test_a_conversion_that_means_nothing_is_refused(options, words):
    with pytest.raises(manualnn.training.TrainingError, match=words):
        ImageClassifier(**options)


def test_what_becomes_of_a_network():
    for convert, layer in (("less", nn.Conv2d), ("all", nn.Conv2d), ("off", torch.nn.Conv2d)):
        network = Tower()
        model = ImageClassifier(convert=convert, network=network)
        assert model.network is network
        assert type(network.stem) is layer
        assert is_memory_saving(type(network)) == (convert == "less")
