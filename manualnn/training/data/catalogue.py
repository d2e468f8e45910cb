"""The datasets known by name: what they hold, where their files lie, how they are fetched and read.

Images come out as one uint8 tensor (N, C, H, W), labels as one int64 tensor (N,) in
0 ... classes - 1. Files are torchvision's, in torchvision's layout, read by torchvision.
"""

import math
import os
import shutil
import socket
import string
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from manualnn.tools.files import in_made
from manualnn.training.data.errors import DataError

EMNIST_SPLITS = ("byclass", "bymerge", "balanced", "letters", "digits", "mnist")
DOWNLOAD_TIMEOUT = 30  # seconds without an answer; urllib alone would wait for ever

_DIGIT_NAMES = tuple(string.digits)
_FASHION = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
    "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
_CIFAR10 = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip
_CIFAR100_TEXT = """
    apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus
    butterfly camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab
    crocodile cup dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard
    lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle mountain mouse mushroom
    oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine
    possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake
    spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor
    train trout tulip turtle wardrobe whale willow_tree wolf woman worm
"""
_CIFAR100 = tuple(_CIFAR100_TEXT.split())
# EMNIST's merged splits put these small letters in one class with their capitals.
_MERGED = set("cijklmopsuvwxyz")
_MERGED_CLASSES = tuple(
    c for c in string.digits + string.ascii_letters if not (c.islower() and c in _MERGED)
)


def _emnist_class_names(split: str) -> tuple[str, ...]:
    alphanumeric = string.digits + string.ascii_uppercase + string.ascii_lowercase
    return {
        "byclass": tuple(alphanumeric),
        "bymerge": tuple(sorted(_MERGED_CLASSES)),
        "balanced": tuple(sorted(_MERGED_CLASSES)),
        "letters": tuple(string.ascii_lowercase),
        "digits": _DIGIT_NAMES,
        "mnist": _DIGIT_NAMES,
    }[split]


_PLACE = "point --data.root at a folder that holds the files as torchvision lays them out."

_FACTS: dict[str, tuple[tuple[int, int, int], tuple[str, ...]]] = {
    "Digits": ((1, 8, 8), _DIGIT_NAMES),
    "MNIST": ((1, 28, 28), _DIGIT_NAMES),
    "FashionMNIST": ((1, 28, 28), _FASHION),
    "KMNIST": ((1, 28, 28), ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo")),
    "EMNIST": ((1, 28, 28), ()),  # the classes depend on the split
    "QMNIST": ((1, 28, 28), _DIGIT_NAMES),
    "CIFAR10": ((3, 32, 32), _CIFAR10),
    "CIFAR100": ((3, 32, 32), _CIFAR100),
    "SVHN": ((3, 32, 32), _DIGIT_NAMES),
}
NAMES = tuple(_FACTS)


@dataclass(frozen=True)
class Named:
    """One dataset known by name. `split` is EMNIST's, None for the others."""

    name: str
    split: str | None = None

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return _FACTS[self.name][0]

    @property
    def class_names(self) -> tuple[str, ...]:
        return _emnist_class_names(self.split) if self.name == "EMNIST" else _FACTS[self.name][1]

    @property
    def _kind(self) -> type:
        from torchvision import datasets

        return getattr(datasets, self.name)

    def _open(self, root: Path, train: bool, download: bool = False):
        if self.name == "SVHN":
            return self._kind(root, split="train" if train else "test", download=download)
        options = {"split": self.split} if self.name == "EMNIST" else {}
        return self._kind(root, train=train, download=download, **options)

    def files(self, root: Path, train: bool | None = None) -> list[Path]:
        """The files the training set (True), the test set (False) or both (None) are read from."""
        if train is None:
            return list(dict.fromkeys(self.files(root, True) + self.files(root, False)))
        if self.name == "Digits":
            return []
        raw = root / self.name / "raw"
        if self.name == "EMNIST":
            stem = f"emnist-{self.split}-{'train' if train else 'test'}"
            return [raw / f"{stem}-images-idx3-ubyte", raw / f"{stem}-labels-idx1-ubyte"]
        if self.name == "QMNIST":
            stem = f"qmnist-{'train' if train else 'test'}"
            return [raw / f"{stem}-images-idx3-ubyte", raw / f"{stem}-labels-idx2-int"]
        if self.name == "SVHN":
            return [root / f"{'train' if train else 'test'}_32x32.mat"]
        if self.name.startswith("CIFAR"):
            # torchvision opens neither half without the other, nor without the class names.
            return [root / self._kind.base_folder / file for file, _ in self._checksums()]
        stem = "train" if train else "t10k"
        return [raw / f"{stem}-images-idx3-ubyte", raw / f"{stem}-labels-idx1-ubyte"]

    def _checksums(self) -> list[tuple[str, str]]:
        """(file name, md5) of the files that torchvision checks each time it opens them."""
        kind = self._kind
        if self.name == "SVHN":
            return [(file, md5) for _, file, md5 in kind.split_list.values()]
        if self.name.startswith("CIFAR"):
            meta = (kind.meta["filename"], kind.meta["md5"])
            return [*kind.train_list, *kind.test_list, meta]
        return []

    def _archives(self) -> list[tuple[Path, str]]:
        """(path below the root, md5) of the packed files that a download fetches."""
        kind = self._kind
        if self.name == "SVHN":
            return [(Path(file), md5) for file, md5 in self._checksums()]
        if self.name.startswith("CIFAR"):
            return [(Path(kind.filename), kind.tgz_md5)]
        raw = Path(self.name) / "raw"
        if self.name == "EMNIST":
            return [(raw / os.path.basename(kind.url), kind.md5)]
        sources = kind.resources
        if self.name == "QMNIST":
            sources = [*sources["train"], *sources["test"]]
        return [(raw / os.path.basename(source), md5) for source, md5 in sources]

    def missing(self, root: Path) -> list[Path]:
        """The files that are not there. A root that cannot be read raises DataError."""
        files = self.files(root)
        if not files:
            return []
        try:
            if root.exists():
                next(os.scandir(root), None)  # refuses a root that is a file or may not be read
            return [file for file in files if not file.is_file()]
        except OSError as fault:
            reason = fault.strerror or fault
            raise DataError(f"the data folder {root} cannot be read: {reason}") from fault

    def require(self, root: Path) -> None:
        """Raises DataError, with what to do about it, if a file is not there."""
        if missing := self.missing(root):
            raise DataError(
                f"{self.name} was not found: {_listed(missing)} not in {root.resolve()}. "
                f"Allow the download (--data.download true) on a machine with a network, or {_PLACE}"
            )

    def fetch(self, root: Path) -> None:
        """Downloads what is missing; a failed or broken-off download leaves nothing behind.

        Everything is fetched, checked and unpacked in a folder of its own below the root and
        moved to its place when it is whole. Packed files that lie there already are used.
        """
        missing = self.missing(root)
        if not missing:
            return
        try:
            with _workplace(root) as place:
                self._bring_archives(root, place)
                with network_timeout():
                    for train in (True, False):
                        self._open(place, train, download=True)
                _move_unpacked(place, root)
        except DataError:
            raise
        except PermissionError as fault:
            raise DataError(
                f"{self.name} is not in {root.resolve()} and cannot be downloaded there: "
                f"{fault.strerror}. Choose a folder that can be written with --data.root."
            ) from fault
        except Exception as fault:  # urllib, ssl, http, zip, gzip and torchvision raise their own
            reason = " ".join(str(fault).split()) or type(fault).__name__
            raise DataError(
                f"{self.name} is not in {root.resolve()} ({_listed(missing)} not there) and the "
                f"download failed: {reason}. Try again later or on a machine with a network, or "
                f"{_PLACE}"
            ) from fault

    def _bring_archives(self, root: Path, place: Path) -> None:
        from torchvision.datasets.utils import check_integrity

        for path, md5 in self._archives():
            if check_integrity(root / path, md5):
                (place / path).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(root / path, place / path)

    def load(self, root: Path, train: bool) -> tuple[Tensor, Tensor]:
        """Images (N, C, H, W) uint8 and labels (N,) int64 of the training or the test set."""
        if self.name == "Digits":
            return _digits(train)
        self.require(root)
        paths = self.files(root, train)
        if not self._checksums():
            # torchvision checks these files when it downloads them and never again.
            for path in paths:
                _check_idx(path)
        try:
            dataset = self._open(root, train)
            images, labels = self._tensors(dataset)
        except DataError:
            raise
        except Exception as fault:  # what a damaged file raises depends on where it is damaged
            bad = self._damaged(paths)
            raise DataError(
                f"{bad} is damaged or not {self.name}'s own file (its checksum or its content is "
                "not the right one); delete it and download it again"
            ) from fault
        where = str(paths[-1])
        if images.shape[1:] != self.image_shape:
            raise DataError(
                f"{paths[0]} holds images of shape {tuple(images.shape[1:])}; {self.name} has "
                f"{self.image_shape}"
            )
        if len(images) != len(labels):
            raise DataError(f"{where} holds {len(labels)} labels for {len(images)} images")
        check_labels(labels, len(self.class_names), where)
        return images, labels

    def _damaged(self, paths: list[Path]) -> str:
        from torchvision.datasets.utils import check_integrity

        checksums = dict(self._checksums())
        for path in paths:
            if path.name in checksums and not check_integrity(path, checksums[path.name]):
                return str(path)
        return " or ".join(str(path) for path in paths)

    def _tensors(self, dataset) -> tuple[Tensor, Tensor]:
        if self.name == "SVHN":
            images, labels = torch.from_numpy(dataset.data), torch.from_numpy(dataset.labels)
            return images.contiguous(), labels.reshape(-1)
        if self.name.startswith("CIFAR"):
            images = torch.from_numpy(dataset.data).permute(0, 3, 1, 2).contiguous()
            return images, torch.tensor(dataset.targets, dtype=torch.int64)
        images, labels = dataset.data.unsqueeze(1), dataset.targets
        if self.name == "QMNIST":
            labels = labels[:, 0].contiguous()  # the other columns say who wrote the digit
        if self.name == "EMNIST":
            images = images.mT.contiguous()  # its files hold every image mirrored on the diagonal
            if self.split == "letters":
                labels = labels - 1  # its files count the letters from one
        return images, labels


def check_labels(labels: Tensor, num_classes: int, where: str) -> None:
    """Raises DataError unless every label is in 0 ... num_classes - 1."""
    outside = labels[(labels < 0) | (labels >= num_classes)]
    if outside.numel():
        raise DataError(
            f"{where} holds the label {outside[0].item()}; labels go from 0 to {num_classes - 1}"
        )


def _digits(train: bool) -> tuple[Tensor, Tensor]:
    """scikit-learn's 1797 digits; a fifth of them, always the same 360, is the test set."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    # NumPy promises that RandomState's numbers never change, so this split never does.
    order = np.random.RandomState(0).permutation(len(bunch.target))
    chosen = np.sort(order[360:] if train else order[:360])
    # Levels 0 ... 16 become 0 ... 255, so that one rule (divide by 255) serves every dataset.
    pixels = np.round(bunch.images[chosen] * (255 / 16)).astype(np.uint8)
    labels = torch.from_numpy(bunch.target[chosen].astype(np.int64))
    return torch.from_numpy(pixels).unsqueeze(1), labels


def _check_idx(path: Path) -> None:
    """Raises DataError unless the IDX file's length is the one its header promises."""
    width = {8: 1, 9: 1, 11: 2, 12: 4, 13: 4, 14: 8}  # bytes an item, by the type in the header
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(4)
            shape = np.frombuffer(file.read(4 * head[3]), ">u4").tolist() if len(head) == 4 else []
    except OSError as fault:
        raise DataError(f"{path} cannot be read: {fault.strerror}") from fault
    except ValueError:
        shape = []
    if not shape or head[:2] != b"\0\0" or head[2] not in width or len(shape) != head[3]:
        raise DataError(f"{path} is damaged: it does not start with an IDX header")
    expected = 4 + 4 * len(shape) + math.prod(shape) * width[head[2]]
    if size != expected:
        kind = "truncated" if size < expected else "damaged"
        raise DataError(
            f"{path} is {kind}: {size} bytes where its header says {expected}; delete it and "
            "download it again"
        )


def _listed(paths: list[Path]) -> str:
    names = ", ".join(path.name for path in paths[:2])
    return f"{names} and {len(paths) - 2} more are" if len(paths) > 2 else f"{names} is"


@contextmanager
def network_timeout():
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


@contextmanager
def _workplace(root: Path):
    """A folder of its own below the root; on the way out it and empty folders made here go."""
    created = [folder for folder in (root, *root.parents) if not folder.exists()]
    try:
        place = Path(in_made(root, lambda: tempfile.mkdtemp(prefix=".download-", dir=root)))
    except (FileExistsError, NotADirectoryError) as fault:
        raise DataError(f"the data folder {root} cannot be made: {fault.strerror}") from fault
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)
        for folder in created:
            try:
                folder.rmdir()
            except OSError:
                break  # it holds the data now


def _move_unpacked(place: Path, root: Path) -> None:
    for path in sorted(place.rglob("*")):
        if path.is_file() and path.suffix not in {".gz", ".zip", ".xz"}:
            target = root / path.relative_to(place)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(path, target)
