"""What a run is judged by: its mean loss and accuracy, and what a table of mistakes tells."""

import warnings
from typing import Literal

import torch
from lightning.pytorch import Trainer
from torch import Tensor

TOP = 5  # of so many best scores one may be right; told where there are more than twice as many classes
OF_A_TABLE = ("balanced_acc", "macro_f1", f"top{TOP}_acc")
# What there is at the end of an epoch, to choose the best by.
MONITORED = ("train/loss", "train/acc", "val/loss", "val/acc", *(f"val/{x}" for x in OF_A_TABLE))


def is_reported(name: str, classes: int) -> bool:
    """Whether a figure, such as val/top5_acc, is told of so many classes."""
    return classes > 2 * TOP or not name.endswith(OF_A_TABLE[-1])


def better(name: str) -> Literal["max", "min"]:
    """Which end of the figure is the good one."""
    return "min" if name.endswith("loss") else "max"


class Tally:
    """Mean loss and accuracy over every example seen since the last reset, over all processes.

    Not a module of the network's: what measures is cast to no precision and moved to no device with it. A
    batch's figures stay where they are until they are asked for, so that no accelerator waits for Python; the
    sums are float64 and the counts exact to 2^53.
    """

    MOST = 1024  # batches whose figures lie side by side before they are summed

    def __init__(self):
        self.reset()

    def reset(self) -> None:
        self._batches: list[tuple[Tensor, Tensor, int]] = []
        self._sums = torch.zeros(3, dtype=torch.float64)

    def update(self, loss: Tensor, correct: Tensor, examples: int) -> None:
        """loss () the batch's mean, correct () how many of its `examples` were right."""
        self._batches.append((loss.detach(), correct, examples))
        if len(self._batches) == self.MOST:
            self.sums()

    def sums(self) -> Tensor:
        """(sum of the losses, how many were right, examples) of this process, float64."""
        if self._batches:
            losses, correct, counts = zip(*self._batches, strict=True)
            self._batches = []
            losses, correct = (torch.stack(x).cpu().double() for x in (losses, correct))
            counts = torch.tensor(counts, dtype=torch.float64)
            self.add(torch.stack([losses @ counts, correct.sum(), counts.sum()]))
        return self._sums

    def add(self, sums: Tensor) -> None:
        self._sums = self._sums + sums

    def compute(self, trainer: Trainer) -> tuple[float, float]:
        """(mean loss, accuracy in 0 ... 1); every process must ask."""
        loss, correct, examples = over_all(self.sums(), trainer).tolist()
        return loss / examples, correct / examples


class ConfusionCounts:
    """How often each class was taken for each, over every example since the last reset, over all processes.

    Its counts are whole numbers, so that what they tell depends on no precision, batch or number of processes.
    """

    def __init__(self, classes: int):
        self.classes = classes
        self.reset()

    def reset(self) -> None:
        self._pairs: list[Tensor] = []
        self._among: list[Tensor] = []
        self._counts = torch.zeros(self.classes**2 + 1, dtype=torch.int64)

    @torch.no_grad()
    def update(self, scores: Tensor, labels: Tensor) -> None:
        """scores (B, C), labels (B,)."""
        self._pairs.append(labels * self.classes + scores.argmax(1))
        if is_reported(OF_A_TABLE[-1], self.classes):
            best = scores.topk(TOP, 1).indices
            self._among.append((best == labels[:, None]).any(1).sum())
        if len(self._pairs) == Tally.MOST:
            self.counts()

    def counts(self) -> Tensor:
        """(C² + 1,) int64 of this process: each class's examples by what they were taken for, and how many
        had their class among the TOP best."""
        if self._pairs:
            pairs = torch.cat(self._pairs).cpu()
            self._counts[:-1] += torch.bincount(pairs, minlength=self.classes**2)
            self._counts[-1] += sum(count.item() for count in self._among)
            self._pairs, self._among = [], []
        return self._counts

    def compute(self, trainer: Trainer) -> dict[str, float]:
        """Each in 0 ... 1; every process must ask.

        balanced_acc: the mean of the classes' accuracies, over the classes that there are examples of;
        macro_f1: the mean of the classes' F1 = 2 TP / (2 TP + FP + FN), over the classes that there are
        examples or answers of; both as scikit-learn defines them. top5_acc: how often the class was among
        the five of the highest scores, where there are more than ten.
        """
        from sklearn.metrics import balanced_accuracy_score, f1_score

        counts = over_all(self.counts(), trainer).cpu()
        table = counts[:-1].view(self.classes, self.classes)
        label, answer = table.nonzero(as_tuple=True)
        seen = {"y_true": label, "y_pred": answer, "sample_weight": table[label, answer]}
        with warnings.catch_warnings():
            # An answer of which there is no example has no accuracy.
            warnings.filterwarnings("ignore", message="y_pred contains classes not in y_true")
            balanced = float(balanced_accuracy_score(**seen))
        f1 = float(f1_score(**seen, average="macro"))
        among = counts[-1].item() / table.sum().item()
        found = zip(OF_A_TABLE, (balanced, f1, among), strict=True)
        return {name: value for name, value in found if is_reported(name, self.classes)}


def over_all(sums: Tensor, trainer: Trainer) -> Tensor:
    """The sum over all processes."""
    if trainer.world_size == 1:
        return sums
    return trainer.strategy.reduce(sums.to(trainer.strategy.root_device), reduce_op="sum")
