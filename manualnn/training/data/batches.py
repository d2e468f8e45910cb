"""Whole batches: how they are picked, shuffled, shifted and flipped, and scaled."""

from collections.abc import Callable
from itertools import islice

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.utils.data import DataLoader, Dataset, DistributedSampler, RandomSampler, Sampler

from manualnn.training.seeds import generator


class TensorBatches(Dataset):
    """Images held in memory, a part of them chosen by `rows`.

    images (N, C, H, W) uint8, labels (N,) int64, rows (n,) int64 or None for all. DataLoader asks
    `__getitems__` once a batch: indices -> (images (B, C, H, W), labels (B,)).
    """

    def __init__(self, images: Tensor, labels: Tensor, rows: Tensor | None = None):
        self.images, self.labels = images, labels
        self.rows = torch.arange(len(labels)) if rows is None else rows

    def __len__(self) -> int:
        return len(self.rows)

    def all_labels(self) -> Tensor:
        """(n,) int64."""
        return self.labels[self.rows]

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        row = self.rows[index]
        return self.images[row], self.labels[row]

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        rows = self.rows[indices]
        return self.images.index_select(0, rows), self.labels.index_select(0, rows)


def as_is(batch):
    """The collate_fn of a dataset that serves whole batches."""
    return batch


class EpochShuffle(RandomSampler):
    """A permutation that is a function of (seed, epoch) alone, so a resumed run repeats it.

    Lightning calls `set_epoch`; a plain loop gets the next epoch each time it starts over. A
    RandomSampler by type, so that Lightning puts its own distributed sampler in its place.
    """

    def __init__(self, data_source, seed: int):
        super().__init__(data_source)
        self.seed, self.epoch = seed, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self):
        order = torch.randperm(len(self.data_source), generator=generator(self.seed, self.epoch))
        self.epoch += 1
        yield from order.tolist()


class Share(DistributedSampler):
    """What one of several processes takes of an order: every n-th index, -1 where there is none left for it.

    Together the processes' batches are the batches that one process with n times the batch size would have
    had, in the same order, each image once. They have the same number of batches, since they wait for each
    other in each.

    Args:
        seed: EpochShuffle's; None: the order of the dataset.
    """

    def __init__(self, dataset: Dataset, processes: int, rank: int, seed: int | None = None):
        super().__init__(dataset, num_replicas=processes, rank=rank)
        self.order_seed = seed

    def __iter__(self):
        count = len(self.dataset)
        if self.order_seed is None:
            order = torch.arange(count)
        else:
            order = torch.randperm(count, generator=generator(self.order_seed, self.epoch))
        order = torch.cat([order, torch.full((self.total_size - count,), -1)])
        yield from order[self.rank :: self.num_replicas].tolist()


class Shared(Dataset):
    """A dataset of whole batches that leaves index -1 out; of a batch of no other it serves an image whose
    label is -1, to be counted by no one."""

    def __init__(self, dataset: Dataset):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        there = [index for index in indices if index >= 0]
        images, labels = self.dataset.__getitems__(there or [0])
        return images, labels if there else torch.full_like(labels, -1)


class ResumingLoader(DataLoader):
    """A DataLoader whose pass starts behind the first `batches_done()` batches.

    Asked at the first batch, not at `iter()`: Lightning calls `iter()` before it has told the
    sampler its epoch and set its own counters right, and workers would run ahead with the wrong
    order.

    In a run of several processes Lightning makes the loader again with a DistributedSampler. It says
    which share is this process's; the order stays that of `order_seed`.
    """

    def __init__(
        self,
        dataset,
        batches_done: Callable[[], int] | None = None,
        order_seed: int | None = None,
        sampler: Sampler | None = None,
        **options,
    ):
        if type(sampler) is DistributedSampler:
            seed = order_seed if sampler.shuffle else None
            sampler = Share(dataset, sampler.num_replicas, sampler.rank, seed)
            dataset = Shared(dataset)
        super().__init__(dataset, sampler=sampler, **options)
        self.batches_done, self.order_seed = batches_done, order_seed

    def __iter__(self):
        start = self.batches_done() if self.batches_done else 0
        yield from islice(super().__iter__(), start, None)

    # With these two Lightning takes the loader for one that resumes within an epoch, as it does;
    # what it needs for that is in Lightning's own counters.

    def state_dict(self) -> dict:
        return {}

    def load_state_dict(self, state_dict: dict) -> None:
        pass


def shift_and_flip(images: Tensor, shift: int, flip: bool, draw: torch.Generator) -> Tensor:
    """Each image moved by its own dy, dx in -shift ... shift, and mirrored with chance 1/2.

    What moves in from outside is 0 (black before scaling). images (B, C, H, W) on any device; the
    random numbers come from `draw` on the CPU, the same for every device.
    """
    count, _, height, width = images.shape
    if shift:
        dy, dx = torch.randint(0, 2 * shift + 1, (2, count), generator=draw).to(images.device)
        # (B, C, 2s+1, 2s+1, H, W): every crop there is, as a view; one is copied an image.
        crops = pad(images, (shift,) * 4).unfold(2, height, 1).unfold(3, width, 1)
        images = crops[torch.arange(count, device=images.device), :, dy, dx]
    if flip:
        mirrored = torch.rand(count, generator=draw).to(images.device) < 0.5
        images = torch.where(mirrored[:, None, None, None], images.flip(-1), images)
    return images


def scaled(levels: Tensor, factor: Tensor, offset: Tensor) -> Tensor:
    """levels (B, C, H, W) in 0 ... 255 -> levels * factor + offset in float32, (C, 1, 1) each."""
    return levels.float().mul_(factor).add_(offset)


def mean_and_std(images: Tensor, rows: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel, pixels scaled to 0 ... 1: (C,), (C,) float64.

    From counts of the 256 levels, so exact for any number of images. A channel that never changes
    gets 1 for its deviation, so that scaling leaves it finite.
    """
    rows = torch.arange(len(images)) if rows is None else rows
    channels = images.shape[1]
    counts = torch.zeros(channels, 256, dtype=torch.float64)
    for block in rows.split(2048):  # a block at a time: bincount copies its input to int64
        chosen = images.index_select(0, block)
        for c in range(channels):
            counts[c] += torch.bincount(chosen[:, c].flatten(), minlength=256)
    level = torch.arange(256, dtype=torch.float64) / 255
    share = counts / counts.sum(1, keepdim=True)
    mean = share @ level
    std = (share * (level - mean[:, None]) ** 2).sum(1).sqrt()
    return mean, torch.where(std > 0, std, 1.0)
