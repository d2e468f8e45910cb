"""What the tests of ImageData share."""

import pytest
import torch
import torchvision_files as files

from manualnn.training.data import DataError, ImageData

EMNIST_CLASSES = {
    "byclass": 62, "bymerge": 47, "balanced": 47, "letters": 26, "digits": 10, "mnist": 10,
}  # fmt: skip


def ready(stage=None, **options) -> ImageData:
    data = ImageData(**{"batch_size": 4, "download": False, **options})
    data.prepare_data()
    data.setup(stage)
    return data


def served(loader) -> tuple[torch.Tensor, torch.Tensor]:
    images, labels = zip(*loader, strict=True)
    return torch.cat(images), torch.cat(labels)


def rows(images: torch.Tensor) -> list[bytes]:
    return sorted(image.numpy().tobytes() for image in images)


def refusal(**options) -> str:
    with pytest.raises(DataError) as caught:
        ready(**options)
    message = str(caught.value)
    assert "\n" not in message
    return message


def written(name, root, monkeypatch, split=None):
    if name == "EMNIST":
        return files.emnist(root, split, EMNIST_CLASSES[split])
    if name == "QMNIST":
        return files.qmnist(root)
    if name == "SVHN":
        return files.svhn(root, monkeypatch)
    if name.startswith("CIFAR"):
        return files.cifar(root, monkeypatch, name)
    return files.mnist(root, name)


NAMED = ["MNIST", "FashionMNIST", "KMNIST", "QMNIST", "CIFAR10", "CIFAR100", "SVHN"]
CASES = [(name, None) for name in NAMED] + [("EMNIST", split) for split in EMNIST_CLASSES]
