"""ImageClassifier: a network of hand-written layers, its loss, and what is measured on the way."""

import math
import traceback
import warnings
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

import manualnn
from manualnn import nn
from manualnn.conversion.reasons import name_layer
from manualnn.training.errors import Diverged, TrainingError
from manualnn.training.model import transfer
from manualnn.training.model.criterion import Prediction, QuadraticLoss, criterion
from manualnn.training.model.metrics import ConfusionCounts, Tally
from manualnn.training.model.nonfinite import first_nonfinite_layer
from manualnn.training.seeds import mixed

# The name of an activation in `--model.activation`: the class in manualnn.nn, in lower case.
DEFAULT_ACTIVATION = "relu"


class ImageClassifier(LightningModule):
    """A classifier of images whose layers and loss are manualnn's.

    Either a fully connected network, n[0] = the pixels of an image, `hidden_units`, n[L] =
    `num_classes`, or any `network` that turns images (B, C, H, W) into scores (B, num_classes).

    Args:
        num_classes: Number of classes; the command line takes it from the data.
        image_shape: (channels, height, width); the command line takes it from the data.
        hidden_units: Units of each hidden layer, first to last; [] for none (softmax regression).
        activation: g of the hidden layers: a class of manualnn.nn in lower case, such as relu,
            tanh, sigmoid, gelu.
        dropout: Chance in [0, 1) that a hidden unit is dropped while training.
        weight_init: "torch": uniform within 1/sqrt(n[l-1]), as torch.nn.Linear starts; "normal":
            weights and biases from N(0, 1); "normal_scaled": weights from N(0, 1/n[l-1]), biases 0.
        network: A torch.nn.Module to train instead, such as torchvision.models.resnet18. If it takes
            num_classes or image_shape, the command line takes them from the data.
        convert: What becomes of `network`: "less": its layers become manualnn's, in place, and between
            two matrix products one tensor is kept for backward; "all": they become manualnn's and keep
            all that is asked for; "off": it stays as it is. Scores, gradients and checkpoints are the
            same: a run may go on, or be tested, with another choice.
        replace_head: Give a `network` of other scores a new last layer, and one that takes colours a first
            layer for grey images. `--model.network.weights DEFAULT`, torchvision's trained weights, sets it.
        freeze: Parts of the network that do not learn, by name, such as [conv1, bn1, layer1]; "backbone"
            is all but the last layer. Their norms keep their statistics, and they drop nothing out.
        head_lr: A learning rate of its own for the last layer.
        warmup_steps: The learning rate rises through the first so many steps: step s = 1, 2, ... takes
            s / warmup_steps of what the optimiser and its scheduler say.
        loss: "cross_entropy": -log softmax(z)[y]; "quadratic": 1/2 |sigmoid(z) - onehot(y)|^2,
            summed over the classes. Both are means over the examples.
        label_smoothing: Part in [0, 1) of the target spread evenly over the classes; only with
            cross_entropy.
        class_weights: What each class weighs in the loss, a number a class; "balanced": all training images /
            (classes x the class's). Only with cross_entropy, and still divided by the number of examples.
            Accuracies are not weighted.

    Raises:
        TrainingError: the arguments contradict each other or are out of range.
    """

    def __init__(
        self,
        num_classes: int = 10,
        image_shape: tuple[int, int, int] = (1, 28, 28),
        hidden_units: list[int] | None = None,
        activation: str | None = None,
        dropout: float = 0.0,
        weight_init: Literal["torch", "normal", "normal_scaled"] = "torch",
        network: torch.nn.Module | None = None,
        convert: Literal["less", "all", "off"] = "less",
        replace_head: bool = False,
        freeze: list[str | int] | str | None = None,
        head_lr: float | None = None,
        warmup_steps: int = 0,
        loss: Literal["cross_entropy", "quadratic"] = "cross_entropy",
        label_smoothing: float = 0.0,
        class_weights: Literal["balanced"] | list[float] | None = None,
    ):
        super().__init__()
        # The record of the run writes the hyperparameters to the logger, once.
        self.save_hyperparameters(ignore=["network"], logger=False)
        self.num_classes, self.image_shape = num_classes, tuple(image_shape)
        if convert not in ("less", "all", "off"):
            raise TrainingError(f"convert is {convert!r}; known: less, all, off")
        if warmup_steps < 0:
            raise TrainingError(f"warmup_steps is {warmup_steps}; it cannot be negative")
        if head_lr is not None and not 0 < head_lr < math.inf:
            raise TrainingError(f"head_lr is {head_lr}; it must be above 0")
        self.changes: list[str] = []  # what became of a network's ends, in words
        if network is None:
            if convert != "less" or replace_head:
                raise TrainingError(
                    f"{'replace_head' if replace_head else 'convert'} says what becomes of a `network` of "
                    "your own; the built-in one has these classes and manualnn's layers already"
                )
            self.network = _mlp(
                num_classes, image_shape, hidden_units, activation, dropout, weight_init
            )
        else:
            given = (hidden_units, activation, dropout, weight_init)
            if given != (None, None, 0.0, "torch"):
                raise TrainingError(
                    "hidden_units, activation, dropout and weight_init shape the built-in "
                    "network; they have no effect on a `network` of your own"
                )
            if replace_head:
                done = (
                    transfer.take_channels(network, image_shape[0]),
                    transfer.replace_head(network, num_classes),
                )
                self.changes += [line for line in done if line]
            if convert != "off":
                manualnn.convert(network, keep=convert)
            self.network = network
        self._frozen = transfer.freeze(self.network, freeze) if freeze else []
        if head_lr is not None and not any(p.requires_grad for p in self._head()):
            raise TrainingError("head_lr: freeze keeps the head from learning")
        self.train(self.training)  # the frozen parts are evaluated from the start
        self.head_lr, self.warmup_steps = head_lr, warmup_steps
        self.criterion = criterion(loss, label_smoothing, class_weights, num_classes)
        self.train_tally, self.tally, self.mistakes = Tally(), Tally(), ConfusionCounts(num_classes)
        # Losses and counts since the last line in the log, on the device: reading them once a
        # window instead of once a step keeps an accelerator from waiting for Python.
        self._window: list[tuple[Tensor, Tensor, int]] = []
        self._rates: list[float] = []  # of the last training batch, one a group of the optimiser
        self._planned: list[float] = []  # the rates without their warm-up, while a step is taken
        self.trained_images = 0  # in this epoch, by this process
        self._run_seed: int | None = None
        self._loaded_step: int | None = None  # of the checkpoint that the weights come from
        self._is_own = network is not None  # a user's own may not take these images
        self._taken: set[tuple[bool, torch.Size]] = set()  # (training, shape) that it took

    def forward(self, images: Tensor) -> Tensor:
        """images (B, C, H, W) -> scores (B, num_classes), before softmax or sigmoid."""
        tried = not self._is_own or torch.compiler.is_compiling()
        if not tried and (self.training, images.shape) not in self._taken:
            return self._try(images)
        return self.network(images)

    def _try(self, images: Tensor) -> Tensor:
        try:
            scores = self.network(images)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, ValueError, IndexError, AssertionError) as error:
            # What a wrong size raises. Anything else is a fault in the network: its traceback helps.
            name_layer(self.network, error)
            which = "images" if self._taken else "its first images"
            alone = self.training and len(images) == 1 and "more than 1 value" in str(error)
            cure = (
                "; with another batch_size no picture is alone in the last batch" if alone else ""
            )
            raise TrainingError(
                f"the network fails on {which}, {tuple(images.shape)} = (batch, channels, "
                f"height, width): {type(error).__name__}{_place(error)}: {error}{cure}"
            ) from error
        self._taken.add((self.training, images.shape))
        return scores

    def setup(self, stage: str) -> None:
        if self._run_seed is None:
            self._run_seed = torch.initial_seed()
        if stage == "fit" and getattr(self.criterion, "balanced", False):
            data = self.trainer.datamodule
            self.criterion.balance(data.class_counts(), data.class_names)
        # Lightning does it after a checkpoint was loaded, and would round weights of float64 on the way.
        self.trainer.precision_plugin.convert_module(self)

    def train(self, mode: bool = True) -> "ImageClassifier":
        super().train(mode)
        for part in getattr(self, "_frozen", ()):
            part.eval()
        return self

    # Training.

    def on_train_start(self) -> None:
        self._loaded_step = None

    def on_train_epoch_start(self) -> None:
        # What dropout draws in an epoch is a function of (seed, epoch, process): a resumed run
        # draws what the uninterrupted one would have drawn.
        # The last word keeps it apart from the seeds of the data's order.
        torch.manual_seed(mixed(self._run_seed, self.current_epoch, self.global_rank, 1))
        self._window.clear()
        self.trained_images = 0

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        loss, correct, examples = self._measure(batch)
        kept = loss.detach()
        if self.trainer.world_size > 1 and self.trainer.is_last_batch:
            loss = loss * self._share(examples)
        if kept.device.type == "cpu" and not math.isfinite(kept):
            # Here, before the step is taken, the weights are still those that led to it.
            self._stop_nonfinite(batch[0], self.global_step)
        self.trained_images += examples
        self._window.append((kept, correct, examples))
        # Read here: at the end of the epoch the scheduler may have moved on.
        groups = self.trainer.optimizers[0].param_groups
        planned = self._planned or [group["lr"] for group in groups]
        self._rates = [rate * self._warmth() for rate in planned]
        if len(self._window) >= self.trainer.log_every_n_steps:
            self._flush_window(batch[0], self.global_step + 1)
        return loss

    def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure=None) -> None:
        """Takes the step with the part of the rate that `warmup_steps` says, whatever the scheduler does."""
        groups, part = optimizer.param_groups, self._warmth()
        self._planned = [group["lr"] for group in groups]
        try:
            for group in groups:
                group["lr"] = group["lr"] * part
            super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        finally:
            for group, rate in zip(groups, self._planned, strict=True):
                group["lr"] = rate
            self._planned = []

    def _warmth(self) -> float:
        if self.global_step >= self.warmup_steps:
            return 1.0
        return (self.global_step + 1) / self.warmup_steps

    def on_train_epoch_end(self) -> None:
        if self._window:
            self._flush_window(None, self.global_step)
        loss, accuracy = self.train_tally.compute(self.trainer)
        self.train_tally.reset()
        # Not to the logger: the windows have been written there.
        self.log("train/loss", loss, logger=False, prog_bar=True)
        self.log("train/acc", accuracy, logger=False, prog_bar=True)

    def running_state(self) -> dict[str, Any]:
        """What is gathered between two lines in the log, and since the epoch began, as plain values."""
        return {
            "window": [[loss.cpu(), right.cpu(), count] for loss, right, count in self._window],
            "rates": self._rates,
            "tally": self.train_tally.sums(),
            "images": self.trained_images,
        }

    def load_running_state(self, state: dict[str, Any]) -> None:
        device = self.device
        self._window = [(x.to(device), n.to(device), count) for x, n, count in state["window"]]
        self._rates, self.trained_images = list(state["rates"]), state["images"]
        self.train_tally.add(state["tally"])

    def _flush_window(self, images: Tensor | None, step: int) -> None:
        """Writes the means over the window and the learning rate, and looks for a lost run.

        `step` counts the steps taken, the window's last one included. In a distributed run the
        line is the first process's share; the epoch's mean is over all.
        """
        losses = torch.stack([loss for loss, _, _ in self._window]).double().tolist()
        correct = torch.stack([right for _, right, _ in self._window]).sum().item()
        counts = [count for _, _, count in self._window]
        self._window.clear()
        for i, value in enumerate(losses):
            if not math.isfinite(value):
                self._stop_nonfinite(images, max(0, step - len(losses) + i))
        examples = sum(counts)
        if not examples:
            return  # the others had the epoch's last image
        mean = math.fsum(loss * n for loss, n in zip(losses, counts, strict=True)) / examples
        sums = [mean * examples, correct, examples]
        self.train_tally.add(torch.tensor(sums, dtype=torch.float64))
        line = {"train/loss": mean, "train/acc": correct / examples}
        for i, rate in enumerate(self._rates):
            line["lr" if len(self._rates) == 1 else f"lr/{i}"] = float(rate)
        record(self.trainer, line, step)

    def _stop_nonfinite(self, images: Tensor | None, step: int) -> None:
        culprit = "unknown; its batch is gone"
        if images is not None:
            culprit = first_nonfinite_layer(self.network, images)
        raise Diverged(
            f"the loss is no longer finite in epoch {self.current_epoch}, step {step}; first "
            f"output that is not finite: {culprit}. A lower learning rate is the usual cure"
        )

    # Validation, test, prediction.

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.tally.update(*self._measure(batch))

    def on_validation_epoch_end(self) -> None:
        self._log_figures("val")

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.tally.update(*self._measure(batch))

    def on_test_epoch_end(self) -> None:
        self._log_figures("test")

    def _log_figures(self, name: str) -> None:
        loss, accuracy = self.tally.compute(self.trainer)
        self.log(f"{name}/loss", self._told(loss), prog_bar=True)
        self.log(f"{name}/acc", accuracy, prog_bar=True)
        for figure, value in self.mistakes.compute(self.trainer).items():
            self.log(f"{name}/{figure}", value)
        self.tally.reset()
        self.mistakes.reset()
        # Lightning writes the line at the step of this name; its own is one short in a validation
        # within the training, and 0 in a test, whose weights are as old as their checkpoint.
        step = self.global_step if self._loaded_step is None else self._loaded_step
        self.log("step", float(step))

    def predict_step(self, batch: Any, batch_idx: int) -> Prediction:
        """Of images (B, C, H, W), alone or with labels: probabilities and the order of the classes."""
        images = batch[0] if isinstance(batch, (tuple, list)) else batch
        return Prediction.of(self(images), isinstance(self.criterion, QuadraticLoss))

    def _told(self, loss: float) -> float:
        """A mean loss, in the digits that do not depend on which images shared a batch with which.

        A product of float32 matrices rounds by its number of rows, in the seventh digit of a score.
        """
        narrow = all(p.dtype != torch.float64 for p in self.parameters())
        return float(f"{loss:.6g}") if narrow else loss

    def _measure(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, int]:
        """(mean loss (), number right (), number of examples) of a batch."""
        images, labels = batch
        scores = self.forward(images)
        if not isinstance(scores, Tensor):
            raise TrainingError(
                f"the network puts out a {type(scores).__name__} while it "
                f"{'trains' if self.training else 'is measured'}; needed is one tensor of scores"
            )
        if scores.shape != (len(labels), self.num_classes):
            raise TrainingError(
                f"the network turns images {tuple(images.shape)} into {tuple(scores.shape)}; "
                f"needed is ({len(labels)}, {self.num_classes}), one score a class"
            )
        if self.trainer.world_size > 1 and len(labels) == 1 and labels.flatten()[0] < 0:
            # This process has no image left, and one without a label to keep in step with the others.
            scores, labels = scores[:0], labels[:0]
        # Where two images were mixed the larger share is what it should be taken for.
        classes = labels.argmax(1) if labels.is_floating_point() else labels
        correct = (scores.detach().argmax(1) == classes).sum()
        if not self.training and len(labels):
            self.mistakes.update(scores, labels)
        if not self.training and scores.device.type != "mps":
            scores = scores.double()  # the figure is not rounded as the network is
        loss = self.criterion(scores, labels) if len(labels) else scores.sum()
        return loss, correct, len(labels)

    def _share(self, examples: int) -> float:
        """What this process's mean weighs in that over all processes, whose gradients are averaged."""
        counts = torch.tensor(float(examples), device=self.trainer.strategy.root_device)
        return (
            examples
            * self.trainer.world_size
            / self.trainer.strategy.reduce(counts, reduce_op="sum").item()
        )

    # Checkpoints.

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        checkpoint["run_seed"] = self._run_seed
        if getattr(self.criterion, "balanced", False):
            checkpoint["class_weights"] = self.criterion.class_weights

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        self._run_seed = checkpoint.get("run_seed", self._run_seed)
        self._loaded_step = checkpoint.get("global_step")
        if getattr(self.criterion, "balanced", False):
            if "class_weights" not in checkpoint:
                raise TrainingError("class_weights: the run of the checkpoint had no balanced ones")
            self.criterion.class_weights = checkpoint["class_weights"]
        difference = _difference(self.state_dict(), checkpoint.get("state_dict", {}))
        if difference:
            raise TrainingError(f"the checkpoint does not fit the model: {difference}")

    def configure_optimizers(self):
        """Plain gradient descent; the command line puts the optimiser that was asked for here."""
        return torch.optim.SGD(self.parameter_groups(), lr=0.1)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """For an optimiser: all parameters, or the head's apart, with `head_lr`."""
        if self.head_lr is None:
            return [{"params": [*self.parameters()]}]
        head = self._head()
        theirs = {id(p) for p in head}
        others = [p for p in self.parameters() if id(p) not in theirs]
        return [{"params": others}, {"params": head, "lr": self.head_lr}]

    def _head(self) -> list[Tensor]:
        return [*self.network.get_submodule(transfer.head_of(self.network)).parameters()]


def record(trainer: Trainer, line: dict[str, float], step: int) -> None:
    """Writes a line to the loggers; `self.log` would write an `epoch` beside each."""
    for logger in trainer.loggers:
        logger.log_metrics(line, step=step)
        logger.save()


def _mlp(
    num_classes: int,
    image_shape: tuple[int, int, int],
    hidden_units: list[int] | None,
    activation: str | None,
    dropout: float,
    weight_init: str,
) -> torch.nn.Module:
    if hidden_units is None:
        raise TrainingError("give hidden_units, such as [64] (or a network of your own)")
    if any(units < 1 for units in hidden_units):
        raise TrainingError(f"hidden_units is {list(hidden_units)}; every layer needs 1 at least")
    if not 0 <= dropout < 1:
        raise TrainingError(f"dropout is {dropout}; it must be in [0, 1)")
    sizes = [math.prod(image_shape), *hidden_units, num_classes]
    mlp = nn.MLP(sizes, activation=_activation(activation or DEFAULT_ACTIVATION), dropout=dropout)
    if weight_init not in ("torch", "normal", "normal_scaled"):
        raise TrainingError(f"no weight_init is called {weight_init!r}")
    for layer in mlp.modules():
        if weight_init != "torch" and isinstance(layer, torch.nn.Linear):
            scaled = weight_init == "normal_scaled"
            torch.nn.init.normal_(layer.weight, std=layer.in_features**-0.5 if scaled else 1.0)
            torch.nn.init.normal_(layer.bias, std=0.0 if scaled else 1.0)
    return nn.Sequential(nn.Flatten(), mlp)


def _activation(name: str) -> type[torch.nn.Module]:
    known = {cls.__name__: cls for cls in vars(nn.activations).values() if _serves(cls)}
    spelled = {known_name.lower(): cls for known_name, cls in known.items()}
    key = name.lower().replace("_", "")
    if key not in spelled:
        raise TrainingError(
            f"activation {name!r} cannot be used in a hidden layer; known: "
            f"{', '.join(sorted(known, key=str.lower))}"
        )
    return spelled[key]


def _serves(cls: Any) -> bool:
    """Whether the class makes, without arguments, a module that keeps the shape of (B, n)."""
    if not (isinstance(cls, type) and issubclass(cls, torch.nn.Module)):
        return False
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # softmax asks for a dim
            # Training would draw from the generator that the weights are drawn from.
            return cls().eval()(torch.zeros(2, 3)).shape == (2, 3)
    except (TypeError, ValueError, RuntimeError):
        return False


def _place(error: BaseException) -> str:
    """Where in the user's own network it happened: the last line that is not a library's."""
    ours = str(Path(manualnn.__file__).parent), str(Path(torch.__file__).parent)
    frames = [
        f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(ours)
    ]
    return f" in {frames[-1].filename}, line {frames[-1].lineno}" if frames else ""


def _difference(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> str:
    """What keeps `theirs` from being loaded into `ours`, in one line; "" if nothing does."""
    parts = []
    for name in ours.keys() & theirs.keys():
        here, there = tuple(ours[name].shape), tuple(theirs[name].shape)
        if here != there:
            parts.append(f"{name} is {there} there and {here} here")
    parts += [f"{name} is only in the checkpoint" for name in theirs.keys() - ours.keys()]
    parts += [f"{name} is only in the model" for name in ours.keys() - theirs.keys()]
    parts.sort()
    more = f"; and {len(parts) - 3} more" if len(parts) > 3 else ""
    return "; ".join(parts[:3]) + more
