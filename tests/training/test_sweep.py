"""`train.py sweep`: what is searched, that it can be repeated and gone on with, what it refuses."""

import contextlib
import csv
import multiprocessing
import os
import re
import shutil
import time

import optuna
import pytest
import sqlalchemy
import torch
import torchvision_files as files
import yaml
from command_line import message
from optuna.trial import TrialState
from sweep_helpers import (
    FOLDER,
    SEARCH,
    states,
    study_in,
    without_training,
    written,
)
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from manualnn.training import TrainingError
from manualnn.training.cli import command as cli
from manualnn.training.errors import Diverged
from manualnn.training.experiments import study as studies
from manualnn.training.experiments.sweep import command
from manualnn.training.experiments.sweep.space import parse_space, suggest


@pytest.fixture
def no_training(monkeypatch):
    return without_training(monkeypatch)


# The whole of it.


def test_fit_repeats_the_best_trial_from_its_configuration(run, tmp_path, capsys):
    assert run("sweep", "--config", written(tmp_path)) == 0
    printed = capsys.readouterr().out
    assert "3 trials: 3 complete" in printed
    study, folder = study_in(tmp_path), tmp_path / FOLDER
    for name in ("history.png", "importance.png"):
        assert (folder / name).read_bytes().startswith(b"\x89PNG")
    with (folder / "trials.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["optimizer.lr"]) for row in rows] == [
        trial.params["optimizer.lr"] for trial in study.trials
    ]
    assert len({row["optimizer.lr"] for row in rows}) == 3

    assert run("fit", "--config", folder / "best.yaml") == 0
    best = tmp_path / study.best_trial.user_attrs["folder"] / "checkpoints/best.ckpt"
    again = tmp_path / "logs/small/version_0/checkpoints/best.ckpt"
    there, here = (torch.load(path, weights_only=True) for path in (best, again))
    assert there["global_step"] == here["global_step"]
    assert there["state_dict"].keys() == here["state_dict"].keys()
    for name, value in there["state_dict"].items():
        assert torch.equal(value, here["state_dict"][name]), name
    score = re.search(r"best val/acc +(\d\.\d{4})", capsys.readouterr().out)[1]
    assert f"{study.best_value:.4f}" == score

    for trial in study.trials:
        events = EventAccumulator(str(tmp_path / trial.user_attrs["folder"])).Reload()
        data = events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
        told = HParamsPluginData.FromString(data).session_start_info.hparams
        assert told["optimizer.lr"].number_value == trial.params["optimizer.lr"]
        layers = trial.params["model.hidden_units.layers"]
        assert told["model.hidden_units.layers"].number_value == layers
        assert told["model.hidden_units"].string_value.count(",") == layers - 1
        assert events.Scalars("val/acc")


def test_two_workers_share_a_study(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = str(written(tmp_path, sweep={"n_trials": 4}))

    def work(number: int) -> None:
        with open(f"{number}.txt", "w") as out, contextlib.redirect_stdout(out):
            status = cli.main(["sweep", "--config", path])
        os._exit(status)

    # Forked, they need not import PyTorch again; the database they open themselves.
    workers = [multiprocessing.get_context("fork").Process(target=work, args=(i,)) for i in (0, 1)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(180)
    assert [worker.exitcode for worker in workers] == [0, 0]
    done = [t for t in study_in(tmp_path).trials if "surplus" not in t.user_attrs]
    assert [trial.state for trial in done] == [TrialState.COMPLETE] * 4
    assert len({trial.params["optimizer.lr"] for trial in done}) == 4
    outputs = [(tmp_path / f"{number}.txt").read_text() for number in (0, 1)]
    assert all("4 trials: 4 complete" in out for out in outputs)
    by_worker = [re.findall("^trial +([0-9]+)  val", out, re.M) for out in outputs]
    assert sorted(map(int, by_worker[0] + by_worker[1])) == sorted(t.number for t in done)
    assert all(by_worker), by_worker
    (kept,) = tmp_path.glob("logs/**/best.ckpt")
    best = max(done, key=lambda trial: (trial.value, -trial.number))
    assert kept == tmp_path / best.user_attrs["folder"] / "checkpoints/best.ckpt"


def test_a_bad_run_is_ended_early(run, tmp_path, capsys):
    # A threshold that no loss gets below: the first look ends each run.
    pruner = {"class_path": "optuna.pruners.ThresholdPruner", "init_args": {"upper": 0.001}}
    path = written(
        tmp_path, {"model.activation": ["relu"]}, {"n_trials": 1, "pruner": pruner},
        checkpoint={"monitor": "val/loss"}, trainer={"max_epochs": 4, "accelerator": "cpu"},
    )  # fmt: skip
    assert run("sweep", "--config", path) == 2
    assert "none of the 1 trials is complete; the last ended with: pruned" in message(capsys)
    study = study_in(tmp_path)
    assert states(study) == [TrialState.PRUNED]
    assert study.trials[0].user_attrs["figures"]["epoch"] == 1
    assert not list(tmp_path.glob("logs/**/*.ckpt"))


# Going on.


def test_an_interrupted_sweep_draws_what_it_would_have_drawn(run, tmp_path, no_training, capsys):
    path = written(tmp_path, sweep={"n_trials": 12})
    assert run("sweep", "--config", path, "--sweep.study", "whole") == 0
    no_training[12 + 10] = KeyboardInterrupt()
    capsys.readouterr()
    assert run("sweep", "--config", path) == 130
    said = capsys.readouterr().err
    assert "10 of 12 trials are done; go on with: python train.py sweep --config" in said
    assert "Traceback" not in said
    assert run("sweep", "--config", path) == 0
    whole, parts = study_in(tmp_path, "whole"), study_in(tmp_path)
    finished = [trial for trial in parts.trials if trial.state == TrialState.COMPLETE]
    assert [trial.state for trial in parts.trials].count(TrialState.FAIL) == 1
    assert [trial.params for trial in finished] == [trial.params for trial in whole.trials]
    assert [trial.value for trial in finished] == [trial.value for trial in whole.trials]


def test_n_trials_counts_what_is_there(run, tmp_path, no_training, capsys):
    path = written(tmp_path)
    assert run("sweep", "--config", path) == 0
    assert run("sweep", "--config", path) == 0
    assert len(study_in(tmp_path).trials) == 3
    capsys.readouterr()
    assert run("sweep", "--config", path, "--sweep.n_trials", "5") == 0
    assert "3 of 5 trials done" in capsys.readouterr().out
    assert len(study_in(tmp_path).trials) == 5


def test_a_dead_workers_trial_is_run_again(run, tmp_path, no_training, monkeypatch, capsys):
    monkeypatch.setattr(studies, "HEARTBEAT", 1)
    monkeypatch.setattr(studies, "GRACE", 1)
    monkeypatch.setattr(studies, "LOOK", 0.2)
    path = written(tmp_path)
    assert run("sweep", "--config", path, "--sweep.n_trials", "1") == 0
    # A worker that asks for a trial and is heard of no more.
    url = f"sqlite:///{tmp_path}/{FOLDER}/study.db"
    dead = studies.open_study(url, "small-sweep", "maximize", None, 5).ask()
    left = suggest(parse_space(SEARCH, lambda point: True), dead)
    assert run("sweep", "--config", path, "--sweep.n_trials", "2") == 0
    assert "waiting for other workers' trials: 1" in capsys.readouterr().out
    study = study_in(tmp_path)
    assert states(study) == [TrialState.COMPLETE, TrialState.FAIL, TrialState.COMPLETE]
    assert study.trials[2].params["optimizer.lr"] == left["optimizer.lr"]


def test_of_two_trials_begun_at_once_the_last_is_surplus(tmp_path):
    url = f"sqlite:///{tmp_path}/study.db"
    one, other = (studies.open_study(url, "s", "maximize", None, 0) for _ in range(2))
    first, second = one.ask(), other.ask()
    assert not studies.is_surplus(one, first.number, 1)
    assert studies.is_surplus(other, second.number, 1)
    second.set_user_attr("surplus", True)
    other.tell(second, state=TrialState.FAIL)
    one.tell(first, 0.5)
    assert [trial.number for trial in studies.standing(one).done] == [first.number]


def test_a_study_has_one_experiment(run, tmp_path, no_training, capsys):
    path = written(tmp_path)
    assert run("sweep", "--config", path) == 0
    capsys.readouterr()
    assert run("sweep", "--config", path, "--model.dropout", "0.2") == 2
    assert "begun with other settings: --model.dropout is 0.2 here and 0.1 there" in message(capsys)
    assert run("sweep", "--config", path, "--search.optimizer.lr", "{low: 0.1, high: 0.2}") == 2
    assert "search is another one" in message(capsys)
    assert run("sweep", "--config", path, "--data.num_workers", "0") == 0
    (tmp_path / FOLDER / "trial_0000").mkdir()
    (tmp_path / FOLDER / "study.db").unlink()
    assert run("sweep", "--config", path) == 2
    assert "holds trials of a study that is not in sqlite:///" in message(capsys)
    for storage in ("elsewhere.db", FOLDER + "/study.db"):  # what is refused leaves no new file
        assert run("sweep", "--config", path, "--sweep.storage", f"sqlite:///{storage}") == 2
        assert "holds trials of a study that is not in sqlite:///" in message(capsys)
        assert not (tmp_path / storage).exists()


def test_a_refused_worker_leaves_the_file_that_another_has_made(
    run, tmp_path, monkeypatch, no_training, capsys
):
    """Two that begin at once both find no file; the one that the database refuses takes nothing away."""
    path = written(tmp_path)
    file = tmp_path / FOLDER / "study.db"

    def refused(*given):
        file.write_bytes(b"the other worker's")
        raise sqlalchemy.exc.OperationalError("SELECT", {}, Exception("database is locked"))

    monkeypatch.setattr(command, "open_study", refused)
    assert run("sweep", "--config", path) == 2
    assert "database is locked" in message(capsys)
    assert file.read_bytes() == b"the other worker's"


def test_a_study_has_one_folder_of_pictures(run, tmp_path, no_training, capsys):
    files.pictures(tmp_path / "d", {"cat": 12, "dog": 12})
    data = {"dataset": "ImageFolder", "root": "d", "batch_size": 4}
    path = written(tmp_path, data=data, search={"optimizer.lr": [0.1, 0.2, 0.3]})
    assert run("sweep", "--config", path) == 0
    shutil.move(tmp_path / "d", tmp_path / "e")  # where they lie is another matter
    assert run("sweep", "--config", path, "--data.root", "e") == 0
    (tmp_path / "e/cat/004.png").rename(tmp_path / "e/dog/cat.png")
    capsys.readouterr()
    assert run("sweep", "--config", path, "--data.root", "e") == 2
    assert "other settings: the folder of pictures is another one. Go on" in message(capsys)


# Runs that end badly.


def test_runs_that_end_badly_are_recorded_and_the_sweep_goes_on(run, tmp_path, no_training, capsys):
    ends = [
        (
            Diverged("the loss is no longer finite"),
            TrialState.PRUNED,
            "lost: the loss is no longer",
        ),
        (torch.OutOfMemoryError("CUDA out of memory"), TrialState.PRUNED, "out of memory: CUDA"),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"),
            TrialState.PRUNED,
            "out of memory: DefaultCPUAllocator",
        ),
        (TrainingError("does not fit"), TrialState.FAIL, "failed: does not fit"),
        (KeyError("x"), TrialState.FAIL, "failed: KeyError: 'x'"),
    ]
    no_training.update({i: error for i, (error, _, _) in enumerate(ends, 1)})
    assert run("sweep", "--config", written(tmp_path, sweep={"n_trials": 7})) == 0
    printed = capsys.readouterr().out
    found = study_in(tmp_path).trials
    for trial, (error, state, why) in zip(found[1:6], ends, strict=True):
        assert trial.state == state
        assert trial.user_attrs["why"].startswith(why)
        assert ("traceback" in trial.user_attrs) == isinstance(error, KeyError)
        assert f"trial   {trial.number}  {why}" in printed
    assert found[0].state == found[6].state == TrialState.COMPLETE
    assert "7 trials: 2 complete, 1 lost, 2 out of memory, 2 failed" in printed


def test_a_lost_run_is_one_whose_loss_is_not_finite(run, tmp_path, capsys):
    path = written(tmp_path, {"optimizer.lr": [1e30, 0.1]}, {"n_trials": 1})
    assert run("sweep", "--config", path, "--search.optimizer.lr", "[1.0e+30]") == 2
    assert "the last ended with: lost: the loss is no longer finite in epoch 0" in message(capsys)
    assert states(study_in(tmp_path)) == [TrialState.PRUNED]


def test_where_every_run_fails_the_sweep_says_so_and_stops(run, tmp_path, no_training, capsys):
    no_training.update({i: ValueError(f"wrong {i}") for i in range(30)})
    assert run("sweep", "--config", written(tmp_path, sweep={"n_trials": 30})) == 2
    said = "the first 5 trials failed, the last with: failed: ValueError: wrong 4"
    assert said in message(capsys)
    assert len(study_in(tmp_path).trials) == 5


# What is refused, and said.


@pytest.mark.parametrize(
    ("search", "options", "words"),
    [
        (
            {"model.actvation": ["relu"]},
            "",
            "search: no option is called --model.actvation; did you",
        ),
        ({"model.activation": ["relu", "rely"]}, "", "search: activation 'rely' cannot be used"),
        (
            {"model.dropout": {"low": 0, "high": 1}},
            "",
            "search: dropout is 1.0; it must be in [0, 1)",
        ),
        (
            {"optimizer.momentum": {"low": -1, "high": 0}},
            "",
            "search: Invalid momentum value: -1.0",
        ),
        ({"data.batch_size": [64, 5000]}, "", "5000"),
        ({"data.batch_size": {"low": 16.5, "high": 64}}, "", "batch_size 16.5: needed is a whole"),
        (
            {"optimizer": ["SGD", "Adam"], "optimizer.momentum": [0.5, 0.9]},
            "",
            "search: Adam has no option --optimizer.momentum",
        ),
        (
            {"model.label_smoothing": [0.0, 0.1]},
            "--checkpoint.monitor val/loss",
            "model.label_smoothing changes what val/loss measures",
        ),
        (SEARCH, "--sweep.n_trials 0", "--sweep.n_trials 0"),
        (
            SEARCH,
            "--sweep.trials 3",
            "no option is called --sweep.trials; did you mean --sweep.n_tria",
        ),
        (SEARCH, "--sweep.pruner Best", "--sweep.pruner Best"),
        (
            SEARCH,
            "--modl.dropout 0.1",
            "no option is called --modl.dropout; did you mean --model.dro",
        ),
        (SEARCH, "--config gone.yaml", "the configuration gone.yaml cannot be read"),
        (
            SEARCH,
            "--sweep.storage my.db",
            "the database that --sweep.storage names: Could not parse",
        ),
        (
            SEARCH,
            "--sweep.storage sqlite:////proc/nope/x.db",
            "the database sqlite:////proc/nope/x.db: there is no such folder (/proc/nope)",
        ),
        (SEARCH, "--sweep.storage sqlite:///nodir/x.db", "there is no such folder (nodir)"),
        (SEARCH, "--sweep.study ../x", "--sweep.study ../x leads out of logs/"),
        (SEARCH, "--trainer.max_epochs 0", "--trainer.max_epochs is 0: nothing would be trained"),
        (SEARCH, "--search.optimizer.lr=!!int", "--search.optimizer.lr is no YAML"),
        (SEARCH, "--ckpt_path last", "no run in logs/small has left a checkpoint"),
        (SEARCH, "--trainer.fast_dev_run true", "leave --trainer.fast_dev_run out"),
        (SEARCH, "--trainer.logger false", "leave --trainer.logger as it is"),
        (SEARCH, "--data.val_fraction 0", "--data.val_fraction is 0"),
        (SEARCH, "--checkpoint.monitor train/acc", "not train/acc"),
        (SEARCH, "--trainer.devices 2", "on one device: --trainer.devices 1"),
    ],
)
@pytest.mark.one_in(3)
def test_a_mistake_is_one_line_before_the_first_trial(
    run, tmp_path, capsys, search, options, words
):
    assert run("sweep", "--config", written(tmp_path, search), *options.split()) == 2
    said = message(capsys)
    assert words in said
    assert len(said) < 300
    assert not list(tmp_path.glob("logs/**/trial_*"))


def test_numbers_are_read_as_fit_reads_them(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text("optimizer: {init_args: {lr: 1e-2}}\nsearch: {a: {low: 1e-3, high: 1}}\n")
    base, section, _ = command.read(["--config", str(path), "--search.b", "[1e-4]"])
    assert section == {"a": {"low": 0.001, "high": 1}, "b": [0.0001]}
    assert yaml.safe_load(base[0].removeprefix("--config=")) == {
        "optimizer": {"init_args": {"lr": 0.01}}
    }


def test_fit_says_whose_the_configuration_of_a_sweep_is(run, tmp_path, capsys):
    assert run("fit", "--config", written(tmp_path)) == 2
    assert "a section search; it is for train.py sweep --config" in message(capsys)


def test_the_password_of_a_database_is_not_shown():
    assert studies.shown_url("mysql://me:secret@host/sweeps") == "mysql://me:***@host/sweeps"


def test_help_lists_the_subcommands_and_the_options_of_a_sweep(run, capsys):
    for args, words in ((["--help"], "compare"), (["sweep", "--help"], "--sweep.n_trials")):
        with pytest.raises(SystemExit) as left:
            run(*args)
        assert left.value.code == 0
        assert words in capsys.readouterr().out


def test_a_worker_that_dies_while_it_draws_is_noticed(tmp_path):
    url = f"sqlite:///{tmp_path}/study.db"
    study = studies.open_study(url, "s", "maximize", None, 0)
    study.ask()
    time.sleep(2.1)
    late = optuna.storages.RDBStorage(url, heartbeat_interval=1, grace_period=1)
    again = optuna.load_study(study_name="s", storage=late)
    optuna.storages.fail_stale_trials(again)
    assert states(again) == [TrialState.FAIL]
