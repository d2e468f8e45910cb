"""The pictures of a folder as data: what is read of each file, its part, and what a run knew of it."""

import hashlib
import os
import time
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from manualnn.training.data.batches import TensorBatches
from manualnn.training.data.errors import DataError, together
from manualnn.training.data.folder import Folder, Pictures, endings, scan
from manualnn.training.data.reading import check_depth, decode, left_out, opened, picture_size
from manualnn.training.data.split import split
from manualnn.training.text.names import few, shown

PATIENCE = 30.0  # seconds to look for further damaged files when one is met
PARTS = ("train", "val", "test")
_CALLED = {"train": "training", "val": "validation", "test": "test"}


class PictureFolder:
    """A folder of pictures. It is listed when something is asked, and read by `read`.

    Args:
        channels: 3 or 1.
        size: (height, width) that pictures are brought to; None: all must have one size.
        exif: Turn pictures by their EXIF orientation.
        seed, val_fraction, test_fraction: Of the split, where the folder has no parts of its own.
        memory_gib: Decoded pictures up to this size are kept in memory.
        classes: By label; None: those of the folder.
    """

    def __init__(
        self,
        root: Path,
        channels: int,
        size: tuple[int, int] | None,
        exif: bool,
        seed: int,
        val_fraction: float,
        test_fraction: float,
        memory_gib: float,
        classes: list[str] | None = None,
    ):
        self.root, self.channels, self.size, self.exif = root, channels, size, exif
        self.seed, self.memory_gib, self.classes = seed, memory_gib, classes
        self.val_fraction, self.test_fraction = val_fraction, test_fraction
        self._row: dict[str, int] | None = None  # of each path, once the files are read
        self._not_used: Counter[str] = Counter()  # such as an EXIF orientation: of how many
        self._run: dict[str, list[int]] | None = None  # the digests of a checkpoint's run, by part
        self._another = False  # than the folder of that run

    # Before a file is read.

    @cached_property
    def listing(self) -> Folder:
        return scan(self.root, self.classes)

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.listing.class_names

    @cached_property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width); without a size, that of the first picture that can be read."""
        return (self.channels, *(self.size or self._first_size()))

    def _first_size(self) -> tuple[int, int]:
        faults = []
        for path, _ in self.listing.pictures:
            try:
                with opened(path) as picture:
                    return picture_size(picture, self.exif)
            except DataError as fault:
                faults.append(fault)
        if faults:
            raise together(faults)
        raise DataError(f"{shown(self.root)} holds no picture ({', '.join(endings())})")

    @property
    def in_memory(self) -> bool:
        channels, height, width = self.image_shape
        pixels = len(self.listing.pictures) * channels * height * width
        return pixels <= self.memory_gib * 2**30

    @cached_property
    def parts(self) -> tuple[Pictures, Pictures, Pictures]:
        """Pictures for training, validation, test.

        What a checkpoint's run knew stays in the part that it had there, whatever it is called by now.
        Copies of one picture are in the part of the first of them, so that none measures what another
        has taught.
        """
        self.read()
        listing = self.listing
        digests = self._digests_of(listing.train)
        first: dict[int, tuple[str, int]] = {}
        for digest, picture in zip(digests, listing.train, strict=True):
            first.setdefault(digest, picture)
        named = split(
            [Path(os.path.relpath(path, self.root)).as_posix() for path, _ in first.values()],
            [label for _, label in first.values()],
            self.seed,
            self.val_fraction if listing.val is None else 0,
            self.test_fraction if listing.test is None else 0,
        )
        own = {"val": listing.val, "test": listing.test}
        ran = {part: known for part, known in (self._run or {}).items() if own.get(part) is None}
        part_of = {**dict(zip(first, named, strict=True)), **_part_of(ran)}
        parts: dict[str, Pictures] = {
            "train": [],
            "val": own["val"] or [],
            "test": own["test"] or [],
        }
        for digest, picture in zip(digests, listing.train, strict=True):
            parts[part_of[digest]].append(picture)
        return parts["train"], parts["val"], parts["test"]

    def check_trainable(self) -> None:
        """DataError: a class has no training picture, a part that was asked for has none."""
        listing = self.listing
        if not listing.train:
            raise DataError(
                f"{shown(self.root)} holds no part to train on, only {few([*listing.called.values()])}"
            )
        there = {label for _, label in listing.train}
        where = self.root / listing.called.get("train", "")
        if empty := [n for label, n in enumerate(self.class_names) if label not in there]:
            raise DataError(
                f"{shown(where / empty[0])} holds no picture ({', '.join(endings())})"
                + (f", and {few(empty[1:])} neither" if empty[1:] else "")
            )
        train, val, test = self.parts
        for part, fraction, pictures in (
            ("val", self.val_fraction, val),
            ("test", self.test_fraction, test),
        ):
            if fraction and not pictures:
                raise DataError(
                    f"{part}_fraction {fraction} of {len(train)} images is 0: each class has one, to "
                    f"train on, and copies of a picture stay together; --data.{part}_fraction 0 goes without"
                )

    # The files.

    def read(self) -> None:
        """Looks at every file, and decodes them all if they fit in memory.

        DataError names the files that are damaged or have another size.
        """
        if self._row is not None:
            return
        pictures, keep = self.listing.pictures, self.in_memory
        everything = PictureBatches(pictures, self.image_shape, self.size is not None, self.exif)
        shape = (len(pictures), *self.image_shape) if keep else (0,)
        images = torch.empty(shape, dtype=torch.uint8)

        def look(row: int) -> tuple[int, list[str]] | DataError:
            try:
                path = pictures[row][0]
                if keep:
                    images[row] = everything.image(row)
                else:
                    everything.check_header(row)
                return _digest(path), left_out(path, self.exif)
            except DataError as fault:
                return fault

        with ThreadPoolExecutor(os.cpu_count()) as threads:
            try:
                looked = list(threads.map(look, range(len(pictures))))
            except BaseException:  # Ctrl-C need not wait for the rest
                threads.shutdown(cancel_futures=True)
                raise
        if faults := [found for found in looked if isinstance(found, DataError)]:
            raise together(faults)
        self._images, self._labels = images, everything.labels
        self._digests = torch.tensor([digest for digest, _ in looked], dtype=torch.int64)
        self._not_used = Counter(what for _, notes in looked for what in notes)
        self._row = {path: row for row, (path, _) in enumerate(pictures)}

    def dataset(self, pictures: Pictures) -> Dataset:
        if self.in_memory:
            return TensorBatches(self._images, self._labels, self._rows(pictures))
        return PictureBatches(pictures, self.image_shape, self.size is not None, self.exif)

    def _rows(self, pictures: Pictures) -> Tensor:
        return torch.tensor([self._row[path] for path, _ in pictures], dtype=torch.int64)

    def _digests_of(self, pictures: Pictures) -> list[int]:
        return self._digests[self._rows(pictures)].tolist()

    def _labelled(self, pictures: Pictures) -> list[tuple[int, int]]:
        """(digest, label) of each."""
        labels = [label for _, label in pictures]
        return [*zip(self._digests_of(pictures), labels, strict=True)]

    # What a run knew of its pictures.

    def state(self) -> dict:
        """What a checkpoint keeps of its pictures: where they lay, and of each a digest, by its part, and its
        label, in the order in which the run had them."""
        listed = {
            part: torch.tensor(self._digests_of(there), dtype=torch.int64)
            for part, there in zip(PARTS, self.parts, strict=True)
        }
        labels = [label for there in self.parts for _, label in there]
        labels = torch.tensor(labels, dtype=torch.int32)
        return {"root": os.path.realpath(self.root), **listed, "labels": labels}

    def fingerprint(self) -> str:
        """Of the pictures, with the part and the class of each, whatever they are called."""
        listed = [*zip(PARTS, self.parts, strict=True)]
        keys = [(part, *key) for part, there in listed for key in self._labelled(there)]
        return hashlib.blake2b(repr(sorted(keys)).encode(), digest_size=8).hexdigest()

    def load_state(self, state: dict | None, goes_on: bool) -> None:
        """Args:
            goes_on: The run is trained further, so that its pictures must be those of the state. An older
                version's, which holds no labels, is believed.

        DataError: they are not, or the run split them in a way that is not known any more.
        """
        known = state is not None and state.keys() >= {"root", *PARTS}
        if not known and (self.listing.val is None or self.listing.test is None):
            raise DataError(
                "the checkpoint does not say which pictures it was trained on: an older version wrote "
                "it, which split them in another way. Train again"
            )
        self._run = {part: state[part].tolist() for part in PARTS} if known else None
        self._another = known and state["root"] != os.path.realpath(self.root)
        self.__dict__.pop("parts", None)
        if goes_on and known and "labels" in state:
            self.__dict__["parts"] = self._parts_of_the_run(state["labels"].tolist())

    def _parts_of_the_run(self, labels: list[int]) -> tuple[Pictures, Pictures, Pictures]:
        """The `parts` in the order in which the run had them, whatever they are called by now."""
        there: dict[tuple[str, int, int], Pictures] = defaultdict(list)
        for part, pictures in zip(PARTS, self.parts, strict=True):
            for key, picture in zip(self._labelled(pictures), pictures, strict=True):
                there[(part, *key)].append(picture)
        places = [(part, digest) for part in PARTS for digest in self._run[part]]
        keys = [(*place, label) for place, label in zip(places, labels, strict=True)]
        gone, parts = [], {part: [] for part in PARTS}
        for key in keys:
            if there[key]:
                parts[key[0]].append(there[key].pop())
            else:
                gone.append(key)
        added = [key for key, pictures in there.items() for _ in pictures]
        if gone or added:
            raise DataError(
                f"the pictures in {shown(self.root)} are not those of the run: {_changes(gone, added)}. A run "
                "goes on with the pictures it was begun with: put them back, or start a new run without "
                "--ckpt_path"
            )
        return parts["train"], parts["val"], parts["test"]

    def measured(self, part: str, for_figures: bool = True) -> tuple[Pictures, str]:
        """The pictures for a validation ("val"), a test or a prediction, and in words which they are.

        Of the run's own folder its part, of another all. A picture that the run had in another part is
        never measured, wherever it lies and whatever it is called. It is predicted, where the user
        asks about another folder; in a part that the user made, it is measured, and said.
        """
        called, pictures = self.listing.called.get(part), self.parts[PARTS.index(part)]
        whole = self._another and not called
        if whole:
            pictures = self.listing.pictures
        words = (
            f"all {len(pictures)} pictures in {shown(self.root / (called or ''))}"
            if called or whole
            else f"the {len(pictures)} {_CALLED[part]} pictures of the run's split"
        )
        if whole:
            words += ", which is another folder than the run's"
        part_of = _part_of(self._run or {})
        elsewhere = [part_of.get(digest, part) != part for digest in self._digests_of(pictures)]
        fresh = [picture for picture, other in zip(pictures, elsewhere, strict=True) if not other]
        if any(elsewhere):
            known = "the run was trained on, or "
            known += "chosen by" if part == "test" else "keeps for its test"
            if called or (whole and not for_figures):
                return pictures, f"{words}; {sum(elsewhere)} of them {known}"
            words += f"; left out: {sum(elsewhere)} that {known}"
        if not fresh and self._run and (pictures or getattr(self, f"{part}_fraction")):
            raise DataError(f"nothing is left for the {_CALLED[part]}: {words}")
        return fresh, words

    def summary(self, fitting: bool) -> str:
        """ "48 pictures, 2 classes: cat, dog; training 39, validation 4, test 5; left out: 3 hidden;
        read without: transparency (24)".

        Where they have several endings, with how many of each.
        """
        listing, names = self.listing, self.class_names
        kinds = Counter(os.path.splitext(path)[1].lower() for path, _ in listing.pictures)
        text = f"{len(listing.pictures)} pictures"
        if len(kinds) > 1:
            text += f" ({', '.join(f'{count} {kind}' for kind, count in kinds.most_common())})"
        text += f", {len(names)} classes: {few(names, 20)}"
        if fitting:
            counts = zip(PARTS, self.parts, strict=True)
            called = {part: shown(listing.called.get(part, _CALLED[part])) for part in PARTS}
            text += "; " + ", ".join(f"{called[part]} {len(there)}" for part, there in counts)
            labelled = {*self._labelled(listing.pictures)}
            if several := len(labelled) - len({digest for digest, _ in labelled}):
                text += f" (in more than one class: {several} pictures)"
            taught = {*self._digests_of(self.parts[0])}
            for part, there in zip(PARTS, self.parts, strict=True):
                # In a folder that the user made: split off, copies stay together.
                if part != "train" and (
                    copies := sum(d in taught for d in self._digests_of(there))
                ):
                    text += f" ({copies} of the {_CALLED[part]} pictures are trained on, too)"
                missing = set(range(len(names))) - {label for _, label in there}
                if there and missing:
                    without = few([names[label] for label in sorted(missing)])
                    text += f" (no {_CALLED[part]} picture of {without})"
        left = [f"{count} {what}" for what, count in listing.left_out.items()]
        unread = [f"{what} ({count})" for what, count in self._not_used.items()]
        text += f"; left out: {', '.join(left)}" if left else ""
        return text + (f"; read without: {', '.join(unread)}" if unread else "")


def _changes(gone: list[tuple[str, int, int]], added: list[tuple[str, int, int]]) -> str:
    """ "2 more, 1 gone, 3 in another class", of (part, digest, label)."""
    moved = Counter(key[1] for key in gone) & Counter(key[1] for key in added)
    relabelled = Counter(key[:2] for key in gone) & Counter(key[:2] for key in added)
    found = {
        "more": len(added) - moved.total(),
        "gone": len(gone) - moved.total(),
        "in another class": relabelled.total(),
        "in another part": moved.total() - relabelled.total(),
    }
    return ", ".join(f"{count} {what}" for what, count in found.items() if count)


def _part_of(digests: dict[str, list[int]]) -> dict[int, str]:
    """The part of each; of a digest that is in several, the training comes first, the test last."""
    return {digest: part for part in reversed(PARTS) for digest in digests.get(part, ())}


def _digest(path: str) -> int:
    """64 bits of a hash of the file's content."""
    with open(path, "rb") as file:
        digest = hashlib.blake2b(file.read(), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)


class PictureBatches(Dataset):
    """Decodes pictures when they are asked for: indices -> (images (B, C, H, W), labels (B,))."""

    def __init__(
        self,
        pictures: Pictures,
        image_shape: tuple[int, int, int],
        resize: bool,
        exif: bool = False,
    ):
        self.paths = np.array([path for path, _ in pictures])  # one block: workers share its pages
        self.labels = torch.tensor([label for _, label in pictures], dtype=torch.int64)
        self.image_shape, self.resize, self.exif = image_shape, resize, exif

    def __len__(self) -> int:
        return len(self.labels)

    def all_labels(self) -> Tensor:
        """(n,) int64."""
        return self.labels

    def image(self, index: int) -> Tensor:
        """One picture. DataError names the file that is damaged or has another size."""
        channels, *size = self.image_shape
        path = str(self.paths[index])
        pixels = decode(path, channels, tuple(size) if self.resize else None, self.exif)
        self._check_size(path, *pixels.shape[1:])
        return torch.from_numpy(pixels)

    def check_header(self, index: int) -> None:
        """As `image`, of what can be known without decoding it."""
        path = str(self.paths[index])
        with opened(path) as picture:
            check_depth(picture, path)
            if not self.resize:
                self._check_size(path, *picture_size(picture, self.exif))

    def _check_size(self, path: str, height: int, width: int) -> None:
        if (height, width) != self.image_shape[1:]:
            raise DataError(
                f"the picture {shown(path)} is {height} x {width} (height x width) where the first one "
                f"is {self.image_shape[1]} x {self.image_shape[2]}; set --data.image_size to bring all "
                "to one size"
            )

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.__getitems__([index])[0][0], self.labels[index]

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        try:
            return torch.stack([self.image(i) for i in indices]), self.labels[indices]
        except DataError as fault:
            raise together(self._faults(indices) or [fault]) from None

    def _faults(self, first: list[int]) -> list[DataError]:
        """Of these pictures and, as far as there is time, of all others: to be named at once."""
        end = time.monotonic() + PATIENCE
        faults = {}
        for index in (*first, *range(len(self))):
            if index not in faults and (index in first or time.monotonic() < end):
                try:
                    self.image(index)
                except DataError as fault:
                    faults[index] = fault
        return list(faults.values())
