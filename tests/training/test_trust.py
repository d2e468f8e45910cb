"""What lies in a folder decides neither which code runs nor which run goes on."""

import itertools
import os
import shutil

import pytest
import torch
import yaml
from command_line import SMALL, message
from test_checkpoint_code import Bomb

from manualnn.training.deploy import Trained
from manualnn.training.errors import TrainingError
from manualnn.training.run.trust import (
    LARGEST,
    SEAL,
    has_own_seal,
    only_known_classes,
    read_configuration,
    sealed,
)

RUN = "logs/Digits/version_0"
LAST = f"{RUN}/checkpoints/last.ckpt"
ONE_EPOCH = [*SMALL, "--trainer.max_epochs", "1", "--monitor.every", "off"]
NUMBERS = itertools.count()  # no module is imported under a name that another test has used
OWN = """
from pathlib import Path

import torch

Path("imported").touch()


class Net(torch.nn.Sequential):
    def __init__(self, num_classes: int = 10):
        super().__init__(torch.nn.Flatten(), torch.nn.Linear(64, num_classes))
"""


@pytest.fixture
def trained(run):
    assert run("fit", *ONE_EPOCH) == 0
    return run


def edit(path, change) -> None:
    content = yaml.safe_load(path.read_text())
    change(content)
    path.write_text(yaml.safe_dump(content))


# Code.


def test_a_configuration_cannot_ask_for_code_to_be_loaded(trained, tmp_path, capsys):
    content = torch.load(tmp_path / LAST, weights_only=True)
    content["hyper_parameters"]["network"] = Bomb(tmp_path / "exploded")
    torch.save(content, tmp_path / LAST)
    edit(tmp_path / RUN / "config.yaml", lambda c: c.update(weights_only=False))
    for subcommand in ("fit", "validate", "test", "predict"):
        for named in ([], ["--config", f"{RUN}/config.yaml"]):
            capsys.readouterr()
            assert trained(subcommand, "--ckpt_path", LAST, *named) == 2
            assert message(capsys).startswith("weights_only: false in a configuration is not")
    assert not (tmp_path / "exploded").exists()
    # The command can; the run writes no such wish down.
    assert trained("test", "--ckpt_path", LAST, "--weights_only", "false") == 0
    assert (tmp_path / "exploded").exists()


def test_what_was_believed_once_is_no_setting(run, tmp_path):
    assert run("fit", *ONE_EPOCH, "--weights_only", "false") == 0
    assert yaml.safe_load((tmp_path / RUN / "config.yaml").read_text())["weights_only"] is None
    assert run("test", "--ckpt_path", "last") == 0


@pytest.fixture
def own(run, tmp_path, monkeypatch):
    """A run of a network of one's own, and the name of that; its module has not been imported."""
    monkeypatch.syspath_prepend(tmp_path)
    first, name = f"first_{next(NUMBERS)}", f"own_{next(NUMBERS)}"
    for module in (first, name):
        (tmp_path / f"{module}.py").write_text(OWN)
    options = [x for x in ONE_EPOCH if x not in ("--model.hidden_units", "[8]")]
    network = ["--model.network", f"{first}.Net", "--model.convert", "off"]
    assert run("fit", *options, *network) == 0
    content = torch.load(tmp_path / LAST, weights_only=True)
    content["settings"]["model"]["network"]["class_path"] = f"{name}.Net"
    torch.save(content, tmp_path / LAST)
    config = tmp_path / RUN / "config.yaml"
    config.write_text(config.read_text().replace(first, name))
    next(tmp_path.rglob("imported")).unlink()  # parsing a file goes into its folder
    return run, f"{name}.Net"


def test_a_class_that_nobody_named_is_not_imported(own, tmp_path, capsys):
    run, name = own
    config = f"{RUN}/config.yaml"
    for command in (["test"], ["fit", "--trainer.max_epochs", "2"], ["validate"]):
        capsys.readouterr()
        assert run(command[0], "--ckpt_path", "last", *command[1:]) == 2
        said = message(capsys)
        assert said.startswith(f"{config} names {name}, which is not of PyTorch")
        assert said.endswith(f"--config {config}")
    with pytest.raises(TrainingError, match=f"names {name}"):
        Trained.load(LAST)
    assert not [*tmp_path.rglob("imported")]


@pytest.mark.parametrize("how", ["--config", "--model.network", "load"])
def test_what_the_command_names_is_used(own, tmp_path, how):
    run, name = own
    config = f"{RUN}/config.yaml"
    if how == "load":
        Trained.load(LAST, config)
    else:
        named = config if how == "--config" else name
        assert run("test", "--ckpt_path", LAST, how, named) == 0
    assert [*tmp_path.rglob("imported")]


@pytest.fixture
def of_my_own(run, tmp_path, monkeypatch):
    """A run of a network of one's own, as the command has left it."""
    monkeypatch.syspath_prepend(tmp_path)
    name = f"own_{next(NUMBERS)}"
    (tmp_path / f"{name}.py").write_text(OWN)
    options = [x for x in ONE_EPOCH if x not in ("--model.hidden_units", "[8]")]
    assert run("fit", *options, "--model.network", f"{name}.Net", "--model.convert", "off") == 0
    return run


@pytest.mark.parametrize("asked", ["last", LAST])
def test_what_ones_own_command_has_written_is_gone_on_with(of_my_own, asked):
    assert of_my_own("fit", "--ckpt_path", asked, "--trainer.max_epochs", "2") == 0
    assert of_my_own("test", "--ckpt_path", asked) == 0
    assert of_my_own("test", "--ckpt_path", asked) == 0


def changed(folder, monkeypatch):
    config = folder / RUN / "config.yaml"
    config.write_text(config.read_text().replace("seed_everything: 0", "seed_everything:  0"))


def moved(folder, monkeypatch):
    (folder / "logs").rename(folder / "elsewhere")
    (folder / "logs/Digits").mkdir(parents=True)
    shutil.move(folder / "elsewhere/Digits/version_0", folder / "logs/Digits/version_1")


def of_another_person(folder, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(folder / "home"))


def without_a_home(folder, monkeypatch):
    (folder / "file").touch()
    monkeypatch.setenv("XDG_STATE_HOME", str(folder / "file"))


@pytest.mark.parametrize("what", [changed, moved, of_another_person, without_a_home])
def test_a_seal_holds_for_one_file_at_one_place_of_one_person(
    of_my_own, tmp_path, capsys, monkeypatch, what
):
    what(tmp_path, monkeypatch)
    capsys.readouterr()
    assert of_my_own("test", "--ckpt_path", "last") == 2
    assert "which is not of PyTorch" in message(capsys)


def test_a_folder_that_is_called_like_a_class_names_none(own, tmp_path, capsys):
    run, name = own
    for folder in (name, f"{name}-best"):
        shutil.copytree(tmp_path / RUN, tmp_path / "theirs" / folder)
        capsys.readouterr()
        assert run("test", "--ckpt_path", f"theirs/{folder}/checkpoints/last.ckpt") == 2
        assert f"names {name}, which is not of PyTorch" in message(capsys)
    options = ["--experiment", name], ["--data.root", name], ["--trainer.logger.save_dir", name]
    for option in options:
        assert run("test", "--ckpt_path", LAST, *option) == 2
    assert not [*tmp_path.rglob("imported")]


@pytest.mark.parametrize(("mode", "folder"), [(0o644, 0o700), (0o660, 0o700), (0o600, 0o777)])
def test_a_secret_that_others_could_know_is_none(tmp_path, monkeypatch, mode, folder):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert SEAL in sealed("text", tmp_path / "config.yaml")
    key = tmp_path / "manualnn/seal.key"
    assert key.stat().st_mode & 0o777 == 0o600
    key.chmod(mode)
    key.parent.chmod(folder)
    assert sealed("text", tmp_path / "config.yaml") == "text"


def test_a_secret_is_never_of_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", "state")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    sealed("text", tmp_path / "config.yaml")
    assert not (tmp_path / "state").exists() and (tmp_path / "home/.local/state/manualnn").exists()


@pytest.mark.parametrize("seal", ["é", "", "0" * 64, "\x00"])
def test_a_seal_of_another_form_is_none(tmp_path, seal):
    path = tmp_path / "config.yaml"
    path.write_text(f"text\n{SEAL}{seal}\n")
    assert not has_own_seal(path)
    path.write_text(sealed("text\n", path))
    assert has_own_seal(path)
    path.write_text(sealed("text\n", path).replace("\n", "\r\n"))
    assert not has_own_seal(path)


REACHES = [
    {"class_path": "os.system", "init_args": {"command": "touch ran"}},
    # By a name that another module gives it.
    {"class_path": "lightning.pytorch.callbacks.checkpoint.os.system"},
    {"class_path": "torch.hub.load", "init_args": {"repo_or_dir": "a/b", "model": "c"}},
    {"class_path": "jsonargparse.set_parsing_settings"},
    {"class_path": "torch.nn.Sequential", "init_args": {"args": {"class_path": "os.system"}}},
    "stranger_net.Net",
]


@pytest.mark.parametrize("network", REACHES, ids=str)
def test_no_name_leads_out_of_the_known_classes(trained, tmp_path, capsys, network, monkeypatch):
    (tmp_path / "stranger_net.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)

    def change(config):
        config["model"].update(network=network, hidden_units=None)

    edit(tmp_path / RUN / "config.yaml", change)
    capsys.readouterr()
    assert trained("test", "--ckpt_path", "last") == 2
    assert message(capsys)
    assert not [*tmp_path.rglob("imported"), *tmp_path.rglob("ran")]


def test_a_callback_of_lightnings_with_a_function_of_others(trained, tmp_path, capsys):
    hooked = {
        "class_path": "lightning.pytorch.callbacks.LambdaCallback",
        "init_args": {"on_test_start": "stranger_net.Net"},
    }
    (tmp_path / "stranger_net.py").write_text(OWN)
    edit(tmp_path / RUN / "config.yaml", lambda c: c["trainer"].update(callbacks=[hooked]))
    assert trained("test", "--ckpt_path", "last") == 2
    assert not [*tmp_path.rglob("imported")]


def test_the_limit_is_over_when_the_command_is(tmp_path):
    from jsonargparse._common import parsing_settings

    before = dict(parsing_settings)
    with pytest.raises(ZeroDivisionError), only_known_classes(tmp_path / "c.yaml"):
        assert parsing_settings["import_path_verdicts"]["*"] is False
        raise ZeroDivisionError
    assert parsing_settings == before


def test_an_error_that_is_its_own_cause(tmp_path):
    error = ValueError("as refused_values raises it")
    with pytest.raises(ValueError, match="as refused"), only_known_classes(tmp_path / "c.yaml"):
        raise error from error


def test_a_configuration_that_was_picked_up_is_named(trained, capsys):
    capsys.readouterr()
    assert trained("test", "--ckpt_path", "last") == 0
    assert capsys.readouterr().out.splitlines()[1] == f"configuration: {RUN}/config.yaml"
    assert trained("test", "--ckpt_path", "last", "--config", f"{RUN}/config.yaml") == 0
    assert "configuration:" not in capsys.readouterr().out


# Settings.


def test_an_edited_configuration_is_refused(trained, tmp_path, capsys):
    def change(config):
        config["optimizer"]["init_args"]["lr"] = 0.001
        config["data"]["batch_size"] = 64

    edit(tmp_path / RUN / "config.yaml", change)
    for command in (["fit", "--trainer.max_epochs", "2"], ["test"]):
        capsys.readouterr()
        assert trained(command[0], "--ckpt_path", "last", *command[1:]) == 2
        said = message(capsys)
        assert "--data.batch_size is 64 here and 512 in the run" in said
        assert "--optimizer.lr is 0.001 here and 0.05 in the run" in said
    # Named, it tests as it says; a run goes on with its own settings alone.
    named = ["--ckpt_path", LAST, "--config", f"{RUN}/config.yaml"]
    assert trained("test", *named) == 0
    assert trained("fit", *named, "--trainer.max_epochs", "2") == 2


def test_an_edited_option_that_may_change_is_said(trained, tmp_path, capsys):
    edit(tmp_path / RUN / "config.yaml", lambda c: c["trainer"].update(max_epochs=2))
    capsys.readouterr()
    assert trained("fit", "--ckpt_path", "last") == 0
    assert "edited: --trainer.max_epochs is 2 here and 1 in the run" in capsys.readouterr().out


BROKEN = {
    "no YAML": "a: [",
    "no mapping": "- 1",
    "a part less": "model: {}\ndata: {}\n",
    "a part of another kind": "model: 3\ndata: {}\ntrainer: {}\n",
    "an alias of an alias": "a: &a [1,1,1,1,1,1,1,1,1,1]\n"
    + "".join(f"{c}: &{c} [{', '.join([f'*{b}'] * 10)}]\n" for b, c in zip("abcdefg", "bcdefgh", strict=True)),
    "deep": "[" * 5000,
    "large": "# " + "x" * LARGEST,
    "a date that is none": "model: 2001-99-99",
    "a number as a name": "1: 2",
}  # fmt: skip


@pytest.mark.parametrize("text", BROKEN.values(), ids=BROKEN)
def test_a_broken_configuration_is_refused(tmp_path, text):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(TrainingError, match="is not the configuration of a run") as refused:
        read_configuration(path)
    assert "\n" not in str(refused.value)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(TrainingError, match="is not the configuration of a run"):
        read_configuration(path)


def test_a_configuration_that_is_no_file_is_not_waited_for(trained, tmp_path, capsys):
    path = tmp_path / RUN / "config.yaml"
    for replace in (os.mkfifo, lambda at: at.symlink_to("/dev/zero")):
        path.unlink()
        replace(path)
        assert trained("test", "--ckpt_path", "last") == 2
        assert message(capsys).endswith("is not the configuration of a run: it is no file")


# Whose checkpoint.

SLURM = {
    "SLURM_NTASKS": "1", "SLURM_JOB_ID": "1", "SLURM_JOB_NAME": "train", "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_NODELIST": "localhost",
}  # fmt: skip


def test_what_slurm_left_of_another_run_is_not_gone_on_from(trained, tmp_path, monkeypatch):
    shutil.copy(tmp_path / LAST, tmp_path / "hpc_ckpt_1.ckpt")
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)
    assert trained("fit", *ONE_EPOCH, "--experiment", "other", "--optimizer.lr", "0.5") == 0
    content = torch.load(tmp_path / LAST.replace("Digits", "other"), weights_only=True)
    assert content["global_step"] == 3
    assert content["optimizer_states"][0]["param_groups"][0]["lr"] == 0.5
    # A second epoch would have been its first; and a comparison's runs would be one.
    vary = ["--vary", "optimizer.lr", "[0.0001, 0.5]", "--seeds", "1"]
    assert trained("compare", *ONE_EPOCH, "--experiment", "small", *vary) == 0
    rates = set()
    for path in tmp_path.glob("logs/small-compare/version_0/*/seed_0/checkpoints/last.ckpt"):
        content = torch.load(path, weights_only=True)
        rates.add(content["optimizer_states"][0]["param_groups"][0]["lr"])
        assert content["global_step"] == 3
    assert rates == {0.0001, 0.5}


def test_what_an_exception_left_of_another_run_is_not_gone_on_from(trained, tmp_path):
    (tmp_path / "kept").mkdir()
    shutil.copy(tmp_path / LAST, tmp_path / "kept/on_exception.ckpt")
    callback = "lightning.pytorch.callbacks.OnExceptionCheckpoint"
    options = [f"--trainer.callbacks={callback}", "--trainer.callbacks.dirpath=kept"]
    assert trained("fit", *ONE_EPOCH, "--optimizer.lr", "0.5", *options) == 0
    content = torch.load(tmp_path / LAST.replace("version_0", "version_1"), weights_only=True)
    assert content["optimizer_states"][0]["param_groups"][0]["lr"] == 0.5


def test_the_newest_run_is_not_a_matter_of_the_clock(trained, tmp_path, capsys):
    assert trained("fit", *ONE_EPOCH, "--seed_everything", "5") == 0
    assert trained("fit", *ONE_EPOCH, "--experiment", "another") == 0
    newest = {"Digits": "version_1", "another": "version_0"}
    for path in (tmp_path / "logs").rglob("*"):
        os.utime(path, (2e9, 2e9) if "version_0" in str(path) else (1e9, 1e9))
    for name, version in newest.items():
        capsys.readouterr()
        assert trained("test", "--ckpt_path", "last", "--experiment", name) == 0
        assert f"logs/{name}/{version}/" in capsys.readouterr().out.splitlines()[0]
    capsys.readouterr()
    # Of all experiments, the one that was begun last.
    assert trained("test", "--ckpt_path", "best") == 0
    assert "logs/another/" in capsys.readouterr().out.splitlines()[0]


def test_runs_that_an_older_version_left_go_by_their_numbers(trained, tmp_path, capsys):
    for number in (2, 10):
        shutil.copytree(tmp_path / RUN, tmp_path / f"logs/Digits/version_{number}")
    for path in (tmp_path / "logs/Digits").glob("*/config.yaml"):
        path.write_text(path.read_text().partition("\n")[2])
    capsys.readouterr()
    assert trained("test", "--ckpt_path", "last") == 0
    assert "/version_10/" in capsys.readouterr().out.splitlines()[0]
