"""ImageData: what is refused and with which words; downloads, whole and broken off."""

import functools
import http.server
import os
import pickle
import threading

import numpy as np
import pytest
import torch
import torchvision_files as files
from data_helpers import CASES, ready, refusal, served, written
from torchvision import datasets

from manualnn.training.data import DataError, ImageData


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"dataset": "MINST"}, "no dataset is called 'MINST'"),
        ({"val_fraction": 1.0}, "val_fraction is 1.0"),
        ({"val_fraction": -0.1}, "val_fraction is -0.1"),
        ({"test_fraction": 2}, "test_fraction is 2"),
        ({"val_fraction": float("nan")}, "val_fraction is nan"),
        ({"val_fraction": 1e-6}, "val_fraction 1e-06 of 1437 images is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"batch_size": 1294}, "batch_size is 1294, but there are only 1293 training images"),
        ({"num_workers": -1}, "num_workers is -1"),
        ({"shift": -1}, "shift is -1"),
        ({"image_size": 8}, "ImageFolder's"),
        ({"channels": 1}, "ImageFolder's"),
        ({"dataset": "ImageFolder", "image_size": 0}, "image_size is 0"),
        ({"dataset": "ImageFolder", "channels": 4}, "channels is 4"),
        ({"split": "letters"}, "split is EMNIST's"),
        ({"dataset": "EMNIST", "split": "greek"}, "no split 'greek'"),
        ({"normalize": [[0.1]]}, "normalize must be"),
        ({"normalize": [[0.1], [0.0]]}, "deviations must be above 0"),
    ],
)
def test_arguments_that_do_not_fit(options, words):
    assert words in refusal(**options)


@pytest.mark.parametrize(("name", "split"), CASES)
def test_absent_dataset_says_where_it_looked(name, split, tmp_path):
    message = refusal(dataset=name, root=str(tmp_path / "here"), split=split)
    assert str(tmp_path / "here") in message
    assert "--data.download true" in message
    assert not (tmp_path / "here").exists()
    with pytest.raises(DataError, match="was not found"):
        ImageData(dataset=name, root=str(tmp_path), split=split).setup()


def test_root_that_is_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    for download in (False, True):
        message = refusal(dataset="MNIST", root=str(tmp_path / "file"), download=download)
        assert f"{tmp_path / 'file'} cannot be read" in message


def test_root_that_may_not_be_written(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.mkdtemp", refuse)
    message = refusal(dataset="MNIST", root=str(tmp_path), download=True)
    assert "cannot be downloaded there: Permission denied" in message


@pytest.mark.parametrize("part", ["train-images-idx3-ubyte", "t10k-labels-idx1-ubyte"])
@pytest.mark.parametrize("damage", ["truncated", "longer", "head", "empty"])
def test_damaged_idx_file_is_named(part, damage, tmp_path):
    files.mnist(tmp_path)
    bad = tmp_path / "MNIST" / "raw" / part
    whole = bad.read_bytes()
    content = {"truncated": whole[:-5], "longer": whole + b"x", "head": whole[1:], "empty": b""}
    bad.write_bytes(content[damage])
    message = refusal(dataset="MNIST", root=str(tmp_path))
    assert str(bad) in message
    assert ("truncated" if damage == "truncated" else "damaged") in message


def test_labels_that_do_not_fit(tmp_path):
    files.mnist(tmp_path)
    path = tmp_path / "MNIST" / "raw" / "train-labels-idx1-ubyte"
    path.write_bytes(path.read_bytes()[:-1] + bytes([10]))
    message = refusal(dataset="MNIST", root=str(tmp_path))
    assert f"{path} holds the label 10; labels go from 0 to 9" in message
    path.write_bytes(files.idx_bytes(np.zeros(39, np.uint8)))
    assert "39 labels for 40 images" in refusal(dataset="MNIST", root=str(tmp_path))


@pytest.mark.parametrize("name", ["CIFAR10", "CIFAR100", "SVHN"])
def test_wrong_checksum_is_refused_and_named(name, tmp_path, monkeypatch):
    written(name, tmp_path, monkeypatch)
    first = {"CIFAR10": "data_batch_1", "CIFAR100": "train", "SVHN": "train_32x32.mat"}[name]
    bad = next(tmp_path.rglob(first))
    content = bytearray(bad.read_bytes())
    content[-20] ^= 1
    bad.write_bytes(bytes(content))
    message = refusal(dataset=name, root=str(tmp_path))
    assert str(bad) in message
    assert "damaged" in message


def test_cifar_is_not_unpickled_before_its_checksum_is_right(tmp_path, monkeypatch):
    files.cifar(tmp_path, monkeypatch)
    trap = tmp_path / "sprung"

    class Evil:
        def __reduce__(self):
            return (os.mkdir, (str(trap),))

    (tmp_path / datasets.CIFAR10.base_folder / "data_batch_1").write_bytes(pickle.dumps(Evil()))
    refusal(dataset="CIFAR10", root=str(tmp_path))
    assert not trap.exists()


# Downloads, from a server on this machine


@pytest.fixture
def server(tmp_path):
    folder = tmp_path / "served"
    folder.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as serving:
        threading.Thread(target=serving.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{serving.server_port}/"
        serving.shutdown()


SERVE = {
    "MNIST": files.serve_mnist,
    "CIFAR10": files.serve_cifar10,
    "EMNIST": files.serve_emnist,
    "SVHN": files.serve_svhn,
}


@pytest.mark.parametrize("name", list(SERVE))
def test_download(name, server, tmp_path, monkeypatch):
    folder, url = server
    split = "letters" if name == "EMNIST" else None
    expected = written(name, folder, monkeypatch, split)
    SERVE[name](folder, monkeypatch, url)
    root = tmp_path / "fresh" / "data"
    data = ready(dataset=name, root=str(root), split=split, download=True)
    assert torch.equal(served(data.test_dataloader())[0], expected[False][0])
    left = {path.name for path in root.iterdir()}
    assert not any(name.startswith(".download") for name in left)
    for file in folder.iterdir():
        file.unlink()
    ready(dataset=name, root=str(root), split=split, download=True)  # nothing is fetched again


@pytest.mark.parametrize("name", list(SERVE))
@pytest.mark.parametrize("fault", ["gone", "cut"])
def test_failed_download_leaves_nothing(name, fault, server, tmp_path, monkeypatch):
    folder, url = server
    split = "letters" if name == "EMNIST" else None
    written(name, folder, monkeypatch, split)
    SERVE[name](folder, monkeypatch, url)
    last = max(folder.iterdir())
    if fault == "gone":
        last.unlink()
    else:
        last.write_bytes(last.read_bytes()[:-30])
    root = tmp_path / "fresh" / "data"
    message = refusal(dataset=name, root=str(root), split=split, download=True)
    assert str(root) in message
    assert "download failed" in message
    assert "--data.download true" not in message  # it was on already
    assert not (tmp_path / "fresh").exists()


def test_packed_files_that_are_there_are_used(server, tmp_path, monkeypatch):
    folder, _ = server
    expected = files.mnist(folder)
    files.serve_mnist(folder, monkeypatch, "http://127.0.0.1:1/")
    raw = tmp_path / "data" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for file in folder.iterdir():
        file.rename(raw / file.name)
    data = ready(dataset="MNIST", root=str(tmp_path / "data"), download=True)
    assert torch.equal(served(data.test_dataloader())[0], expected[False][0])
