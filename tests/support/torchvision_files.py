"""Writers of tiny datasets in the formats that torchvision reads from disk.

Each takes the root that `ImageData(root=...)` is given and returns {True: (images, labels), False:
(images, labels)}, what the training and the test set must be read as: images (N, C, H, W) uint8
and labels (N,) int64. Those with checksums need `monkeypatch`, to put the small files' own sums in
the place of the real ones; the check itself stays on.
"""

import gzip
import hashlib
import io
import pickle
import shutil
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import torch
from torchvision import datasets

IDX_TYPES = {np.dtype("uint8"): 8, np.dtype(">i4"): 12}


def idx_bytes(array: np.ndarray) -> bytes:
    """The IDX format: two zero bytes, type, number of dimensions, sizes, items; big-endian."""
    head = bytes([0, 0, IDX_TYPES[array.dtype], array.ndim])
    return head + np.array(array.shape, ">u4").tobytes() + array.tobytes()


def write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


def pixels(count: int, channels: int, side: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, channels, side, side), np.uint8)


def labels(count: int, classes: int) -> np.ndarray:
    """Every label of the range, the last one included, in a fixed uneven order."""
    return (np.arange(count) * 7 + classes - 1) % classes


def as_tensors(images: np.ndarray, targets: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor(images), torch.tensor(targets, dtype=torch.int64)


def mnist(root: Path, name: str = "MNIST", counts: tuple[int, int] = (40, 20)):
    """MNIST, FashionMNIST or KMNIST."""
    expected = {}
    for train, count in zip((True, False), counts, strict=True):
        images, targets = pixels(count, 1, 28, count), labels(count, 10)
        stem = root / name / "raw" / ("train" if train else "t10k")
        write(Path(f"{stem}-images-idx3-ubyte"), idx_bytes(images[:, 0]))
        write(Path(f"{stem}-labels-idx1-ubyte"), idx_bytes(targets.astype(np.uint8)))
        expected[train] = as_tensors(images, targets)
    return expected


def qmnist(root: Path, counts: tuple[int, int] = (40, 20)):
    expected = {}
    for train, count in zip((True, False), counts, strict=True):
        images, targets = pixels(count, 1, 28, count), labels(count, 10)
        stem = root / "QMNIST" / "raw" / f"qmnist-{'train' if train else 'test'}"
        table = np.full((count, 8), 99, ">i4")  # seven more columns say who wrote the digit
        table[:, 0] = targets
        write(Path(f"{stem}-images-idx3-ubyte"), idx_bytes(images[:, 0]))
        write(Path(f"{stem}-labels-idx2-int"), idx_bytes(table))
        expected[train] = as_tensors(images, targets)
    return expected


def emnist(root: Path, split: str, classes: int, counts: tuple[int, int] = (80, 70)):
    """The files hold each image with rows and columns exchanged, and letters from 1."""
    expected = {}
    for train, count in zip((True, False), counts, strict=True):
        images, targets = pixels(count, 1, 28, count), labels(count, classes)
        stem = root / "EMNIST" / "raw" / f"emnist-{split}-{'train' if train else 'test'}"
        stored = targets + (split == "letters")
        transposed = np.ascontiguousarray(images[:, 0].transpose(0, 2, 1))
        write(Path(f"{stem}-images-idx3-ubyte"), idx_bytes(transposed))
        write(Path(f"{stem}-labels-idx1-ubyte"), idx_bytes(stored.astype(np.uint8)))
        expected[train] = as_tensors(images, targets)
    return expected


def cifar(root: Path, monkeypatch, name: str = "CIFAR10", a_file: int = 10):
    kind = getattr(datasets, name)
    classes, key = (10, "labels") if name == "CIFAR10" else (100, "fine_labels")
    expected = {}
    for train, attribute in ((True, "train_list"), (False, "test_list")):
        listed, parts = [], []
        for number, (file, _) in enumerate(getattr(kind, attribute)):
            images = pixels(a_file, 3, 32, 10 * number + train)
            targets = labels(a_file, classes)
            content = pickle.dumps({"data": images.reshape(a_file, -1), key: targets.tolist()})
            write(root / kind.base_folder / file, content)
            listed.append([file, md5(content)])
            parts.append((images, targets))
        monkeypatch.setattr(kind, attribute, listed)
        images, targets = (np.concatenate(column) for column in zip(*parts, strict=True))
        expected[train] = as_tensors(images, targets)
    meta = pickle.dumps({kind.meta["key"]: [f"class {i}" for i in range(classes)]})
    write(root / kind.base_folder / kind.meta["filename"], meta)
    monkeypatch.setattr(kind, "meta", {**kind.meta, "md5": md5(meta)})
    return expected


def svhn(root: Path, monkeypatch, counts: tuple[int, int] = (40, 20)):
    """MATLAB files; images (H, W, C, N), and the digit 0 is stored as 10."""
    from scipy.io import savemat

    expected, listed = {}, dict(datasets.SVHN.split_list)
    for train, count in zip((True, False), counts, strict=True):
        images, targets = pixels(count, 3, 32, count), labels(count, 10)
        file = io.BytesIO()
        stored = np.where(targets == 0, 10, targets).astype(np.uint8)[:, None]
        savemat(file, {"X": images.transpose(2, 3, 1, 0), "y": stored})
        split = "train" if train else "test"
        write(root / f"{split}_32x32.mat", file.getvalue())
        url, name, _ = listed[split]
        listed[split] = [url, name, md5(file.getvalue())]
        expected[train] = as_tensors(images, targets)
    monkeypatch.setattr(datasets.SVHN, "split_list", listed)
    return expected


def pictures(root: Path, counts: dict[str, int], size=(12, 10), ending="png", mode="RGB"):
    """counts[class] pictures of size (height, width) in root/class; their pixels by file name."""
    from PIL import Image

    written = {}
    for number, (name, count) in enumerate(counts.items()):
        (root / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            shape = (*size, 3) if mode == "RGB" else size
            values = np.random.default_rng([number, i]).integers(0, 256, shape, np.uint8)
            path = root / name / f"{i:03d}.{ending}"
            Image.fromarray(values).save(path)
            written[path] = torch.tensor(values).reshape(*size, -1).permute(2, 0, 1)
    return written


def serve_mnist(folder: Path, monkeypatch, url: str, name: str = "MNIST") -> None:
    """Packs what `mnist` wrote below `folder` for download from `url`, which serves `folder`."""
    kind = getattr(datasets, name)
    resources = []
    for file, _ in kind.resources:
        packed = gzip.compress((folder / name / "raw" / Path(file).stem).read_bytes())
        write(folder / file, packed)
        resources.append((file, md5(packed)))
    shutil.rmtree(folder / name)
    monkeypatch.setattr(kind, "resources", resources)
    monkeypatch.setattr(kind, "mirrors", [url])


def serve_cifar10(folder: Path, monkeypatch, url: str) -> None:
    kind = datasets.CIFAR10
    with tarfile.open(folder / kind.filename, "w:gz") as archive:
        archive.add(folder / kind.base_folder, kind.base_folder)
    shutil.rmtree(folder / kind.base_folder)
    monkeypatch.setattr(kind, "tgz_md5", md5((folder / kind.filename).read_bytes()))
    monkeypatch.setattr(kind, "url", url + kind.filename)


def serve_emnist(folder: Path, monkeypatch, url: str) -> None:
    with zipfile.ZipFile(folder / "gzip.zip", "w") as archive:
        for path in sorted((folder / "EMNIST" / "raw").iterdir()):
            archive.writestr(f"gzip/{path.name}.gz", gzip.compress(path.read_bytes()))
    shutil.rmtree(folder / "EMNIST")
    monkeypatch.setattr(datasets.EMNIST, "md5", md5((folder / "gzip.zip").read_bytes()))
    monkeypatch.setattr(datasets.EMNIST, "url", url + "gzip.zip")


def serve_svhn(folder: Path, monkeypatch, url: str) -> None:
    listed = {
        split: [url + file, file, sum_]
        for split, (_, file, sum_) in datasets.SVHN.split_list.items()
    }
    monkeypatch.setattr(datasets.SVHN, "split_list", listed)
