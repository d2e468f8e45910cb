"""What the network gets right and wrong: pictures of a pass over the validation images."""

from dataclasses import dataclass, field

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from torchmetrics.classification import MulticlassConfusionMatrix
from torchvision.utils import make_grid

from manualnn.tools.palette import DARK, GREY
from manualnn.training.model.criterion import Prediction
from manualnn.training.monitors.drawing import SMALL, USUAL, Canvas, blues, cut, length
from manualnn.training.monitors.layers import MonitoredLayer

MOST_MISTAKES = 24  # shown, in rows of 8
MOST_SCORES = 4_000_000  # kept for the PR curves: images times classes
WAITING = 2**25  # bytes of images that may wait to be looked at
MOST_CLASSES = 40  # written out in the confusion matrix
MOST_CURVES = 20  # PR curves, and scalars of single classes
MOST_POINTS = 1000  # in the embedding projector
FIRST_IMAGES = 64  # of the first layer's weights
BAR = 110  # pixels: an accuracy of 1


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
            self._digest(scores, images, labels)
        self.waiting, self.bytes_waiting = [], 0

    def _digest(self, scores: Tensor, images: Tensor, labels: Tensor) -> None:
        probabilities, order = Prediction.of(scores, self.quadratic)
        probabilities, predicted = probabilities.float(), order[:, 0]
        top = probabilities.gather(1, predicted[:, None])[:, 0]
        self.predicted.append(predicted)
        self.labels.append(labels)
        if self.scores_kept < MOST_SCORES:
            self.probabilities.append(probabilities)
            self.scores_kept += probabilities.numel()
        confidence = torch.where(predicted != labels, top, -1.0)
        best = confidence.topk(min(MOST_MISTAKES, len(confidence))).indices
        found = tuple(t[best] for t in (confidence, images, labels, predicted))
        if self.mistakes is not None:
            found = tuple(torch.cat(pair) for pair in zip(self.mistakes, found, strict=True))
            best = found[0].topk(min(MOST_MISTAKES, len(found[0]))).indices
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


def draw_confusion(matrix: Tensor, names: tuple[str, ...]) -> Image.Image:
    """The confusion matrix, rows in shares, and each class's accuracy beside it."""
    count, written = len(names), len(names) <= MOST_CLASSES
    cell = 46 if count <= 15 else max(1, 920 // count)
    size = USUAL if count <= 15 else SMALL
    names = [cut(name, 110, size) if written else "" for name in names]
    longest = max(length(name, size) for name in names)
    flat = longest < cell - 6  # side by side, the names have room below the matrix
    below = 20 if flat else 14 + round(0.65 * longest)
    left, top, side = 42 + longest, 34, count * cell
    right, bottom, bars = left + side, top + side, left + side + 24
    canvas = Canvas.of_size(bars + BAR + 24, bottom + below + 26)

    shares = (matrix / matrix.sum(1, keepdim=True).clamp(min=1)).numpy()
    squares = Image.fromarray(blues(shares)).resize((side, side), Image.Resampling.NEAREST)
    canvas.box(left - 1, top - 1, right + 1, bottom + 1, DARK)
    canvas.image.paste(squares, (left, top))
    middles = [round((i + 0.5) * cell) for i in range(count)]
    for i, j in matrix.nonzero().tolist() if written else ():
        colour = "white" if shares[i, j] > 0.55 else DARK
        canvas.words(left + middles[j], top + middles[i], f"{matrix[i, j]:d}", colour, size)
    for middle, name, share in zip(middles, names, class_accuracy(matrix), strict=True):
        y, known = top + middle, share == share
        canvas.box(bars, y - 0.4 * cell, bars + BAR * (share if known else 0), y + 0.4 * cell, GREY)
        if written:
            canvas.words(left - 6, y, name, size=size, anchor="rm")
            placed = {"anchor": "ma"} if flat else {"anchor": "ra", "turn": 40}
            canvas.words(left + middle, bottom + 5, name, size=size, **placed)
            words = f"{share:.1%}" if known else "none"
            canvas.words(bars + 4, y, words, size=size, anchor="lm")
    canvas.box(bars, bottom, bars + BAR, bottom + 1, DARK)
    for share in (0, 0.5, 1):
        canvas.words(bars + BAR * share, bottom + 5, f"{share:.0%}", size=size, anchor="ma")
    total = matrix.sum().item()
    words = f"{total} validation images, {matrix.diag().sum() / total:.2%} right"
    canvas.words(8, 16, words, anchor="lm")
    canvas.words(14, (top + bottom) / 2, "true class", turn=90)
    canvas.words((left + right) / 2, bottom + below + 10, "predicted class")
    canvas.words(bars + BAR / 2, bottom + below + 10, "accuracy")
    return canvas.flat()


def draw_mistakes(seen: Pass, as_seen, names: tuple[str, ...]) -> Image.Image | None:
    """The most confident mistakes, each with its true and its predicted class; None without one.

    as_seen: images of the data module, scaled, -> (B, C, H, W) in 0 to 1, as people know them.
    """
    wrong = (seen.mistakes[0] >= 0).cpu()
    if not wrong.any():
        return None
    confidence, images, labels, predicted = (t.cpu()[wrong] for t in seen.mistakes)
    images = _enlarged(as_seen(images), 112)
    # Pixels: for the words above an image, below it, and beside it, where they have some room too.
    above, below, beside = 34, 6, max(6, (130 - images.shape[3]) // 2)
    padded = torch.nn.functional.pad(images, (beside, beside, above, below), value=1.0)
    height, width = padded.shape[-2:]
    columns = min(8, len(images))
    canvas = Canvas(_tiled(padded, columns))
    rows = zip(labels.tolist(), predicted.tolist(), confidence.tolist(), strict=True)
    for i, (true, guess, sure) in enumerate(rows):
        row, column = divmod(i, columns)
        share = f" {sure:.0%}"
        words = (
            cut(f"true {names[true]}", width - beside),
            cut(f"predicted {names[guess]}", width - beside - length(share)) + share,
        )
        place = column * width + beside, row * height + above - 4
        canvas.words(*place, "\n".join(words), anchor="ld")
    return canvas.image


def draw_first_layer(
    layers: list[MonitoredLayer], image_shape: tuple[int, int, int]
) -> Image.Image | None:
    """The weights of the first layer as a grid of images: of a matrix product a row an image, of a convolution
    a kernel an image. None where they are not the image's shape."""
    if not layers:
        return None
    W = layers[0].weight.detach()
    if W.ndim == 2 and W.shape[1] == np.prod(image_shape):
        W = W.unflatten(1, image_shape)
    if W.ndim != 4:
        return None
    W = W[:FIRST_IMAGES].float().cpu()
    if W.shape[1] not in (1, 3):
        W = W[:, :1]
    # 0 is grey in every image, so that signs can be seen.
    largest = W.abs().amax((1, 2, 3), keepdim=True).clamp(min=1e-12)
    images = _enlarged(W / largest / 2 + 0.5, 56)
    return _tiled(torch.nn.functional.pad(images, (2, 2, 2, 2), value=1.0), 8)


def _tiled(images: Tensor, columns: int) -> Image.Image:
    """Images (B, C, H, W) in 0 to 1, side by side in rows; in grey where they have one channel."""
    grid = make_grid(images, nrow=columns, padding=0, pad_value=1.0)  # which has three in any case
    grid = grid.permute(1, 2, 0) if images.shape[1] == 3 else grid[0]
    return Image.fromarray(grid.clamp(0, 1).mul(255).round().to(torch.uint8).numpy())


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
    side = min(48, max(thumbnails.shape[-2:]))
    # Square ones: TensorBoard's sheet of thumbnails fails on images that are higher than wide.
    if thumbnails.shape[-2:] != (side, side):
        thumbnails = torch.nn.functional.interpolate(thumbnails, size=(side, side), mode="area")
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
    """Each pixel a square, so that an image is about `side` high; large ones are made smaller."""
    height, width = images.shape[-2:]
    times = side // max(height, width)
    if times >= 1:
        return images.repeat_interleave(times, 2).repeat_interleave(times, 3)
    scale = side / max(height, width)
    size = max(1, round(height * scale)), max(1, round(width * scale))
    return torch.nn.functional.interpolate(images, size=size, mode="area")
