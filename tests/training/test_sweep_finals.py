"""`train.py sweep`: the configuration itself is a trial, and finals choose among the best."""

import csv
import statistics

import optuna
import pytest
import yaml
from command_line import message
from optuna.trial import TrialState
from sweep_helpers import FOLDER, SEARCH, states, study_in, without_training, written

from manualnn.training.experiments import trial as trials

FINALS = {"n_trials": 6, "finalists": 2, "seeds": 2}
FIRST = {
    "optimizer.lr": 0.1, "model.hidden_units.layers": 1, "model.hidden_units.units": 8,
    "model.activation": "relu",
}  # fmt: skip


@pytest.fixture
def no_training(monkeypatch):
    return without_training(monkeypatch)


def finals_in(folder):
    url = f"sqlite:///{folder}/{FOLDER}/study.db"
    return optuna.load_study(study_name="small-sweep-finals", storage=url)


# The first trial.


def test_the_first_trial_is_the_configuration_itself(run, tmp_path, no_training, capsys):
    assert run("sweep", "--config", written(tmp_path)) == 0
    assert "note:" not in capsys.readouterr().out
    params = [trial.params for trial in study_in(tmp_path).trials]
    assert params[0] == FIRST
    assert params.count(FIRST) == 1


def test_an_interrupted_first_trial_is_tried_again(run, tmp_path, no_training):
    no_training[0] = KeyboardInterrupt()
    assert run("sweep", "--config", written(tmp_path)) == 130
    assert run("sweep", "--config", written(tmp_path)) == 0
    study = study_in(tmp_path)
    assert states(study) == [TrialState.FAIL] + [TrialState.COMPLETE] * 3
    assert [trial.params == FIRST for trial in study.trials] == [True, True, False, False]


def test_a_configuration_out_of_the_search_is_no_trial(run, tmp_path, no_training, capsys):
    search = {**SEARCH, "optimizer.lr": {"low": 0.2, "high": 1.0}, "model.dropout": [0.0, 0.2]}
    assert run("sweep", "--config", written(tmp_path, search)) == 0
    assert (
        "note: the configuration itself is no trial: its model.dropout, optimizer.lr is not among "
        "the values searched"
    ) in capsys.readouterr().out
    assert all(trial.params["optimizer.lr"] > 0.2 for trial in study_in(tmp_path).trials)


# Finals.


@pytest.fixture
def lucky(no_training, monkeypatch):
    """A run's val/acc is what its learning rate is worth, and its luck: that of the seed 5."""
    seeds = []

    def figures(run, watch):
        args = dict(arg.lstrip("-").split("=", 1) for arg in run.args if "=" in arg)
        seed = int(args.get("seed_everything", 5))
        seeds.append((seed, int(args.get("data.seed", 0))))
        lr = float(args["optimizer.lr"])
        luck = lr if seed == 5 else 0.001 * seed
        return {"val/acc": 1 - abs(lr - 0.1) + 2 * luck, "val/loss": lr, "epoch": 1.0}

    monkeypatch.setattr(trials, "figures", figures)
    return seeds


def test_the_mean_over_other_seeds_and_splits_decides(run, tmp_path, lucky, capsys):
    assert run("sweep", "--config", written(tmp_path, sweep=FINALS)) == 0
    printed = capsys.readouterr().out
    assert lucky[:6] == [(5, 0)] * 6
    assert lucky[6:] == [(6, 1)] * 3 + [(7, 2)] * 3  # the configuration itself is a third finalist
    study, finals = study_in(tmp_path), finals_in(tmp_path)
    assert study.best_trial.number != 0
    text = (tmp_path / FOLDER / "best.yaml").read_text()  # of the one without luck
    assert text.startswith("# logs/small-sweep/trial_0000: val/acc 1.0130 ± 0.0014 (2 runs)\n")
    assert yaml.safe_load(text)["seed_everything"] == 5
    with (tmp_path / FOLDER / "trials.csv").open() as file:
        means = {int(row["trial"]): row["finals val/acc"] for row in csv.DictReader(file)}
    ranked = sorted(study.trials, key=lambda trial: -trial.value)
    finalists = {0, ranked[0].number, ranked[1].number}
    assert {number for number, mean in means.items() if mean} == finalists
    for number in finalists:
        values = [t.value for t in finals.trials if t.params["trial"] == number]
        assert len(values) == 2
        assert float(means[number]) == pytest.approx(statistics.fmean(values))
    assert "best            trial 0: val/acc 1.0130 ± 0.0014 (2 runs)" in printed


def test_what_may_be_chance_does_not_replace_the_configuration(
    run, tmp_path, no_training, monkeypatch, capsys
):
    """The larger learning rate is better on the average of the seeds 6 and 7, and worse with one."""
    gain = {5: 0.5, 6: 0.5, 7: -0.4}

    def figures(run, watch):
        args = dict(arg.lstrip("-").split("=", 1) for arg in run.args if "=" in arg)
        lr, seed = float(args["optimizer.lr"]), int(args.get("seed_everything", 5))
        return {"val/acc": 0.5 + gain[seed] * lr, "val/loss": lr, "epoch": 1.0}

    monkeypatch.setattr(trials, "figures", figures)
    path = written(tmp_path, sweep={**FINALS, "finalists": 1})
    assert run("sweep", "--config", path) == 0
    printed = capsys.readouterr().out
    best = study_in(tmp_path).best_trial
    more = best.params["optimizer.lr"] - 0.1  # differences of 0.5 and -0.4 times that
    assert (
        f"trial {best.number} is ahead of the configuration itself by {0.05 * more:.4f} in val/acc, of "
        f"which the standard error is {0.45 * more:.4f}: that may be chance, and the configuration stays"
    ) in printed
    assert "best            trial 0: " in printed
    gain[7] = 0.4
    assert run("sweep", "--config", path, "--sweep.study", "clear") == 0
    printed = capsys.readouterr().out
    assert "chance" not in printed
    assert f"best            trial {best.number}: " in printed


def test_interrupted_finals_are_gone_on_with(run, tmp_path, no_training, lucky, capsys):
    path = written(tmp_path, sweep=FINALS)
    no_training[6 + 4] = KeyboardInterrupt()
    assert run("sweep", "--config", path) == 130
    assert "6 of 6 trials are done; go on with: python train.py sweep" in capsys.readouterr().err
    assert run("sweep", "--config", path) == 0
    assert sorted(lucky[6:]) == [(6, 1)] * 3 + [(7, 2)] * 3
    finals = finals_in(tmp_path)
    assert states(finals).count(TrialState.COMPLETE) == 6
    del lucky[:]
    assert run("sweep", "--config", path) == 0
    assert lucky == []
    assert run("sweep", "--config", path, "--sweep.seeds", "3") == 0
    assert lucky == [(8, 3)] * 3


def test_a_finalist_that_loses_a_run_is_not_the_best(run, tmp_path, no_training, lucky, capsys):
    no_training[6 + 2] = RuntimeError("a fault")  # the third finalist, the configuration itself
    assert run("sweep", "--config", written(tmp_path, sweep=FINALS)) == 0
    best = yaml.safe_load((tmp_path / FOLDER / "best.yaml").read_text())
    assert best["optimizer"]["init_args"]["lr"] != 0.1
    assert "RuntimeError: a fault" in capsys.readouterr().out


@pytest.mark.parametrize("option", ["finalists -1", "seeds 0"])
def test_a_number_of_finals_that_has_no_sense(run, tmp_path, capsys, option):
    assert run("sweep", "--config", written(tmp_path), *f"--sweep.{option}".split()) == 2
    assert message(capsys).startswith(f"--sweep.{option}: needed is ")


# Checkpoints.


def test_checkpoints_are_kept_of_finalists_alone(run, tmp_path):
    options = {"n_trials": 4, "finalists": 2, "seeds": 1}
    assert run("sweep", "--config", written(tmp_path, sweep=options)) == 0
    ranked = sorted(study_in(tmp_path).trials, key=lambda trial: -trial.value)
    finalists = {0, ranked[0].number, ranked[1].number}
    assert len(finalists) < 4
    kept = {path.parent.parent.name for path in tmp_path.glob("logs/**/best.ckpt")}
    assert kept == {f"trial_{number:04d}" for number in finalists}
    runs = [path.parent.name for path in (tmp_path / FOLDER).glob("*/config.yaml")]
    assert len(runs) == 4 + len(finalists)  # what repeats a run is there of each
