"""The search space of a sweep: what it draws, which values are tried first, what has no sense."""

import optuna
import pytest

from manualnn.training import TrainingError
from manualnn.training.experiments.sweep.space import params_of, parse_space, star, suggest


def accepts(point) -> bool:
    """A parser for which units are whole and everything else is not."""
    return all(isinstance(v, int) or "batch" not in name for name, v in point.items())


def test_a_space_draws_what_it_says():
    axes = parse_space(
        {
            "data.batch_size": {"low": 16, "high": 64, "step": 16},
            "model.dropout": {"low": 0, "high": 1},
            "optimizer": {"SGD": {"lr": {"low": 0.01, "high": 1, "log": True}}, "Adam": None},
            "model.hidden_units": {
                "layers": [0, 2], "units": {"low": 1, "high": 9}, "per_layer": True,
            },
        },
        accepts,
    )  # fmt: skip
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    drawn = [suggest(axes, study.ask()) for _ in range(200)]
    assert {point["data.batch_size"] for point in drawn} == {16, 32, 48, 64}
    dropouts = [point["model.dropout"] for point in drawn]
    assert all(0 <= p <= 1 for p in dropouts)
    assert len(set(dropouts)) == 200
    assert {point["optimizer"] for point in drawn} == {"SGD", "Adam"}
    rates = [point["optimizer.lr"] for point in drawn if point["optimizer"] == "SGD"]
    assert all("optimizer.lr" not in point for point in drawn if point["optimizer"] == "Adam")
    assert 0.3 < sum(rate < 0.1 for rate in rates) / len(rates) < 0.7  # even in the logarithm
    widths = [point["model.hidden_units"] for point in drawn]
    assert {len(w) for w in widths} == {0, 2}
    assert any(len(set(w)) == 2 for w in widths)
    points = list(star(axes))
    assert {p["data.batch_size"] for p in points} == {16, 64}
    assert {p["optimizer"] for p in points} == {"SGD", "Adam"}
    assert {p.get("optimizer.lr") for p in points} == {0.01, 1.0, None}


def nested(point) -> dict:
    """{"optimizer.lr": 0.1} as a configuration holds it, a class's options under `init_args`."""
    config = {"optimizer": {"class_path": "torch.optim.SGD", "init_args": {}}, "model": {}}
    for name, value in point.items():
        part, _, key = name.partition(".")
        if name == "optimizer":
            config[part]["class_path"] = f"torch.optim.{value}"
        else:
            (config[part]["init_args"] if part == "optimizer" else config[part])[key] = value
    return config


@pytest.mark.parametrize("per_layer", [True, False])
def test_a_space_knows_the_parameters_of_what_it_draws(per_layer):
    axes = parse_space(
        {
            "optimizer": {"SGD": {"lr": {"low": 0.01, "high": 1, "log": True}}, "Adam": None},
            "model.dropout": {"low": 0.0, "high": 1.0, "step": 0.1},
            "model.activation": ["relu", "tanh"],
            "model.hidden_units": {
                "layers": [0, 1, 3], "units": {"low": 1, "high": 9}, "per_layer": per_layer,
            },
        },
        accepts,
    )  # fmt: skip
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(50):
        trial = study.ask()
        point = suggest(axes, trial)
        assert params_of(axes, nested(point)) == (trial.params, [])


@pytest.mark.parametrize(
    ("spec", "values"),
    [
        ({"low": 0.1, "high": 1}, [0.09, 1.01, None, float("nan"), "much", [0.5]]),
        ({"low": 16, "high": 64, "step": 16}, [24, 80, 0]),
        ([1, 2], [3, None, [1]]),
        ({"layers": [2], "units": [4, 8]}, [[4], [4, 8], [5, 5], None, 4]),
        ({"layers": [2], "units": [4, 8], "per_layer": True}, [[4], [4, 5]]),
    ],
)
def test_a_value_out_of_the_space_is_noticed(spec, values):
    axes = parse_space({"model.x": spec, "model.y": [0]}, accepts)
    for value in values:
        assert params_of(axes, {"model": {"x": value, "y": 0}}) == ({"model.y": 0}, ["model.x"])
    assert params_of(axes, {"model": {"y": 0}}) == ({"model.y": 0}, ["model.x"])
    branches = parse_space({"optimizer": {"SGD": None, "Adam": None}}, accepts)
    adagrad = {"optimizer": {"class_path": "torch.optim.Adagrad", "init_args": {}}}
    assert params_of(branches, adagrad) == ({}, ["optimizer"])


SGD = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.05, "momentum": 0.9}}


@pytest.mark.parametrize(
    ("name", "chosen", "choices", "want"),
    [
        ("optimizer", SGD, ["Adam", "SGD"], "SGD"),
        ("optimizer", SGD, ["torch.optim.Adam", "torch.optim.SGD"], "torch.optim.SGD"),
        ("optimizer", SGD, ["Adam", "torch.optim.sgd.SGD"], "torch.optim.sgd.SGD"),
        ("optimizer", SGD, [{"class_path": "SGD", "init_args": {"lr": 0.05}}], 0),
        ("optimizer", SGD, [{"class_path": "SGD", "init_args": {"lr": 0.1}}], None),
        ("optimizer", SGD, ["Adam", "ASGD"], None),
        ("optimizer", SGD, ["Adam", "mine.SGD"], None),
        ("optimizer", SGD, {"Adam": None, "torch.optim.SGD": None}, "torch.optim.SGD"),
        ("optimizer", SGD, {"Adam": None, "torch.optim.sgd.SGD": None}, "torch.optim.sgd.SGD"),
        ("optimizer", SGD, {"Adam": None, "mine.SGD": None}, None),
        ("lr_scheduler", {**SGD, "class_path": "a.StepLR"}, [None, "StepLR"], "StepLR"),
        ("lr_scheduler", None, [None, "StepLR"], "none"),
        ("model.network", {**SGD, "class_path": "a.b.CNN"}, ["CNN", "a.b.MLP"], "CNN"),
    ],
)
def test_a_class_is_the_choice_that_names_it(name, chosen, choices, want):
    axes = parse_space({name: choices}, accepts)
    if want == 0:
        want = axes[0].values.values[0]  # as its text
    found = ({}, [name]) if want is None else ({name: None if want == "none" else want}, [])
    outer, _, inner = name.rpartition(".")
    config = {outer: {inner: chosen}} if outer else {name: chosen}
    assert params_of(axes, config) == found


@pytest.mark.parametrize(
    ("search", "words"),
    [
        ({}, "there is nothing to search"),
        ({"a": {"low": 1, "high": 1}}, "a: low 1 is not below high 1"),
        ({"a": {"low": 0, "high": 1, "log": True}}, "a: low is 0; on a log scale it must be above"),
        ({"a": {"low": 1}}, "a has no high; a range needs low and high"),
        ({"a": {"low": 1, "high": "much"}}, "a.high is much: needed is a number"),
        ({"a": {"low": 1, "high": float("inf")}}, "a.high is inf: needed is a number"),
        ({"a": {"low": 1, "high": 2, "lgo": True}}, "known are a list of choices, {low, high, log"),
        ({"a": {"low": 1, "high": 2, "log": 1}}, "a.log is 1: true or false"),
        ({"a": {"low": 1, "high": 4, "step": 2}}, "a: steps of 2 from 1 do not meet 4"),
        ({"a": {"low": 1, "high": 4, "step": 1, "log": True}}, "a log scale or a step, not both"),
        ({"a": {"low": 1, "high": 4, "step": -1}}, "a: step -1 is not above 0"),
        ({"a": []}, "a is an empty list"),
        ({"a": [1, 2, 1]}, "a names a choice twice"),
        ({"a": 5}, "a is 5; known are a list of choices"),
        ({"a": {"layers": 2}}, "a has no units; needed are layers and units"),
        ({"a": {"layers": 2, "units": [8, 0]}}, "a.units 0: needed are whole numbers from 1"),
        ({"a": {"layers": {"low": 0.5, "high": 2}, "units": 8}}, "a.layers 0.5: needed are whole"),
        ({"seed_everything": [1, 2]}, "seed_everything decides what is measured"),
        ({"data.val_fraction": [0.1, 0.2]}, "data.val_fraction decides what is measured"),
    ],
)
def test_a_space_without_sense_is_one_line(search, words):
    with pytest.raises(TrainingError) as caught:
        parse_space(search, accepts)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
