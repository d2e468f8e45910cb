"""ImageData: what is read, how it is split, shuffled, scaled and moved, and under Lightning."""

import os
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision_files as files
from data_helpers import CASES, EMNIST_CLASSES, ready, refusal, rows, served, written
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from torchvision import datasets

from manualnn.training.data import ImageData
from manualnn.training.data.batches import mean_and_std, shift_and_flip
from manualnn.training.seeds import generator

# What is read


@pytest.mark.parametrize(("name", "split"), CASES)
def test_named_datasets_are_read_as_written(name, split, tmp_path, monkeypatch):
    expected = written(name, tmp_path, monkeypatch, split)
    data = ready(dataset=name, root=str(tmp_path), split=split)
    images, labels = served(data.test_dataloader())
    assert images.dtype == torch.uint8
    assert labels.dtype == torch.int64
    assert torch.equal(images, expected[False][0])
    assert torch.equal(labels, expected[False][1])
    parts = [served(data.train_dataloader()), served(data.val_dataloader())]
    images, labels = (torch.cat(part) for part in zip(*parts, strict=True))
    pairs = [image.numpy().tobytes() + bytes([y]) for image, y in zip(images, labels, strict=True)]
    truth = [x.numpy().tobytes() + bytes([y]) for x, y in zip(*expected[True], strict=True)]
    assert sorted(pairs) == sorted(truth)
    assert data.image_shape == tuple(images.shape[1:])
    assert labels.max() < data.num_classes == len(data.class_names)


@pytest.mark.parametrize(("name", "split"), CASES)
def test_shape_and_classes_need_no_file(name, split, tmp_path):
    data = ImageData(dataset=name, root=str(tmp_path / "nowhere"), split=split)
    count = EMNIST_CLASSES[split] if split else 100 if name == "CIFAR100" else 10
    assert data.num_classes == len(set(data.class_names)) == count
    side, channels = (32, 3) if name.startswith("CIFAR") or name == "SVHN" else (28, 1)
    assert data.image_shape == (channels, side, side)


@pytest.mark.parametrize("split", list(EMNIST_CLASSES))
def test_emnist_class_names_are_torchvisions(split):
    names = [name for name in datasets.EMNIST.classes_split_dict[split] if name != "N/A"]
    assert list(ImageData(dataset="EMNIST", split=split).class_names) == names


def test_names_are_torchvisions():
    for kind in (datasets.FashionMNIST, datasets.KMNIST):
        assert list(ImageData(dataset=kind.__name__).class_names) == kind.classes
    assert ImageData(dataset="EMNIST").num_classes == 47


def test_digits_need_no_file_and_keep_their_test_set(tmp_path):
    from sklearn.datasets import load_digits

    data = ready(root=str(tmp_path / "nowhere"), val_fraction=0.2, seed=3)
    other = ready(val_fraction=0.0, seed=9, batch_size=64)
    tests = [served(d.test_dataloader())[0] for d in (data, other)]
    assert torch.equal(*tests)
    assert len(tests[0]) == 360
    train, val = served(data.train_dataloader())[0], served(data.val_dataloader())[0]
    whole = np.round(load_digits().images * 255 / 16).astype(np.uint8)[:, None]
    assert rows(torch.cat([train, val, tests[0]])) == rows(torch.tensor(whole))
    assert not (tmp_path / "nowhere").exists()


def test_real_mnist():
    root = os.environ.get("MANUALNN_DATA", str(Path(__file__).parents[3] / "shared" / "data"))
    if not (Path(root) / "MNIST").is_dir():
        pytest.skip(f"MNIST is not in {root}; set MANUALNN_DATA to the folder that holds it")
    data = ready(dataset="MNIST", root=root, batch_size=128, val_fraction=1 / 12)
    assert [len(part) for part in (data._train, data._val, data._test)] == [55000, 5000, 10000]
    factor, offset = data._scale
    assert factor.item() == pytest.approx(1 / (255 * 0.3081), rel=2e-3)
    assert -offset.item() * 0.3081 == pytest.approx(0.1307, rel=5e-3)
    start = time.process_time()
    count = sum(len(data.scale(images)) for images, _ in data.train_dataloader())
    assert count == 55000
    assert time.process_time() - start < 1.0


# How it is split and shuffled


def test_validation_split_depends_on_its_own_seed_only(tmp_path):
    files.mnist(tmp_path)

    def validation(seed, general):
        torch.manual_seed(general)
        data = ready(dataset="MNIST", root=str(tmp_path), seed=seed, val_fraction=0.25)
        return served(data.val_dataloader())[0]

    first = validation(1, 10)
    assert len(first) == 10
    assert torch.equal(first, validation(1, 11))
    assert not torch.equal(first, validation(2, 10))


def test_order_changes_with_epoch_and_seed_and_leaves_global_numbers_alone():
    def two_epochs(general):
        torch.manual_seed(general)
        loader = ready().train_dataloader()
        return [served(loader)[0] for _ in range(2)]

    first, second = two_epochs(1)
    assert not torch.equal(first, second)
    assert rows(first) == rows(second)
    again = two_epochs(1)
    assert torch.equal(first, again[0])
    assert torch.equal(second, again[1])
    assert not torch.equal(first, two_epochs(2)[0])
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    served(ready().train_dataloader())
    assert torch.equal(torch.rand(3), expected)


def test_batches_are_fetched_whole(monkeypatch):
    from manualnn.training.data.batches import TensorBatches

    data = ready(batch_size=100)
    monkeypatch.delattr(TensorBatches, "__getitem__")
    sizes = [len(labels) for _, labels in data.train_dataloader()]
    assert sizes == [100] * 12 + [93]


# How it is scaled and moved


def test_mean_and_deviation_are_exact():
    images = torch.randint(0, 256, (50, 3, 5, 7), dtype=torch.uint8)
    chosen = torch.arange(0, 50, 3)
    mean, std = mean_and_std(images, chosen)
    values = images[chosen].double().div(255).transpose(0, 1).flatten(1)
    assert torch.allclose(mean, values.mean(1), rtol=1e-12, atol=0)
    assert torch.allclose(std, values.std(1, unbiased=False), rtol=1e-12, atol=0)
    assert mean_and_std(torch.full((2, 1, 3, 3), 7, dtype=torch.uint8))[1].item() == 1


def test_auto_looks_at_the_training_split_alone(tmp_path):
    files.mnist(tmp_path)
    data = ready(dataset="MNIST", root=str(tmp_path), val_fraction=0.5)
    train = data.scale(served(data.train_dataloader())[0])
    val = data.scale(served(data.val_dataloader())[0])
    assert train.mean().abs() < 1e-6
    assert abs(train.std(unbiased=False) - 1) < 1e-6
    assert val.mean().abs() > 1e-5


def test_given_and_no_normalisation(tmp_path, monkeypatch):
    files.cifar(tmp_path, monkeypatch)
    options = {"dataset": "CIFAR10", "root": str(tmp_path)}
    images = torch.randint(0, 256, (5, 3, 32, 32), dtype=torch.uint8)
    unit = images.double() / 255
    plain = ready(normalize=None, **options).scale(images)
    assert plain.dtype == torch.float32
    assert torch.allclose(plain.double(), unit, atol=1e-6)
    mean, std = [0.1, 0.5, 0.9], [0.2, 0.3, 2.0]
    given = ready(normalize=[mean, std], **options).scale(images)
    shape = (1, 3, 1, 1)
    expected = (unit - torch.tensor(mean).view(shape)) / torch.tensor(std).view(shape)
    assert torch.allclose(given.double(), expected, atol=1e-5)
    assert "1 means and 3 deviations" in refusal(normalize=[[0.1], std], **options)


def test_shift_is_each_images_own_and_fills_with_zero():
    images = torch.randint(1, 256, (300, 2, 6, 5), dtype=torch.uint8)
    moved = shift_and_flip(images, 2, False, generator(1))
    seen = set()
    for image, result in zip(images, moved, strict=True):
        found = []
        for dy in range(-2, 3):
            for dx in range(-2, 3):
                there = torch.zeros_like(image)
                there[:, max(dy, 0) : 6 + min(dy, 0), max(dx, 0) : 5 + min(dx, 0)] = image[
                    :, max(-dy, 0) : 6 + min(-dy, 0), max(-dx, 0) : 5 + min(-dx, 0)
                ]
                if torch.equal(there, result):
                    found.append((dy, dx))
        assert len(found) == 1
        seen.update(found)
    assert len(seen) == 25


def test_flip_is_each_images_own():
    images = torch.randint(0, 256, (400, 1, 4, 6), dtype=torch.uint8)
    result = shift_and_flip(images, 0, True, generator(2))
    same = (result == images).flatten(1).all(1)
    mirrored = (result == images.flip(-1)).flatten(1).all(1)
    assert (same ^ mirrored).all()
    assert 150 < mirrored.sum() < 250


# Under Lightning


class Probe(LightningModule):
    """A linear model that remembers what it was fed."""

    def __init__(self, features=64, classes=10):
        super().__init__()
        self.layer = torch.nn.Linear(features, classes)
        self.fed = {"train": [], "val": [], "test": [], "predict": []}

    def step(self, part, batch):
        images, labels = batch
        self.fed[part].append(images.detach().clone())
        return torch.nn.functional.cross_entropy(self.layer(images.flatten(1)), labels)

    def training_step(self, batch, _):
        return self.step("train", batch)

    def validation_step(self, batch, _):
        self.step("val", batch)

    def test_step(self, batch, _):
        self.step("test", batch)

    def predict_step(self, batch, _):
        self.step("predict", batch)
        return batch[1]

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def trainer(tmp_path, epochs, **options):
    checkpoint = ModelCheckpoint(tmp_path, save_last=True)
    options.setdefault("callbacks", [checkpoint])
    return Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, enable_progress_bar=False,
        enable_model_summary=False, **options,
    )  # fmt: skip


def fitted(tmp_path, epochs, data, ckpt=None, **options):
    model = Probe(data.image_shape[1] * data.image_shape[2] * data.image_shape[0], data.num_classes)
    run = trainer(tmp_path, epochs, **options)
    run.fit(model, datamodule=data, ckpt_path=ckpt)
    return run, model


def test_augmentation_is_for_training_alone_and_scaling_for_all(tmp_path):
    data = ImageData(batch_size=100, shift=2, flip=True, normalize=None)
    run, model = fitted(tmp_path, 1, data)
    run.test(model, datamodule=data, verbose=False)
    labels = run.predict(model, datamodule=data)
    plain = ready(batch_size=100, normalize=None)
    for part, loader in (("val", plain.val_dataloader()), ("test", plain.test_dataloader())):
        images = plain.scale(served(loader)[0])
        assert torch.equal(torch.cat(model.fed[part][-len(loader) :]), images)
    assert torch.equal(torch.cat(model.fed["predict"]), images)
    assert torch.equal(torch.cat(labels), served(plain.test_dataloader())[1])
    train = plain.scale(served(plain.train_dataloader())[0])
    assert torch.cat(model.fed["train"]).shape == train.shape
    assert rows(torch.cat(model.fed["train"])) != rows(train)


@pytest.mark.parametrize(
    ("precision", "dtype"), [("64-true", torch.float64), ("bf16-mixed", torch.float32)]
)
def test_batches_have_the_runs_precision(tmp_path, precision, dtype):
    _, model = fitted(tmp_path, 1, ImageData(batch_size=500), precision=precision)
    assert {images.dtype for part in ("train", "val") for images in model.fed[part]} == {dtype}


@pytest.mark.parametrize("workers", [0, 1])
def test_same_seed_same_run_and_resuming_goes_on(tmp_path, workers):
    def data():
        return ImageData(batch_size=300, shift=1, flip=True, num_workers=workers)

    seed_everything(3)
    _, whole = fitted(tmp_path / "whole", 3, data())
    seed_everything(3)
    _, again = fitted(tmp_path / "again", 2, data())
    assert torch.equal(torch.cat(whole.fed["train"])[: 2 * 1293], torch.cat(again.fed["train"]))
    seed_everything(4)  # what goes on is what the checkpoint says, not this
    _, resumed = fitted(tmp_path / "rest", 3, data(), ckpt=tmp_path / "again" / "last.ckpt")
    assert torch.equal(torch.cat(whole.fed["train"])[2 * 1293 :], torch.cat(resumed.fed["train"]))
    assert torch.equal(whole.layer.weight, resumed.layer.weight)
    seed_everything(4)
    _, other = fitted(tmp_path / "other", 1, data())
    assert not torch.equal(whole.fed["train"][0], other.fed["train"][0])


def test_each_batch_draws_its_own_numbers(tmp_path, monkeypatch):
    from manualnn.training.data import module

    seeds = []

    def recorded(images, shift, flip, draw):
        seeds.append(draw.initial_seed())
        return shift_and_flip(images, shift, flip, draw)

    monkeypatch.setattr(module, "shift_and_flip", recorded)
    fitted(tmp_path, 2, ImageData(batch_size=300, flip=True))
    assert len(seeds) == len(set(seeds)) == 10


@pytest.mark.parametrize("workers", [0, 1])
def test_resuming_within_an_epoch(tmp_path, workers):
    def data():
        return ImageData(batch_size=300, shift=1, flip=True, num_workers=workers)

    seed_everything(3)
    _, whole = fitted(tmp_path / "whole", 2, data())
    for steps in (3, 7, 10):  # in the first epoch, in the second, at its end; an epoch has 5
        folder = tmp_path / str(steps)
        saved = ModelCheckpoint(folder, every_n_train_steps=steps, save_top_k=-1, filename="{step}")
        seed_everything(3)
        fitted(folder, 2, data(), callbacks=[saved])
        seed_everything(4)
        _, rest = fitted(
            folder,
            2,
            data(),
            ckpt=folder / f"step={steps}.ckpt",
            callbacks=[],
            enable_checkpointing=False,
        )
        assert [len(images) for images in rest.fed["train"]] == (([300] * 4 + [93]) * 2)[steps:]
        for expected, found in zip(whole.fed["train"][steps:], rest.fed["train"], strict=True):
            assert torch.equal(expected, found)
        assert torch.equal(whole.layer.weight, rest.layer.weight)


def test_no_validation(tmp_path):
    _, model = fitted(tmp_path, 1, ImageData(batch_size=500, val_fraction=0))
    assert sum(map(len, model.fed["train"])) == 1437
    assert not model.fed["val"]


def test_distributed_sampler_takes_the_place_of_ours():
    from torch.utils.data import RandomSampler

    # Lightning shuffles in a distributed run where it finds a RandomSampler.
    data = ready()
    assert isinstance(data.train_dataloader().sampler, RandomSampler)
    assert not isinstance(data.val_dataloader().sampler, RandomSampler)


def test_configuration_is_the_signature():
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(ImageData, "data")
    text = ["--data.normalize=[[0.1],[0.3]]", "--data.image_size=[4,5]", "--data.root=pics"]
    found = parser.parse_args([*text, "--data.dataset=ImageFolder", "--data.channels=1"])
    data = parser.instantiate_classes(found).data
    assert data.normalize == [[0.1], [0.3]]
    assert data.image_size == (4, 5)
    assert "Side, or [height, width]" in parser.format_help().replace("\n", " ")
