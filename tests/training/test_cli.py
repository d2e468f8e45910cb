"""The command line as a person uses it: in a folder of its own, in a process of its own."""

import os
import re
import signal
import time
from pathlib import Path

import pytest
import torch
import yaml
from command_line import ROOT, SMALL, launch
from forked import server
from stopped_runs import wait_for

from manualnn.training.cli import command as cli


def test_without_arguments_the_default_experiment_runs_and_prints_its_result(
    run, tmp_path, capsys, monkeypatch
):
    # The same configuration, shorter.
    config = yaml.safe_load(cli.DEFAULT_EXPERIMENT.read_text())
    config["trainer"] = {"max_epochs": 1, "accelerator": "cpu"}
    short = tmp_path / "short.yaml"
    short.write_text(yaml.safe_dump(config))
    monkeypatch.setattr(cli, "DEFAULT_EXPERIMENT", short)
    assert run() == 0
    printed = capsys.readouterr().out
    assert re.search(r"test/acc +0\.\d{4}", printed)
    folder = tmp_path / "logs/digits/version_0"
    assert (folder / "checkpoints/best.ckpt").is_file()
    assert list(folder.glob("events.out.tfevents.*"))
    resolved = yaml.safe_load((folder / "config.yaml").read_text())
    assert resolved["optimizer"]["init_args"]["momentum"] == 0.9


def test_options_reach_what_they_name(run, tmp_path):
    options = [
        "--optimizer", "AdamW", "--optimizer.lr", "0.01", "--optimizer.weight_decay", "0.3",
        "--lr_scheduler", "StepLR", "--lr_scheduler.step_size", "1",
        "--lr_scheduler_interval", "step", "--model.activation", "tanh",
        "--model.dropout", "0.25", "--trainer.max_steps", "2", "--experiment", "mine",
    ]  # fmt: skip
    assert run("fit", *SMALL, *options) == 0
    checkpoint = torch.load(
        tmp_path / "logs/mine/version_0/checkpoints/last.ckpt", weights_only=True
    )
    assert checkpoint["global_step"] == 2
    group = checkpoint["optimizer_states"][0]["param_groups"][0]
    assert group["weight_decay"] == 0.3
    assert group["betas"] == (0.9, 0.999)
    # Twice a tenth, because the scheduler moved on each step.
    assert group["lr"] == pytest.approx(0.0001)
    assert checkpoint["hyper_parameters"]["activation"] == "tanh"
    assert checkpoint["state_dict"]["network.1.0.weight"].shape == (8, 64)


def test_validate_test_and_predict_use_the_configuration_of_the_checkpoint(
    trained, tmp_path, capsys
):
    for subcommand in ("validate", "test"):
        assert trained(subcommand, "--ckpt_path", "best") == 0
        name = "val" if subcommand == "validate" else "test"
        assert f"{name}/acc" in capsys.readouterr().out
    assert trained("predict", "--ckpt_path", "last") == 0
    path = Path(capsys.readouterr().out.strip().rsplit(": ", 1)[1])
    lines = (tmp_path / path).read_text().splitlines()
    assert lines[0] == "image,class,probability"
    assert len(lines) == 1 + 360
    assert [path.name for path in (tmp_path / "logs/Digits").iterdir()] == ["version_0"]
    assert all(0.1 <= float(line.split(",")[2]) <= 1 for line in lines[1:])


def test_ckpt_path_last_goes_on_in_the_folder_of_the_run(run, tmp_path):
    assert run("fit", *SMALL, "--trainer.max_epochs", "1") == 0
    assert run("fit", "--ckpt_path", "last", "--trainer.max_epochs", "3") == 0
    assert run("fit", *SMALL, "--experiment", "whole", "--trainer.max_epochs", "3") == 0
    assert [path.name for path in (tmp_path / "logs/Digits").iterdir()] == ["version_0"]
    events = (tmp_path / "logs/Digits/version_0").glob("events.out.tfevents.*")
    raw = b"".join(path.read_bytes() for path in events)
    assert raw.count(b"_hparams_/session_start_info") == 1
    ends = [
        torch.load(tmp_path / f"logs/{name}/version_0/checkpoints/last.ckpt", weights_only=True)
        for name in ("Digits", "whole")
    ]
    assert ends[0]["global_step"] == ends[1]["global_step"] == 9
    for name, value in ends[0]["state_dict"].items():
        assert torch.equal(value, ends[1]["state_dict"][name]), name


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--config", "a.yaml", "fit"], "--config comes after the subcommand"),
        (["train"], "no subcommand is called 'train'"),
        (["fit", "--config", "nowhere.yaml"], "nowhere.yaml"),
        (["fit", *SMALL, "--no_such_option", "1"], "no_such_option"),
        (["fit", *SMALL, "--model.hidden_layers", "1"], "model.hidden_layers"),
        (["fit", "--model.hidden_units", "many"], "model.hidden_units"),
        (["fit"], "give hidden_units"),
        (["fit", *SMALL, "--optimizer.lr", "-1"], "Invalid learning rate: -1.0"),
        (["fit", *SMALL, "--data.dataset", "Mnist"], "Mnist"),
        (["fit", *SMALL, "--data.batch_size", "5000"], "5000"),
        (
            ["fit", *SMALL, "--data.dataset", "MNIST", "--data.root", "empty",
             "--data.download", "false"],
            "empty",
        ),
        (["test", *SMALL], "test needs a trained model"),
        (["test", *SMALL, "--ckpt_path", "gone.ckpt"], "there is no checkpoint gone.ckpt"),
        (["fit", *SMALL, "--ckpt_path", "last"], "no run in logs"),
        (["fit", *SMALL, "--trainer.accelerator", "abacus"], "abacus"),
        (["fit", *SMALL, "--optimizer.lr", "1e30"], "no longer finite in epoch"),
    ],
)  # fmt: skip
def test_a_mistake_ends_in_one_line_and_status_2(run, capsys, args, words):
    assert run(*args) == 2
    last = [line for line in capsys.readouterr().err.splitlines() if line.startswith("train.py: ")]
    assert len(last) == 1
    assert words in last[0]


def test_a_checkpoint_that_does_not_fit_is_one_line(trained, tmp_path, capsys):
    other = ["--model.hidden_units", "[9]"]
    assert trained("test", "--ckpt_path", "best", *other) == 2
    words = "--model.hidden_units is [9] here and [8] in the checkpoint"
    assert words in capsys.readouterr().err
    broken = tmp_path / "broken.ckpt"
    broken.write_bytes(b"not a checkpoint")
    assert trained("test", *SMALL, "--ckpt_path", broken) == 2
    assert "broken.ckpt" in capsys.readouterr().err


def test_a_mistake_in_a_process_of_its_own_shows_no_traceback(tmp_path):
    process = launch(["fit", "--config", "nowhere.yaml"], tmp_path)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 2
    assert len(err.splitlines()) == 1
    assert out == ""
    assert not list(tmp_path.iterdir())


def test_ctrl_c_keeps_the_checkpoint_and_says_so(tmp_path):
    args = ["fit", *SMALL, "--trainer.max_epochs", "-1", "--trainer.enable_progress_bar", "false"]
    run = server().start(tmp_path, args)
    last = tmp_path / "logs/Digits/version_0/checkpoints/last.ckpt"
    wait_for(last)
    time.sleep(0.3)
    os.kill(run.pid, signal.SIGINT)
    assert run.wait() == 130, run.err
    assert "Traceback" not in run.err
    assert "interrupted; kept: logs/Digits/version_0/checkpoints/last.ckpt" in run.err
    assert torch.load(last, weights_only=True)["global_step"] > 0


def test_two_processes_share_the_images_and_the_result(tmp_path):
    options = "--trainer.devices 2 --trainer.strategy ddp --trainer.max_epochs 1 --test_best true"
    process = launch(["fit", *SMALL, *options.split()], tmp_path)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert len(re.findall(r"test/acc +0\.\d{4}", out)) == 1
    # 1293 training images in batches of 512, a half in each process.
    last = tmp_path / "logs/Digits/version_0/checkpoints/last.ckpt"
    assert torch.load(last, weights_only=True)["global_step"] == 2


EXPERIMENTS = [path for path in (ROOT / "configs").glob("*.yaml") if path.stem != "sweep"]


@pytest.mark.parametrize("path", sorted(EXPERIMENTS), ids=lambda p: p.stem)
def test_every_configuration_is_understood(run, path, capsys):
    with pytest.raises(SystemExit) as left:
        run("fit", "--config", path, "--print_config")
    assert left.value.code == 0
    understood = yaml.safe_load(capsys.readouterr().out)
    assert understood["model"]["hidden_units"] or understood["model"]["network"]
    assert understood["experiment"] == path.stem
