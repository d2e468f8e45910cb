"""Findings in words: said of runs that were made to fail, each in its way, and of no healthy one."""

import math

import numpy as np
import pytest
import torch
from monitored import adam, found, run, sgd
from torch import nn

from manualnn.training import TrainingError
from manualnn.training.model.criterion import CrossEntropy
from manualnn.training.monitors import Monitor
from manualnn.training.monitors.findings import findings
from manualnn.training.monitors.history import PATIENCE, Epoch, History, Record, chance_loss
from manualnn.training.monitors.layers import LayerSignals
from manualnn.training.networks import CNN


def deep(layers, activation):
    return {"hidden_units": [32] * layers, "activation": activation}


def mixed_up():
    """A network whose scores say nothing about the image."""
    return {
        "network": nn.Sequential(
            nn.Flatten(), Blind(), nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, 10)
        )
    }


class Blind(nn.Module):
    def forward(self, x):
        return x * 0 + 1


def dead_on_arrival():
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    with torch.no_grad():
        network[1].bias[:40] = -50.0
    return {"network": network}


FAILING = {
    "vanishing gradients": {"model": deep(12, "sigmoid"), "optimizer": sgd(0.05), "layer": "01_Linear"},
    "exploding gradients": {
        "model": deep(8, "relu") | {"weight_init": "normal"}, "optimizer": sgd(1e-12, 0.0),
        "layer": "01_Linear",
    },
    "dead units": {"model": dead_on_arrival, "optimizer": sgd(0.01), "layer": "01_Linear"},
    "saturation": {
        "model": {"hidden_units": [64], "activation": "tanh", "weight_init": "normal"},
        "data": {"normalize": [[0.0], [0.02]]}, "optimizer": sgd(0.001), "layer": "01_Linear",
    },
    "learning rate too high": {"optimizer": sgd(2.0, 0.95), "model": deep(2, "relu")},
    "updates too large": {"optimizer": adam(0.3), "every": 1, "epochs": 1, "layer": "01_Linear"},
    "updates too small": {"optimizer": sgd(1e-7, 0.0), "layer": "01_Linear"},
    "loss at chance": {"model": mixed_up, "epochs": 4},
    "overfitting": {
        "model": deep(3, "relu"), "optimizer": adam(0.01), "epochs": 40, "every": 20,
        "data": {"val_fraction": 0.97, "batch_size": 32},
    },
}  # fmt: skip

HEALTHY = {
    "the shipped digits": {
        "model": {"hidden_units": [256, 128], "dropout": 0.2}, "optimizer": sgd(weight_decay=5e-4),
        "data": {"shift": 1}, "epochs": 12, "schedule": 12,
    },
    "convolutions": {
        "model": lambda: {"network": CNN(10, (1, 8, 8), (4, 8), 16)}, "optimizer": sgd(0.05),
        "epochs": 4,
    },
    "tanh, Adam": {"model": deep(3, "tanh"), "optimizer": adam(), "epochs": 8},
    "sigmoid": {"model": deep(1, "sigmoid"), "optimizer": sgd(0.5, 0.0), "epochs": 8},
    "quadratic loss": {
        "model": {"hidden_units": [30], "activation": "sigmoid", "loss": "quadratic"},
        "optimizer": sgd(3.0, 0.0), "data": {"batch_size": 10}, "epochs": 3, "every": 20,
    },
    "GELU, plain SGD": {"model": deep(4, "gelu"), "optimizer": sgd(0.1), "epochs": 8, "seed": 3},
    "long, with dropout": {
        "model": deep(2, "relu") | {"dropout": 0.2}, "optimizer": sgd(0.05), "epochs": 25, "every": 25,
        "seed": 1, "data": {"val_fraction": 0.3},
    },
}  # fmt: skip


def go(folder, case):
    case = dict(case)
    case.pop("layer", None)
    given = case.pop("model", {})
    epochs = case.pop("schedule", None)
    if epochs:
        case["schedule"] = lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, epochs)
    return run(folder, model=given() if callable(given) else given, **case)


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    for name in ("_draw_flow", "_draw_validation"):
        monkeypatch.setattr(Monitor, name, lambda *args, **options: None)


@pytest.mark.parametrize("kind", FAILING)
@pytest.mark.one_in(3)
def test_a_run_made_to_fail_is_told_so(kind, tmp_path, capsys):
    case = FAILING[kind]
    try:
        go(tmp_path, case)
    except TrainingError as error:
        assert "no longer finite" in str(error)
    texts = found(tmp_path)
    assert kind in texts, list(texts)
    printed = [x for x in capsys.readouterr().out.splitlines() if x.startswith(kind)]
    assert len(printed) == 1
    assert "step " in printed[0] and "What helps: " in printed[0]
    assert (
        (f"layer {case['layer']}" in printed[0])
        if "layer" in case
        else "layer" not in printed[0][:40]
    )


@pytest.mark.parametrize("name", HEALTHY)
@pytest.mark.one_in(3)
def test_a_healthy_run_hears_nothing(name, tmp_path, capsys):
    _, monitor, trainer = go(tmp_path, HEALTHY[name])
    assert len(monitor.history.records) >= 5
    assert trainer.callback_metrics["val/acc"] > 0.85
    assert found(tmp_path) == {}
    assert "What helps" not in capsys.readouterr().out


# The functions themselves, where a run would be long.


def told(history):
    return [finding.kind for finding in findings(history)]


def history(updates=(), rates=None, losses=(2.3,), epochs=(), dz=None, chance=2.3):
    """A history of two layers; dz: |dz| of (first, last) in each record."""
    given = History(labels=["01_a", "02_b"], chance=chance)
    for i, update in enumerate(updates):
        layers = [
            LayerSignals(dz_norm=norm, dz_spread=norm, update=update) for norm in dz or (0.1, 0.1)
        ]
        given.add_record(Record(i + 1, rates[i] if rates else 0.1, layers))
    given.add_losses(list(losses))
    given.epochs = [Epoch(i, 30 * i + 30, *pair) for i, pair in enumerate(epochs)]
    return given


def test_small_updates_are_right_where_the_rate_is_low_rises_or_all_is_learned():
    assert told(history([-7.0] * 6)) == ["updates too small"]
    assert told(history([-7.0] * 4)) == []
    assert told(history([-3.0] * 6 + [-7.0] * 6, rates=[0.1] * 6 + [1e-4] * 6)) == []
    assert told(history([-7.0] * 6, rates=[1e-6 * 2**i for i in range(6)])) == []
    assert told(history([-7.0] * 6, losses=[2.3] * 5 + [0.01] * 30)) == []


def test_bounds_on_the_error_between_first_and_last_layer():
    assert told(history([-3.0] * 3, dz=(1e-3, 1.0))) == []
    assert told(history([-3.0] * 3, dz=(1e-5, 1.0))) == ["vanishing gradients"]
    assert told(history([-3.0] * 2, dz=(1e-5, 1.0))) == []  # once or twice is no news
    assert told(history([-3.0] * 3, dz=(1e4, 1.0))) == ["exploding gradients"]
    assert told(history([-3.0] * 3, dz=(float("nan"), 1.0))) == ["exploding gradients"]
    assert told(history([-3.0] * 3, dz=(0.0, 1.0))) == ["dead units"]
    assert told(history([-3.0] * 3, dz=(0.0, 0.0))) == []


def test_a_spike_of_one_batch_is_no_high_learning_rate():
    assert told(history(losses=[2.3, 2.2, 40.0, 2.1, 2.0, 1.9])) == []
    assert told(history(losses=[2.3, 2.2, 9.0, 8.0, 9.0, 2.0])) == ["learning rate too high"]
    assert told(history(losses=[0.1, 0.5, 0.5, 0.5, 0.5, 0.5])) == []  # fine-tuning, below chance
    lost = history()
    lost.diverged = True
    assert told(lost) == ["learning rate too high"]


def test_overfitting_is_a_rise_that_lasts_while_training_goes_on_to_fall():
    falling = [(1.0, 1.0), (0.5, 0.6), (0.3, 0.4)]
    assert told(history(epochs=[*falling, (0.2, 0.5), (0.1, 0.55), (0.05, 0.6)])) == ["overfitting"]
    assert told(history(epochs=[*falling, (0.2, 0.5), (0.1, 0.55)])) == []
    assert told(history(epochs=[*falling, (0.2, 0.5), (0.1, 0.42), (0.05, 0.6)])) == []
    assert told(history(epochs=[*falling, (0.5, 0.5), (0.5, 0.55), (0.5, 0.6)])) == []
    assert told(history(epochs=[(0.5, None)] * 9)) == []


def test_epochs_that_no_finding_asks_for_are_forgotten():
    random = np.random.default_rng(0)
    heard = set()
    for _ in range(300):
        length = random.integers(1, 15)
        train = (
            np.sort(random.uniform(0.01, 2.5, length))[::-1]
            if random.random() < 0.8
            else [2.3] * length
        )
        val = [v if v > 0.3 else None for v in random.uniform(0.2, 1.2, length)]
        whole = history(epochs=list(zip(train, val, strict=True)))
        short = history()
        for epoch in whole.epochs:
            short.add_epoch(epoch)
        assert list(findings(short)) == list(findings(whole))
        assert len(short.epochs) <= PATIENCE + 2 and short.epochs[-1] == whole.epochs[-1]
        heard.update(told(short))
    assert heard == {"overfitting", "loss at chance"}


def test_chance_is_the_entropy_of_the_classes():
    assert chance_loss([10] * 10, "cross_entropy") == pytest.approx(math.log(10))
    assert chance_loss([9e6, 1e6], "cross_entropy") == pytest.approx(0.325083, abs=1e-6)
    assert chance_loss([1] * 10, "quadratic") == pytest.approx(0.45)
    assert chance_loss([5, 0], "cross_entropy") is None and chance_loss([], "quadratic") is None
    rare = history(epochs=[(0.325, 0.3)] * 4, chance=0.325, losses=[0.4])
    assert told(rare) == ["loss at chance"]
    assert told(history(epochs=[(0.25, 0.3)] * 4, chance=0.325, losses=[0.4])) == []


@pytest.mark.parametrize(
    ("weights", "smoothing"), [([8.0, 8.0], 0.0), ([3.0, 0.5], 0.0), ([1.0, 4.0], 0.2)]
)
def test_the_loss_of_guessing_is_the_least_of_equal_scores(weights, smoothing):
    loss, labels = CrossEntropy(weights, smoothing), torch.tensor([0] * 9 + [1])
    apart = torch.linspace(-10, 10, 20001, dtype=torch.float64)
    losses = [loss(torch.stack((x, -x)).expand(10, 2), labels).item() for x in apart[::20]]
    guessed = chance_loss([9e6, 1e6], "cross_entropy", weights, smoothing)
    assert guessed == pytest.approx(min(losses), rel=1e-4)


def test_a_history_survives_a_checkpoint():
    given = history([-3.0] * 30, losses=[2.3] * 200, epochs=[(1.0, 0.9)])
    copy = History()
    copy.load_state_dict(given.state_dict())
    assert copy == given
    assert (copy.records.maxlen, copy.last.maxlen) == (given.records.maxlen, given.last.maxlen)


def test_options_in_the_advice_are_code():
    (finding,) = findings(history([-3.0] * 3, dz=(1e4, 1.0)))
    assert "`--trainer.gradient_clip_val` 1" in finding.markdown()
    assert "(step 3, layer 01_a): " in str(finding)
