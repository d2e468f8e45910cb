"""The classifier and its records: what it computes, logs, keeps and refuses."""

import math

import pytest
import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import manualnn
from manualnn.training import ImageClassifier, TrainingError
from manualnn.training.data import ImageData
from manualnn.training.model.criterion import QuadraticLoss
from manualnn.training.model.nonfinite import first_nonfinite_layer
from manualnn.training.run.callbacks import BestCheckpoint, EpochClock, RunRecord, layer_table


def digits(**options) -> ImageData:
    return ImageData(dataset="Digits", **{"batch_size": 256, **options})


def classifier(**options) -> ImageClassifier:
    given = {"hidden_units": [16], "dropout": 0.2, **options}
    if "network" in given:
        given.pop("hidden_units"), given.pop("dropout")
    return ImageClassifier(num_classes=10, image_shape=(1, 8, 8), **given)


def trainer(folder, **options) -> Trainer:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    logger = TensorBoardLogger(folder, name="", version=0, default_hp_metric=False)
    return Trainer(**{**quiet, "logger": logger, "max_epochs": 2, **options})


def fit(folder, epochs=2, seed=1, ckpt_path=None, callbacks=(), model=None, **options):
    seed_everything(seed, verbose=False)
    model = model or classifier()
    runner = trainer(folder, max_epochs=epochs, callbacks=[*callbacks, BestCheckpoint()], **options)
    runner.fit(model, datamodule=digits(), ckpt_path=ckpt_path)
    return model, runner


def assert_same_weights(one, other):
    for (name, a), b in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def scalars(folder) -> EventAccumulator:
    return EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0}).Reload()


class StopAfter(Callback):
    def __init__(self, epoch):
        self.epoch = epoch

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == self.epoch:
            raise RuntimeError("power cut")


# The network and the loss.


def test_every_layer_of_the_network_is_manual():
    layers = [m for m in classifier().modules() if type(m).__module__.startswith("torch.nn")]
    assert {type(m).__name__ for m in layers} <= {"Flatten", "Sequential"}


def test_hidden_units_give_the_layers_of_the_network():
    model = ImageClassifier(num_classes=5, image_shape=(3, 4, 2), hidden_units=[7, 6])
    shapes = [tuple(p.shape) for p in model.parameters() if p.ndim == 2]
    assert shapes == [(7, 24), (6, 7), (5, 6)]
    no_hidden = ImageClassifier(num_classes=5, image_shape=(3, 4, 2), hidden_units=[])
    assert [tuple(p.shape) for p in no_hidden.parameters()] == [(5, 24), (5,)]


def test_a_network_of_ones_own_is_converted():
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    weight = network[1].weight
    model = classifier(network=network)
    assert type(model.network[1]) is manualnn.nn.Linear
    assert model.network[1].weight is weight


def test_quadratic_loss_is_the_formula():
    torch.manual_seed(0)
    scores = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([0, 3, 1, 1, 2, 0])
    loss = QuadraticLoss()(scores, labels)
    outputs = 1 / (1 + (-scores.detach()).exp())
    error = outputs - torch.eye(4, dtype=torch.float64)[labels]
    torch.testing.assert_close(loss.detach(), (error**2).sum() / 12, rtol=0, atol=1e-14)
    loss.backward()
    by_hand = error * outputs * (1 - outputs) / 6
    torch.testing.assert_close(scores.grad, by_hand, rtol=0, atol=1e-14)


def test_normal_weights_have_deviation_one_and_scaled_ones_do_not():
    torch.manual_seed(0)
    options = {"num_classes": 10, "image_shape": (1, 28, 28), "hidden_units": [100]}
    plain = ImageClassifier(weight_init="normal", **options)
    scaled = ImageClassifier(weight_init="normal_scaled", **options)
    assert plain.network[1][0].weight.std().item() == pytest.approx(1, abs=0.02)
    assert plain.network[1][0].bias.std().item() == pytest.approx(1, abs=0.3)
    assert scaled.network[1][0].weight.std().item() == pytest.approx(1 / 28, abs=0.001)
    assert scaled.network[1][0].bias.abs().max().item() == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"hidden_units": None}, "give hidden_units"),
        ({"hidden_units": [8, 0]}, "[8, 0]"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"activation": "rellu"}, "rellu"),
        ({"label_smoothing": 0.1, "loss": "quadratic"}, "label_smoothing"),
        ({"label_smoothing": -0.1}, "label_smoothing is -0.1"),
        ({"network": torch.nn.Flatten(), "activation": "tanh"}, "no effect"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(options, words):
    with pytest.raises(TrainingError) as refused:
        classifier(**options)
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_network_with_other_scores_than_classes_is_named(tmp_path):
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 7))
    with pytest.raises(TrainingError, match=r"one score a class"):
        fit(tmp_path, model=classifier(network=network), num_sanity_val_steps=0)


# What is logged.


def test_logged_quantities_are_those_of_the_data(tmp_path):
    """Learning rate 0: the weights stay, so each mean can be computed again in one batch."""
    model = classifier(dropout=0.0)
    model.configure_optimizers = lambda: torch.optim.SGD(model.parameters(), lr=0.0)
    data = digits()
    runner = trainer(tmp_path, max_epochs=1, log_every_n_steps=2)
    runner.fit(model, datamodule=data)
    runner.test(model, datamodule=data, verbose=False)
    events = scalars(tmp_path / "version_0")
    for name, loader in (("val", data.val_dataloader()), ("test", data.test_dataloader())):
        batches = list(loader)
        images = data.scale(torch.cat([images for images, _ in batches]))
        labels = torch.cat([labels for _, labels in batches])
        with torch.no_grad():
            scores = model(images)
        loss = torch.nn.functional.cross_entropy(scores, labels).item()
        accuracy = (scores.argmax(1) == labels).double().mean().item()
        assert events.Scalars(f"{name}/loss")[-1].value == pytest.approx(loss, rel=1e-5)
        assert events.Scalars(f"{name}/acc")[-1].value == pytest.approx(accuracy, rel=1e-6)
    batches = list(data.train_dataloader())
    images = data.scale(torch.cat([images for images, _ in batches]))
    labels = torch.cat([labels for _, labels in batches])
    with torch.no_grad():
        loss = torch.nn.functional.cross_entropy(model(images), labels).item()
    assert runner.callback_metrics["test/acc"].item() == pytest.approx(accuracy, rel=1e-6)
    points = events.Scalars("train/loss")
    assert [point.step for point in points] == sorted({point.step for point in points})
    assert len(points) == math.ceil(len(batches) / 2)
    sizes = [len(x) for _, x in batches]
    shares = [sum(sizes[i : i + 2]) for i in range(0, len(sizes), 2)]
    mean = sum(p.value * n for p, n in zip(points, shares, strict=True)) / sum(shares)
    assert mean == pytest.approx(loss, rel=1e-4)


def test_records_of_a_run(tmp_path):
    record = RunRecord({"optimizer.lr": 0.1, "model.hidden_units": [16], "nothing": None})
    fit(tmp_path, callbacks=[EpochClock(), record])
    folder = tmp_path / "version_0"
    events = scalars(folder)
    tags = set(events.Tags()["scalars"])
    wanted = {"train/loss", "train/acc", "val/loss", "val/acc", "lr"}
    assert wanted | {"time/epoch", "time/images_per_second"} <= tags
    assert "hp_metric" not in tags
    assert events.Scalars("lr")[0].value == pytest.approx(0.1)
    assert all(event.value > 0 for event in events.Scalars("time/images_per_second"))
    assert "_hparams_/session_start_info" in events.PluginTagToContent("hparams")
    raw = b"".join(path.read_bytes() for path in folder.glob("events*"))
    for once in (b"_hparams_/session_start_info", b"_hparams_/session_end_info"):
        assert raw.count(once) == 1
    assert b"optimizer.lr" in raw
    assert b"nothing" not in raw
    assert "network/text_summary" in events.Tags()["tensors"]
    assert (folder / "checkpoints/best.ckpt").is_file()
    assert (folder / "checkpoints/last.ckpt").is_file()


def test_layer_table_counts_the_weights():
    table = layer_table(classifier().network)
    assert "| 1,040 |" in table
    assert table.endswith("| all | | 1,210 |")


# Repeating and going on.


def test_a_seed_gives_the_same_weights_and_another_seed_others(tmp_path):
    one, _ = fit(tmp_path / "a", seed=3)
    two, _ = fit(tmp_path / "b", seed=3)
    assert_same_weights(one, two)
    three, _ = fit(tmp_path / "c", seed=4)
    assert not torch.equal(one.network[1][0].weight, three.network[1][0].weight)


def test_a_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(tmp_path):
    whole, _ = fit(tmp_path / "whole", epochs=3)
    with pytest.raises(RuntimeError, match="power cut"):
        fit(tmp_path / "cut", epochs=3, callbacks=[StopAfter(1)])
    last = tmp_path / "cut/version_0/checkpoints/last.ckpt"
    # Another seed: order and dropout must come from the checkpoint.
    resumed, runner = fit(tmp_path / "resumed", epochs=3, seed=99, ckpt_path=str(last))
    assert runner.global_step == 3 * 6
    assert_same_weights(whole, resumed)


def test_max_steps_inside_an_epoch_leaves_a_checkpoint_of_the_last_step(tmp_path):
    model, runner = fit(tmp_path, epochs=-1, max_steps=4)
    path = runner.checkpoint_callback.last_model_path
    checkpoint = torch.load(path, weights_only=True)
    assert checkpoint["global_step"] == 4
    assert runner.checkpoint_callback.best_model_path
    for name, value in model.state_dict().items():
        assert torch.equal(checkpoint["state_dict"][name], value), name


def test_without_validation_the_last_epoch_is_kept(tmp_path):
    runner = trainer(tmp_path, callbacks=[BestCheckpoint()])
    runner.fit(classifier(), datamodule=digits(val_fraction=0.0))
    path = runner.checkpoint_callback.best_model_path
    assert path.endswith("best.ckpt")
    checkpoint = torch.load(path, weights_only=True)
    assert checkpoint["global_step"] == runner.global_step > 0


def test_a_checkpoint_of_another_network_is_refused_by_name(tmp_path):
    _, runner = fit(tmp_path, epochs=1)
    path = runner.checkpoint_callback.best_model_path
    with pytest.raises(TrainingError) as refused:
        trainer(tmp_path).test(classifier(hidden_units=[17]), datamodule=digits(), ckpt_path=path)
    message = str(refused.value)
    assert "network.1.0.weight is (16, 64) there and (17, 64) here" in message
    assert "\n" not in message


# Numbers that are not finite.


class Poison(Callback):
    """Ruins one weight before a given step."""

    def __init__(self, step, layer):
        self.step, self.layer = step, layer

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == self.step:
            pl_module.get_submodule(self.layer).weight.data[0, 0] = math.nan


@pytest.mark.parametrize("layer", ["network.1.0", "network.1.3"])
def test_a_loss_that_is_not_finite_stops_and_names_epoch_step_and_layer(tmp_path, layer):
    with pytest.raises(TrainingError) as stopped:
        fit(tmp_path, callbacks=[Poison(8, layer)])
    message = str(stopped.value)
    assert "epoch 1, step 8;" in message
    assert f"not finite: {layer.removeprefix('network.')} (Linear" in message


def test_an_image_that_is_not_finite_is_named_as_such():
    model = classifier()
    images = torch.zeros(2, 1, 8, 8)
    assert "the loss itself" in first_nonfinite_layer(model.network, images)
    images[0, 0, 0, 0] = math.inf
    assert "images themselves" in first_nonfinite_layer(model.network, images)


# Precision and devices.


@pytest.mark.parametrize("precision", ["bf16-mixed", "64-true"])
def test_precisions_train(tmp_path, precision):
    model, runner = fit(tmp_path, epochs=3, precision=precision)
    expected = torch.float64 if precision == "64-true" else torch.float32
    assert {p.dtype for p in model.parameters()} == {expected}
    assert runner.callback_metrics["val/acc"] > 0.3


def test_fresh_weights_learn_the_digits(tmp_path):
    model = classifier(hidden_units=[64], dropout=0.0)
    model.configure_optimizers = lambda: torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    _, runner = fit(tmp_path, epochs=12, model=model)
    assert runner.callback_metrics["val/acc"] > 0.9
    assert runner.callback_metrics["train/acc"] > 0.9
