"""ImageData: the images a classifier is trained, validated and tested on."""

import math
import os
import warnings
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from manualnn.training.data.augment import Augment
from manualnn.training.data.batches import (
    EpochShuffle,
    ResumingLoader,
    TensorBatches,
    as_is,
    mean_and_std,
    scaled,
    shift_and_flip,
)
from manualnn.training.data.catalogue import EMNIST_SPLITS, NAMES, Named
from manualnn.training.data.errors import DataError
from manualnn.training.data.folder import Pictures
from manualnn.training.data.pictures import PictureFolder
from manualnn.training.data.reading import Reading
from manualnn.training.seeds import generator
from manualnn.training.text.names import few, shown

SAMPLE = 4096  # training pictures that "auto" looks at where they do not fit in memory


class ImageData(LightningDataModule):
    """Training, validation and test images as batches (images (B, C, H, W), labels (B,)).

    The validation set is split off the training set; the test set serves test and predict alone. Of a
    folder of pictures each one's name decides which part it is in, so that one more moves no other.
    Batches travel as uint8 and become floats on the device they are used on: pixels / 255, then
    (pixel - mean) / std of the channel. `num_classes`, `image_shape` and `class_names` can be read
    at once; for a folder of pictures that lists it and opens one picture.

    Random numbers: the order of epoch e is drawn from (torch's initial seed, e), and shared out batch
    by batch where several processes train; a batch's shifts and flips from (that seed, the batch's
    number, the process's rank). The global generators are not touched; the seed goes into the checkpoint, so
    a resumed run goes on as it would have.

    Args:
        dataset: Digits (comes with scikit-learn, no download), MNIST, FashionMNIST, KMNIST,
            EMNIST, QMNIST, CIFAR10, CIFAR100, SVHN, or ImageFolder for pictures of your own.
        root: Folder the files lie in, as torchvision lays them out, and are downloaded to; for
            ImageFolder the folder with one subfolder a class, or with train, val and test. `validate`,
            `test` and `predict` take all of another folder than the run's.
        batch_size: Images in a batch, on each device.
        val_fraction: Part of the training images that is held back for validation, 0 (none) to
            below 1. A `val` folder of your own is used instead.
        test_fraction: Part of an ImageFolder without a `test` folder that is held back for the
            test. Other datasets have a test set of their own.
        seed: Seed of these splits alone, so that runs with other seeds share their validation set.
        download: Fetch a dataset that is not in `root`.
        num_workers: Processes that prepare batches; by default none where the images are in
            memory, else one a processor core, 8 at most.
        normalize: "auto": mean and deviation of the training split (of 4096 of its pictures where
            they are not in memory); [[means], [deviations]], one a channel, for pixels in 0 to 1;
            null: pixels stay in 0 to 1.
        shift: Pixels by which each training image is moved at random, in both directions; the
            border is filled with 0. A random crop of the padded image.
        flip: Mirror each training image left to right with chance 1/2.
        augment: Transforms of torchvision.transforms.v2 for the training images, by name, such as
            RandAugment, [RandomResizedCrop, CutMix], or {RandAugment: {magnitude: 5}}. Each image gets its
            own draw, of its levels 0 to 255 and after `shift` and `flip`; MixUp and CutMix, of which one
            is drawn a batch, mix the scaled images and their labels.
        image_size: Side, or [height, width], that ImageFolder's pictures are scaled and cut to.
            Without it all must have one size.
        channels: Of ImageFolder's pictures: 3 for colour, 1 for grey.
        classes: Names of ImageFolder's classes in the order of their labels, by default its subfolders in
            theirs. A checkpoint's run gives them to `validate`, `test` and `predict`: a folder may lack some.
        exif: Turn ImageFolder's pictures as their EXIF orientation says; phones write one.
        split: Of EMNIST, which has no other default than "balanced".
        memory_gib: Decoded pictures up to this size are kept in memory (in each process), larger
            folders are decoded again each epoch.

    Raises:
        DataError: the arguments or the data do not fit; the message says what and where.
    """

    def __init__(
        self,
        dataset: str = "Digits",
        root: str = "data",
        batch_size: int = 128,
        val_fraction: float = 0.1,
        test_fraction: float = 0.1,
        seed: int = 0,
        download: bool = True,
        num_workers: int | None = None,
        normalize: Literal["auto"] | list[list[float]] | None = "auto",
        shift: int = 0,
        flip: bool = False,
        augment: list[str] | dict[str, dict[str, Any] | None] | str | None = None,
        image_size: int | list[int] | None = None,
        channels: Literal[1, 3] = 3,
        exif: bool = False,
        split: Literal["byclass", "bymerge", "balanced", "letters", "digits", "mnist"]
        | None = None,
        memory_gib: float = 2.0,
        classes: list[str] | None = None,
    ):
        super().__init__()
        # The logger's table of hyperparameters is the training's to write, once.
        self.save_hyperparameters(logger=False)
        self.dataset, self.root = dataset, Path(root).expanduser()
        self.batch_size, self.num_workers = batch_size, num_workers
        self.val_fraction, self.test_fraction, self.seed = val_fraction, test_fraction, seed
        self.download, self.normalize = download, normalize
        self.shift, self.flip = shift, flip
        self.channels, self.exif = channels, exif
        self.image_size = _pair(image_size)
        self._check_arguments(split, classes)
        named = dataset != "ImageFolder"
        if dataset == "EMNIST" and split is None:
            split = "balanced"
        self._named = Named(dataset, split) if named else None
        self.folder: PictureFolder | None = None
        if not named:
            place = self.root, channels, self.image_size, exif
            parts = seed, val_fraction, test_fraction
            self.folder = PictureFolder(*place, *parts, memory_gib, classes)
        self._train: Dataset | None = None
        self._val: Dataset | None = None
        self._test: Dataset | None = None
        self._scale: tuple[Tensor, Tensor] | None = None
        self._order_seed: int | None = None
        self._stage: str | None = None
        self._wanted, self._augment = augment, None

    def _check_arguments(self, split: str | None, classes: list[str] | None) -> None:
        known = (*NAMES, "ImageFolder")
        if self.dataset not in known:
            raise DataError(f"no dataset is called {self.dataset!r}; known: {', '.join(known)}")
        try:
            str(self.root).encode()
        except UnicodeEncodeError as fault:
            raise DataError(
                f"root is {shown(self.root)}, which is no UTF-8: no configuration could keep it. Rename "
                "the folder, or give a link to it"
            ) from fault
        if self.batch_size < 1:
            raise DataError(f"batch_size is {self.batch_size}; 1 at least is needed")
        for name in ("val_fraction", "test_fraction"):
            if not 0 <= getattr(self, name) < 1:
                raise DataError(f"{name} is {getattr(self, name)}; it must be from 0 to below 1")
        if self.num_workers is not None and self.num_workers < 0:
            raise DataError(f"num_workers is {self.num_workers}; it cannot be negative")
        if self.shift < 0:
            raise DataError(f"shift is {self.shift}; it cannot be negative")
        if self.channels not in (1, 3):
            raise DataError(f"channels is {self.channels}; it must be 1 or 3")
        own = self.image_size is not None or self.channels != 3 or self.exif or classes is not None
        if self.dataset != "ImageFolder" and own:
            raise DataError(
                f"image_size, channels, exif and classes are ImageFolder's; {self.dataset} has none"
            )
        if classes is not None and len({*classes}) < max(2, len(classes)):
            raise DataError(f"classes is {few(classes)}: two names at least are needed, each once")
        if split is not None and self.dataset != "EMNIST":
            raise DataError(f"split is EMNIST's; {self.dataset} has none")
        if split is not None and split not in EMNIST_SPLITS:
            raise DataError(f"EMNIST has no split {split!r}; known: {', '.join(EMNIST_SPLITS)}")
        given = self.normalize
        if given is not None and given != "auto":
            pair = isinstance(given, (list, tuple)) and len(given) == 2
            if not pair or not all(isinstance(part, (list, tuple)) for part in given):
                raise DataError('normalize must be "auto", null, or [[means], [deviations]]')
            if not all(0 < float(std) < math.inf for std in given[1]):
                raise DataError(f"normalize: deviations must be above 0 and finite, got {given[1]}")
            if not all(math.isfinite(mean) for mean in given[0]):
                raise DataError(f"normalize: means must be finite, got {given[0]}")

    # What the model needs to know before it is built.

    @property
    def class_names(self) -> tuple[str, ...]:
        return self._named.class_names if self._named else self.folder.class_names

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width)."""
        return self._named.image_shape if self._named else self.folder.image_shape

    def has_part(self, name: str) -> bool:
        """Whether "val" or "test" lies in a folder of its own, beside the pictures for training."""
        return self.folder is not None and {"train", name} <= self.folder.listing.called.keys()

    @property
    def has_test(self) -> bool:
        """Whether there are images to test on; it reads the pictures of a folder."""
        return self.folder is None or bool(self.folder.parts[2])

    # Lightning's hooks.

    def prepare_data(self) -> None:
        """Downloads, in one process a machine, what is not there."""
        if self._named is None:
            _ = self.folder.listing
        elif self.download:
            self._named.fetch(self.root)
        else:
            self._named.require(self.root)

    def setup(self, stage: str | None = None) -> None:
        """Reads the images and splits them; those of a named test set if `stage` uses them.

        What a folder of pictures is tested on is known when a checkpoint has been loaded.
        """
        self._stage = stage
        if self._order_seed is None:
            self._order_seed = torch.initial_seed()
        if self._named:
            self._setup_named(stage)
        else:
            self._setup_folder(stage)
        if self._in_memory:
            # Lightning advises workers, which would only slow down batches cut from a tensor.
            warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        if self._scale is None and (len(self._train) or self.normalize != "auto"):
            self._scale = self._scaling()
        if self._wanted and stage in (None, "fit"):
            self._augment = Augment(self._wanted, self.image_shape, self.num_classes)

    def _setup_named(self, stage: str | None) -> None:
        if self._train is None:
            images, labels = self._named.load(self.root, train=True)
            train, val = _split(len(labels), self.val_fraction, self.seed, "val_fraction")
            self._check_batch_size(len(train))
            self._train = TensorBatches(images, labels, train)
            self._val = TensorBatches(images, labels, val)
        if self._test is None and stage in (None, "test", "predict"):
            self._test = TensorBatches(*self._named.load(self.root, train=False))

    def _setup_folder(self, stage: str | None) -> None:
        folder = self.folder
        if stage in (None, "fit"):
            folder.check_trainable()
            self._check_batch_size(len(folder.parts[0]))
        train, val, test = self._folder_parts()
        if stage == "validate":
            val, _ = folder.measured("val")
        elif stage != "fit":
            test, _ = folder.measured("test", for_figures=stage != "predict")
        self._train, self._val, self._test = map(folder.dataset, (train, val, test))

    def _folder_parts(self) -> tuple[Pictures, Pictures, Pictures]:
        """Pictures for training, validation and test."""
        return self.folder.parts

    def _check_batch_size(self, count: int) -> None:
        if self.batch_size > count:
            raise DataError(
                f"batch_size is {self.batch_size}, but there are only {count} training images"
            )

    @property
    def _in_memory(self) -> bool:
        return self.folder is None or self.folder.in_memory

    def _scaling(self) -> tuple[Tensor, Tensor]:
        """Factor and offset (C, 1, 1) float32 that turn levels 0 ... 255 into what is asked."""
        channels = self.image_shape[0]
        if self.normalize is None:
            mean, std = torch.zeros(channels), torch.ones(channels)
        elif self.normalize == "auto":
            mean, std = self._training_statistics()
        else:
            mean, std = (torch.tensor(part, dtype=torch.float64) for part in self.normalize)
            if mean.shape != (channels,) or std.shape != (channels,):
                raise DataError(
                    f"normalize gives {mean.numel()} means and {std.numel()} deviations; the "
                    f"images have {channels} channels"
                )
        factor, offset = 1 / (255 * std.double()), -mean.double() / std.double()
        return factor.float().view(-1, 1, 1), offset.float().view(-1, 1, 1)

    def _training_statistics(self) -> tuple[Tensor, Tensor]:
        train = self._train
        if isinstance(train, TensorBatches):
            return mean_and_std(train.images, train.rows)
        chosen = torch.randperm(len(train), generator=generator(self.seed))[:SAMPLE].sort().values
        loader = DataLoader(
            torch.utils.data.Subset(train, chosen.tolist()),
            batch_size=64,
            collate_fn=as_is,
            num_workers=self._workers(),
            generator=generator(0),
        )
        return mean_and_std(torch.cat([images for images, _ in loader]))

    def _workers(self) -> int:
        if self.num_workers is not None:
            return self.num_workers
        return 0 if self._in_memory else min(8, os.cpu_count() or 1)

    def class_counts(self) -> Tensor:
        """(num_classes,) int64: the training images of each class."""
        return torch.bincount(self._train.all_labels(), minlength=self.num_classes)

    def _loader(self, dataset: Dataset | None, shuffle: bool = False) -> DataLoader:
        if dataset is None:
            raise DataError("the images are not read yet; call prepare_data() and setup() first")
        workers = self._workers()
        return ResumingLoader(
            dataset,
            batch_size=self.batch_size,
            sampler=EpochShuffle(dataset, self._order_seed) if shuffle else None,
            collate_fn=as_is,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=not self._in_memory and torch.cuda.is_available(),
            # Its own, because each pass over a loader draws one number from the global generator.
            generator=generator(self._order_seed),
            batches_done=self._batches_done if shuffle else None,
            order_seed=self._order_seed if shuffle else None,
        )

    def _batches_done(self) -> int:
        """Training batches of this epoch that the run had behind it when it was interrupted."""
        if self.trainer is None or not self.trainer.training:
            return 0
        return self.trainer.fit_loop.epoch_loop.batch_progress.current.ready

    def train_dataloader(self) -> DataLoader:
        return self._loader(self._train, shuffle=True)

    def val_dataloader(self) -> DataLoader | list:
        """No loader where val_fraction is 0."""
        return self._measured(self._val, "val", asked_for=self._stage == "validate")

    def test_dataloader(self) -> DataLoader | list:
        """No loader where test_fraction is 0 and the folder has no `test`."""
        return self._measured(self._test, "test", asked_for=self._stage in ("test", "predict"))

    def predict_dataloader(self) -> DataLoader | list:
        return self.test_dataloader()

    def _measured(self, images: Dataset | None, part: str, asked_for: bool) -> DataLoader | list:
        """Not before a checkpoint has been loaded is it known which pictures these are."""
        if images is None or len(images):
            return self._loader(images)
        if asked_for:  # it would end as if it had measured something
            kind = {"val": "validation", "test": "test"}[part]
            fraction = getattr(self, f"{part}_fraction")
            raise DataError(f"there are no {kind} images; --data.{part}_fraction is {fraction:g}")
        return []

    def predict_names(self) -> list[str]:
        """A name for each image that predict serves: its file, or its number in the test set."""
        if self._named:
            return [str(i) for i in range(len(self._test))]
        return [path for path, _ in self.folder.measured("test", for_figures=False)[0]]

    def predicted_words(self) -> str:
        """Which images a prediction takes."""
        if self._named:
            return f"the test images of {self.dataset}"
        return self.folder.measured("test", for_figures=False)[1]

    def on_after_batch_transfer(self, batch, dataloader_idx: int):
        """uint8 images become floats of the run's precision, scaled; in training also changed."""
        images, labels = batch
        augment = self._augment if self.trainer.training else None
        if augment and len(labels) == 1 and labels[0] < 0:
            augment = None  # an image without a label keeps a process in step, see Shared
        if self.trainer.training:
            number = self.trainer.fit_loop.epoch_loop.total_batch_idx
            draw = generator(self._order_seed, number, self.trainer.global_rank)
            if self.shift or self.flip:
                images = shift_and_flip(images, self.shift, self.flip, draw)
            if augment:
                images = augment.change(images, draw.initial_seed())
        scaled = self.scale(images)
        if augment:
            scaled, labels = augment.mix(scaled, labels, draw.initial_seed() + 1)
        # Lightning has cast the batch to the run's precision while it still was uint8.
        return self.trainer.precision_plugin.convert_input(scaled), labels

    def scale(self, images: Tensor) -> Tensor:
        """(B, C, H, W) uint8 -> float32, as `normalize` says."""
        if self._scale is None and self._train is not None:
            raise DataError(
                "there are no training images here to take mean and deviation from, and no "
                "checkpoint that knows them: --ckpt_path, or --data.normalize"
            )
        if self._scale[0].device != images.device:
            self._scale = tuple(part.to(images.device) for part in self._scale)
        return scaled(images, *self._scale)

    @property
    def reading(self) -> Reading:
        """How a picture becomes what the network is trained on, once the training images are read."""
        if self._scale is None:
            raise DataError("the images are not read yet; call prepare_data() and setup() first")
        return Reading(
            self.dataset,
            self.class_names,
            self.image_shape,
            self.image_size is not None,
            *self._scale,
            self.exif,
        )

    def as_seen(self, images: Tensor) -> Tensor:
        """(B, C, H, W) as `scale` made them -> float32 in 0 to 1, as people know them."""
        factor, offset = (part.to(images.device) for part in self._scale)
        return ((images.float() - offset) / factor / 255).clamp_(0, 1)

    def state_dict(self) -> dict:
        state = {"order_seed": self._order_seed, "split": [self.seed, self.val_fraction]}
        if self._scale is not None:
            state["reading"] = self.reading.state()
            if self.folder is not None:
                state["folder"] = self.folder.state()
        return state

    def load_state_dict(self, state_dict: dict) -> None:
        """DataError: the run's classes are not those of these images, or were read in another way."""
        self._order_seed = state_dict["order_seed"]
        if "reading" not in state_dict:
            return
        reading = Reading.of_state(state_dict["reading"])
        if reading.class_names != self.class_names:
            raise DataError(
                f"the checkpoint was trained on the classes {few(reading.class_names)}; these images "
                f"have {few(self.class_names)}"
            )
        if reading.exif != self.exif:
            raise DataError(
                f"the checkpoint was trained with --data.exif {str(reading.exif).lower()}, which reads "
                "pictures in another way"
            )
        ran, ours = state_dict.get("split"), [self.seed, self.val_fraction]
        if self._named and self._stage == "validate" and ran not in (None, ours):
            raise DataError(
                f"the run drew its validation images with --data.seed {ran[0]} and --data.val_fraction "
                f"{ran[1]}; those of {ours[0]} and {ours[1]} are images that it was trained on"
            )
        if self.folder is not None:
            self.folder.load_state(state_dict.get("folder"), goes_on=self._stage == "fit")
            if self._train is not None:
                self._setup_folder(self._stage)  # again, as the run had its pictures
        # Other images than the training's may lie there now; the network knows that one's scale.
        if self.normalize == "auto" and len(reading.factor) == self.image_shape[0]:
            self._scale = (reading.factor, reading.offset)


def _pair(size) -> tuple[int, int] | None:
    if size is None:
        return None
    pair = (size, size) if isinstance(size, int) else tuple(size)
    if len(pair) != 2 or not all(isinstance(side, int) and side > 0 for side in pair):
        raise DataError(f"image_size is {size}; it must be a side or [height, width], above 0")
    return pair


def _split(count: int, fraction: float, seed: int, name: str) -> tuple[Tensor, Tensor]:
    """(rows that stay, rows held back), both in ascending order."""
    held = round(count * fraction)
    if fraction and not 0 < held < count:
        raise DataError(f"{name} {fraction} of {count} images is {held}; both parts need images")
    order = torch.randperm(count, generator=generator(seed))
    return order[held:].sort().values, order[:held].sort().values
