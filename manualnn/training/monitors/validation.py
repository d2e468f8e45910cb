"""What the network gets right and wrong: pictures of a pass over the validation images."""

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from torchmetrics.classification import MulticlassConfusionMatrix
from torchmetrics.utilities.plot import plot_confusion_matrix
from torchvision.utils import make_grid

from manualnn.training.monitors.drawing import DARK, GREY, new_figure, pixels
from manualnn.training.monitors.layers import Layer

MISTAKES = 24  # shown, in rows of 8
MOST_SCORES = 4_000_000  # kept for the PR curves: images times classes
WAITING = 2**25  # bytes of images that may wait to be looked at
MOST_CLASSES = 40  # written out in the confusion matrix
MOST_CURVES = 20  # PR curves, and scalars of single classes
MOST_POINTS = 1000  # in the embedding projector
FIRST_IMAGES = 64  # of the first layer's weights


@dataclass
class Pass:
    """One pass over the validation images, batch by batch.

    What is seen waits, untouched, until a picture is drawn or WAITING is reached. Then: probabilities (n, C),
    of the first images where there are many; predicted, labels (n,); the most confident mistakes: confidence
    (k,), negative where there is none, their images, labels, predictions.

    Args:
        quadratic: Whether the scores are each class's own (sigmoid), not one choice among all (softmax).
    """

    quadratic: bool = False
    probabilities: list[Tensor] = field(default_factory=list)
    predicted: list[Tensor] = field(default_factory=list)
    labels: list[Tensor] = field(default_factory=list)
    mistakes: tuple[Tensor, ...] | None = None
    features: list[Tensor] = field(default_factory=list)
    images: list[Tensor] = field(default_factory=list)
    waiting: list[tuple[Tensor, Tensor, Tensor]] = field(default_factory=list)
    bytes_waiting: int = 0
    scores_kept: int = 0
    drawn: bool = False

    def see(self, scores: Tensor, images: Tensor, labels: Tensor) -> None:
        self.waiting.append((scores, images, labels))
        self.bytes_waiting += images.numel() * images.element_size()
        if self.bytes_waiting > WAITING:
            self.digest()

    def digest(self) -> None:
        for scores, images, labels in self.waiting:
            self._digest(scores.float(), images, labels)
        self.waiting, self.bytes_waiting = [], 0

    def _digest(self, scores: Tensor, images: Tensor, labels: Tensor) -> None:
        probabilities = torch.sigmoid(scores) if self.quadratic else torch.softmax(scores, 1)
        top, predicted = probabilities.max(1)
        self.predicted.append(predicted)
        self.labels.append(labels)
        if self.scores_kept < MOST_SCORES:
            self.probabilities.append(probabilities)
            self.scores_kept += probabilities.numel()
        confidence = torch.where(predicted != labels, top, -1.0)
        best = confidence.topk(min(MISTAKES, len(confidence))).indices
        found = tuple(t[best] for t in (confidence, images, labels, predicted))
        if self.mistakes is not None:
            found = tuple(torch.cat(pair) for pair in zip(self.mistakes, found, strict=True))
            best = found[0].topk(min(MISTAKES, len(found[0]))).indices
            found = tuple(t[best] for t in found)
        self.mistakes = found

    def see_features(self, features: Tensor, images: Tensor) -> None:
        """For the projector: a[L-1] of the first images."""
        left = MOST_POINTS - sum(len(part) for part in self.features)
        if left > 0:
            self.features.append(features[:left].detach().flatten(1).float().cpu())
            self.images.append(images[:left].detach().cpu())


def confusion(seen: Pass, num_classes: int) -> Tensor:
    """(C, C): row the true class, column the predicted one; over all processes, each of which must ask."""
    seen.digest()
    device = seen.labels[0].device
    matrix = MulticlassConfusionMatrix(num_classes, validate_args=False).to(device)
    matrix.update(torch.cat(seen.predicted), torch.cat(seen.labels))
    return matrix.compute().cpu()


def class_accuracy(matrix: Tensor) -> list[float]:
    """Of each class the share of its images that were recognised; NaN for a class without images."""
    return (matrix.diag() / matrix.sum(1)).tolist()


def accuracy_line(matrix: Tensor, names: tuple[str, ...]) -> dict[str, float]:
    """{"accuracy_of_class/cat": ...}; nothing where the classes are too many for a curve each."""
    if len(names) > MOST_CURVES:
        return {}
    pairs = zip(names, class_accuracy(matrix), strict=True)
    return {f"accuracy_of_class/{tag(name)}": share for name, share in pairs if share == share}


def draw_confusion(matrix: Tensor, names: tuple[str, ...]) -> np.ndarray:
    """The confusion matrix, rows in shares, and each class's accuracy beside it."""
    count = len(names)
    side = min(11.0, 2.6 + 0.42 * count)
    figure = new_figure(side + 1.9, side, dpi=90)
    axes, bars = figure.subplots(1, 2, width_ratios=[5, 1], sharey=True)
    shares = matrix / matrix.sum(1, keepdim=True).clamp(min=1)
    written = count <= MOST_CLASSES
    plot_confusion_matrix(shares, axes, add_text=False, labels=list(names), cmap="Blues")
    axes.images[0].set_clim(0, 1)
    size = 9 if count <= 15 else 6
    if written:
        for i, j in matrix.nonzero().tolist():
            colour = "white" if shares[i, j] > 0.55 else "black"
            axes.text(
                j, i, str(int(matrix[i, j])), ha="center", va="center", fontsize=size, color=colour
            )
    else:
        axes.set_xticks([])
        axes.set_yticks([])
    axes.tick_params(labelsize=size)
    axes.set_xlabel("predicted class", fontsize=10)
    axes.set_ylabel("true class", fontsize=10)
    short = max(map(len, names)) <= 3
    axes.set_xticks(axes.get_xticks(), axes.get_xticklabels(), rotation=0 if short else 45,
                    ha="center" if short else "right")  # fmt: skip
    axes.set_yticks(axes.get_yticks(), axes.get_yticklabels(), rotation=0)
    correct = class_accuracy(matrix)
    bars.barh(range(count), correct, color=[GREY if c == c else "white" for c in correct])
    for i, value in enumerate(correct if written else ()):
        words = f"{value:.1%}" if value == value else "none"
        bars.text(0.04, i, words, va="center", fontsize=size, color=DARK)
    bars.set_xlim(0, 1)
    bars.set_xlabel("accuracy", fontsize=10)
    bars.tick_params(labelsize=size, labelleft=False, left=False)
    bars.spines[["top", "right", "left"]].set_visible(False)
    total = matrix.sum().item()
    figure.suptitle(
        f"{int(total)} validation images, {matrix.diag().sum() / total:.2%} right", fontsize=10
    )
    figure.tight_layout()
    return pixels(figure)


def draw_mistakes(seen: Pass, as_seen, names: tuple[str, ...]) -> np.ndarray | None:
    """The most confident mistakes, each with its true and its predicted class; None without one.

    as_seen: images of the data module, scaled, -> (B, C, H, W) in 0 to 1, as people know them.
    """
    confidence, images, labels, predicted = (t.cpu() for t in seen.mistakes)
    wrong = confidence >= 0
    if not wrong.any():
        return None
    images = _enlarged(as_seen(images[wrong]), 84)
    height, width = images.shape[-2:]
    gap, columns = 34, min(8, len(images))
    grid = make_grid(
        torch.nn.functional.pad(images, (6, 6, gap, 4), value=1.0), nrow=columns, padding=0
    )
    rows = -(-len(images) // columns)
    figure = new_figure(grid.shape[2] / 100, grid.shape[1] / 100, dpi=130)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.imshow(grid.permute(1, 2, 0).numpy(), interpolation="nearest", aspect="auto")
    axes.set_axis_off()
    room = max(4, (width + 12) // 6 - 8)
    for i, (true, wrongly, sure) in enumerate(
        zip(labels[wrong], predicted[wrong], confidence[wrong], strict=True)
    ):
        row, column = divmod(i, columns)
        x, y = column * (width + 12) + 6, row * (height + gap + 4) + gap - 4
        words = f"true {_cut(names[true], room)}\npredicted {_cut(names[wrongly], room)} {sure:.0%}"
        axes.text(x, y, words, fontsize=6.5, va="bottom", color=DARK, linespacing=1.15)
    assert rows * columns >= int(wrong.sum())
    return pixels(figure)


def first_layer(layers: list[Layer], image_shape: tuple[int, int, int]) -> Tensor | None:
    """The weights of the first layer as a grid of images (3, h, w): of a matrix product a row an image, of a
    convolution a kernel an image. None where they are not the image's shape."""
    if not layers:
        return None
    W = layers[0].weight.detach().float().cpu()
    if W.ndim == 2 and W.shape[1] == np.prod(image_shape):
        W = W.unflatten(1, image_shape)
    if W.ndim != 4:
        return None
    W = W[:FIRST_IMAGES]
    if W.shape[1] not in (1, 3):
        W = W[:, :1]
    # 0 is grey in every image, so that signs can be seen.
    largest = W.abs().amax((1, 2, 3), keepdim=True).clamp(min=1e-12)
    return make_grid(_enlarged(W / largest / 2 + 0.5, 56), nrow=8, padding=4, pad_value=1.0)


def write_pr_curves(writer: SummaryWriter, seen: Pass, names: tuple[str, ...], step: int) -> None:
    """A precision-recall curve a class, one against all others."""
    probabilities = torch.cat(seen.probabilities).float().cpu()
    labels = torch.cat(seen.labels)[: len(probabilities)].cpu()
    for c, name in enumerate(names[:MOST_CURVES]):
        writer.add_pr_curve(f"class/{tag(name)}", labels == c, probabilities[:, c], step)


def write_embedding(
    writer: SummaryWriter, seen: Pass, as_seen, names: tuple[str, ...], step: int
) -> None:
    """The last hidden layer's a for the first validation images, in the projector tab."""
    features, images = torch.cat(seen.features), torch.cat(seen.images)
    labels = torch.cat(seen.labels)[: len(features)].tolist()
    thumbnails = as_seen(images)
    if max(thumbnails.shape[-2:]) > 48:
        thumbnails = torch.nn.functional.interpolate(thumbnails, size=(48, 48), mode="area")
    writer.add_embedding(
        features,
        metadata=[tag(names[label]) for label in labels],
        label_img=thumbnails,
        global_step=step,
        tag="last_hidden",
    )


def tag(name: str) -> str:
    """A class's name where no tab, slash or new line may stand."""
    return "_".join(name.replace("/", "_").split()) or "_"


def _enlarged(images: Tensor, side: int) -> Tensor:
    """In colour, each pixel a square, so that an image is about `side` high; large ones are made smaller."""
    if images.shape[1] == 1:
        images = images.expand(-1, 3, -1, -1)
    height, width = images.shape[-2:]
    times = side // max(height, width)
    if times >= 1:
        return images.repeat_interleave(times, 2).repeat_interleave(times, 3)
    scale = side / max(height, width)
    size = max(1, round(height * scale)), max(1, round(width * scale))
    return torch.nn.functional.interpolate(images, size=size, mode="area")


def _cut(name: str, room: int) -> str:
    return name if len(name) <= room else name[: room - 1] + "…"
