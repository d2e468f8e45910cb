"""Trained: a classifier as its checkpoint holds it, with what it takes to show it a picture."""

from collections.abc import Iterable
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import Tensor

from manualnn.training.data import DataError, ImageData
from manualnn.training.data.reading import Reading
from manualnn.training.errors import TrainingError
from manualnn.training.model.classifier import ImageClassifier
from manualnn.training.model.criterion import Prediction
from manualnn.training.model.transfer import leave_out_defaults, unfilled, weights_of
from manualnn.training.run.checkpoints import configuration_of, read_checkpoint, well_formed
from manualnn.training.run.sameness import check_network
from manualnn.training.run.trust import only_known_classes, read_configuration


class Trained:
    """A trained classifier: its weights, the names of its classes, how it reads a picture.

    Made by `Trained.load`. The model is in evaluation mode and has the dtype of the weights in the
    checkpoint: one that was trained with `bf16-mixed` computes in float32.

        trained = Trained.load("logs/Digits/version_0/checkpoints/best.ckpt")
        probabilities = trained.predict(["one.png", "two.png"])  # (2, classes)
        trained.class_names[probabilities[0].argmax()]
    """

    def __init__(self, model: ImageClassifier, reading: Reading, checkpoint: Path, step: int):
        self.model, self.reading = model, reading
        self.checkpoint, self.step = checkpoint, step

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.reading.class_names

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights; what the model is given."""
        return next((p.dtype for p in self.model.network.parameters()), torch.float32)

    @classmethod
    def load(cls, checkpoint: str | Path, config: str | Path | None = None) -> "Trained":
        """Reads a checkpoint, as data: none of the code that a file may hold is run.

        Args:
            checkpoint: A file that a run has written.
            config: The run's configuration; by default the config.yaml that the run wrote. Only
                `--model.network` is read from it, which names the class to build: by default one of
                PyTorch's, torchvision's or manualnn's, since any other would run code that lay beside
                the checkpoint; in a file that is given here, any.

        Raises:
            TrainingError: the file is no checkpoint of a run, was written by a version that kept no
                normalisation in it, or does not fit the network in the configuration.
        """
        checkpoint = Path(checkpoint)
        content = read_checkpoint(checkpoint, weights_only=True)
        with well_formed(checkpoint):
            reading = _reading(content, checkpoint)
            model = _model(content, checkpoint, config)
            model.on_load_checkpoint(content)
            model.load_state_dict(content["state_dict"])
        return cls(model.eval().requires_grad_(False), reading, checkpoint, content["global_step"])

    def to(self, device: str | torch.device) -> "Trained":
        self.model.to(device)
        return self

    def predict(self, pictures: Iterable[str | Path], resize: bool = False) -> Tensor:
        """Probabilities (N, classes), float32, of picture files: read as the training read its own.

        Args:
            pictures: Files of the formats that the training reads; as one batch.
            resize: Bring pictures of another size to the network's, where the training knew no other.

        Raises:
            DataError: a picture cannot be read or has another size.
        """
        levels = [self.reading.levels(path, resize) for path in pictures]
        if not levels:
            return torch.empty(0, len(self.class_names))
        return self.probabilities(torch.stack(levels))

    def probabilities(self, levels: Tensor) -> Tensor:
        """levels (B, C, H, W) uint8, as the data module holds them -> (B, classes), on the CPU."""
        return self.judged(levels).probabilities

    @torch.inference_mode()
    def judged(self, levels: Tensor) -> Prediction:
        """As `probabilities`, with the classes in the order of their scores."""
        images = self.reading.scale(levels.to(self.model.device)).to(self.dtype)
        probabilities, order = self.model.predict_step(images, 0)
        return Prediction(probabilities.float().cpu(), order.cpu())


def _reading(content: dict, checkpoint: Path) -> Reading:
    state = content.get(ImageData.__qualname__) or {}
    if "reading" not in state:
        raise TrainingError(
            f"{checkpoint} says neither how its training scaled the images nor what its classes are "
            "called: an older version wrote it, or a run on other data than ImageData's. Train again, "
            "or let the run go on for an epoch: fit --ckpt_path"
        )
    try:
        return Reading.of_state(state["reading"])
    except DataError as error:
        raise TrainingError(f"{checkpoint} was written by another version: {error}") from error


def _model(content: dict, checkpoint: Path, config: str | Path | None) -> ImageClassifier:
    options = dict(content.get("hyper_parameters", {}))
    options.pop("_instantiator", None)  # Lightning's note of who made the model
    own = options.get("hidden_units") is None
    if (
        config is not None and not own
    ):  # it decides nothing, and whoever names it thinks that it does
        check_network(content, read_configuration(Path(config))["model"], config)
    # Its weights are the checkpoint's in the end; drawing the first ones must change nothing else.
    with torch.random.fork_rng(devices=[]):
        network = _network(content, checkpoint, config) if own else None
        try:
            model = ImageClassifier(**options, network=network)
        except TypeError as error:
            raise TrainingError(f"{checkpoint} was written by another version: {error}") from error
    kinds = [value.dtype for value in content["state_dict"].values() if value.is_floating_point()]
    return model.to(kinds[0]) if kinds else model


def _holder(network: torch.nn.Module) -> None:
    """Its signature is the one option that is read."""


def _network(content: dict, checkpoint: Path, config: str | Path | None) -> torch.nn.Module:
    """The network that the run's configuration names, with weights of its own."""
    path = configuration_of(checkpoint) if config is None else Path(config)
    if not path.exists():
        raise TrainingError(
            f"{checkpoint} was trained with a network of its own, and there is no {path} that says "
            "which: --config names the configuration that the run wrote"
        )
    from jsonargparse import ArgumentParser, get_loader

    chosen = read_configuration(path)["model"].get("network")
    if chosen is None:
        raise TrainingError(f"{path} is of a run without a network of its own, unlike {checkpoint}")
    parser = ArgumentParser(exit_on_error=False)
    # As `fit` reads it: a network of the user's may have no type hints.
    parser.add_function_arguments(_holder, "model", fail_untyped=False)
    with only_known_classes(path if config is None else None):
        parsed = parser.parse_object({"model": {"network": chosen}})
        leave_out_defaults(parsed.model.network)
        plain = get_loader("yaml")(parser.dump(parsed, skip_none=False))["model"]
        check_network(content, plain, path)
        with unfilled() if weights_of(parsed) else nullcontext():
            return parser.instantiate_classes(parsed).model.network
