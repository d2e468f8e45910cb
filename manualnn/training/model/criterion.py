"""What a classifier learns to make small."""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from manualnn import functional as F
from manualnn import nn
from manualnn.training.errors import TrainingError


class CrossEntropy(nn.CrossEntropyLoss):
    """-1/m sum over examples and classes c of w[c] q[c] log softmax(z)[c]; z (m, C), y (m,) classes or (m, C)
    their shares, q = (1 - s) y + s / C of the smoothing s.

    Divided by the examples and not, as torch.nn's, by the sum of their weights: an example weighs what it
    weighs in any batch, and the mean over batches is the mean over examples.

    Args:
        class_weights: w; "balanced" is all training examples / (classes × the class's), which
            `balance` puts in when they are known; None is 1.
        label_smoothing: Part in [0, 1) of the target spread evenly over the classes.
    """

    def __init__(
        self, class_weights: Literal["balanced"] | list[float] | None, label_smoothing: float
    ):
        super().__init__(label_smoothing=label_smoothing)
        self.balanced = class_weights == "balanced"
        # No buffer: it would be rounded to the run's precision.
        self.class_weights: list[float] | None = None if self.balanced else class_weights

    def balance(self, counts: Tensor, names: tuple[str, ...]) -> None:
        """counts (C,) of the training examples of each class."""
        missing = [name for name, count in zip(names, counts.tolist(), strict=True) if not count]
        if missing:
            raise TrainingError(
                f"class_weights balanced: the class {missing[0]} has no training image to weigh"
            )
        self.class_weights = (counts.sum() / (len(counts) * counts.double())).tolist()

    def forward(self, scores: Tensor, labels: Tensor) -> Tensor:
        if labels.is_floating_point():
            labels = labels.to(scores.dtype)
        if self.class_weights is None:
            return super().forward(scores, labels)
        weights = torch.tensor(self.class_weights, dtype=scores.dtype, device=scores.device)
        smoothing = self.label_smoothing
        total = F.cross_entropy(scores, labels, weights, reduction="sum", label_smoothing=smoothing)
        return total / len(labels)


class QuadraticLoss(torch.nn.Module):
    """1/(2m) sum over examples and classes of (sigmoid(z) - t)^2; z (m, C), t = onehot(y) of classes y (m,),
    or their shares (m, C)."""

    def __init__(self):
        super().__init__()
        self.sigmoid, self.squares = nn.Sigmoid(), nn.MSELoss(reduction="sum")

    def forward(self, scores: Tensor, labels: Tensor) -> Tensor:
        outputs = self.sigmoid(scores)
        if labels.is_floating_point():
            target = labels.to(outputs.dtype)
        else:
            target = torch.zeros_like(outputs).scatter_(1, labels[:, None], 1.0)
        return self.squares(outputs, target) / (2 * len(labels))


class Prediction(NamedTuple):
    """What scores (B, C) say. probabilities (B, C): their softmax, or their sigmoid under the quadratic loss;
    order (B, C): the classes, those of the largest scores first. Probabilities may be equal, 1 above all, of
    scores that are not; the class is the one that figures count."""

    probabilities: Tensor
    order: Tensor

    @classmethod
    def of(cls, scores: Tensor, quadratic: bool) -> "Prediction":
        wide = scores.to(torch.promote_types(scores.dtype, torch.float32))
        probabilities = torch.sigmoid(wide) if quadratic else torch.softmax(wide, 1)
        return cls(probabilities, scores.argsort(dim=1, descending=True, stable=True))


def criterion(
    loss: str,
    label_smoothing: float,
    class_weights: Literal["balanced"] | list[float] | None,
    num_classes: int,
) -> torch.nn.Module:
    """Raises TrainingError: the arguments contradict each other or are out of range."""
    if not 0 <= label_smoothing < 1:
        raise TrainingError(f"label_smoothing is {label_smoothing}; it must be in [0, 1)")
    if isinstance(class_weights, (list, tuple)):
        if len(class_weights) != num_classes or not all(
            0 < w < float("inf") for w in class_weights
        ):
            raise TrainingError(
                f"class_weights is {list(class_weights)}; needed is a number above 0 for each of the "
                f"{num_classes} classes, or balanced"
            )
    elif class_weights not in (None, "balanced"):
        raise TrainingError(f"class_weights is {class_weights!r}; known: balanced, or numbers")
    if loss == "cross_entropy":
        return CrossEntropy(class_weights, label_smoothing)
    if loss != "quadratic":
        raise TrainingError(f"no loss is called {loss!r}; known: cross_entropy, quadratic")
    for name, given in (("label_smoothing", label_smoothing), ("class_weights", class_weights)):
        if given:
            raise TrainingError(f"{name} belongs to cross_entropy; quadratic has none")
    return QuadraticLoss()
