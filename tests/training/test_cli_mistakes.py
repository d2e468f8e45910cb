"""Mistakes of a person at the command line: each ends in one short line that says what to do."""

import os
import shutil
import subprocess
import sys

import pytest
import yaml
from command_line import ROOT, SMALL, message

from manualnn.training import ImageClassifier, ImageData, TrainingError

OWN = """
import torch

class Narrow(torch.nn.Sequential):
    def __init__(self):
        super().__init__(torch.nn.Flatten(), torch.nn.Linear(63, 10))

class Buggy(torch.nn.Linear):
    def __init__(self):
        super().__init__(64, 10)

    def forward(self, images):
        return self.nowhere(images)
"""
SWA = "--trainer.callbacks StochasticWeightAveraging --trainer.callbacks"
PRUNING = "--trainer.callbacks ModelPruning --trainer.callbacks.pruning_fn l1_unstructured"
STOPPING = "--trainer.callbacks EarlyStopping --trainer.callbacks.monitor"
PLATEAU = "--lr_scheduler ReduceLROnPlateau --lr_scheduler.monitor val/loss"
SHORT = "OneCycleLR --lr_scheduler.max_lr 0.1 --lr_scheduler.total_steps 5"


def test_the_model_and_the_data_are_beside_each_other():
    assert ImageClassifier.__module__ == "manualnn.training.model.classifier"
    assert ImageData.__module__ == "manualnn.training.data.module"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--no_such_option 1", "no option is called --no_such_option; --help lists all"),
        ("--data.batch_sise 5", "did you mean --data.batch_size?"),
        ("--config none.yaml", "/none.yaml: there is no such file"),
        ("--config .", ": it is no file"),
        ("--batch_size 5", "did you mean --data.batch_size?"),
        ("--lr 5", "did you mean --optimizer.lr?"),
        ("--model.hidden_units 5", "--model.hidden_units 5: needed is a list of whole numbers"),
        ("--data.flip maybe", "--data.flip maybe: needed is true or false"),
        ("--model.loss foo", "--model.loss foo: needed is one of cross_entropy, quadratic"),
        ("--model.hidden_units=", "--model.hidden_units (nothing): needed is a list of whole"),
        ("--optimizer.lr nan", "--optimizer.lr nan: needed is a finite number"),
        ("--optimizer.lr abc", "--optimizer.lr abc: needed is a number"),
        ("--optimizer.learning 5", "SGD has no option --optimizer.learning; it has lr, momentum"),
        ("--optimizer Sdg", "--optimizer Sdg: no class is called so; did you mean SGD?"),
        ("--lr_scheduler StepLR", "StepLR needs --lr_scheduler.step_size"),
        ("--model.network torch.nn.Nope", "--model.network torch.nn.Nope: module 'torch.nn' has"),
    ],
)
def test_what_the_parser_refuses_is_one_short_line(run, capsys, options, words):
    assert run("fit", *SMALL, *options.split()) == 2
    said = message(capsys)
    assert words in said
    assert len(said) < 200


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--lr_scheduler StepLR --lr_scheduler.step_size 0", "StepLR fails at move 1 of the 10"),
        (f"--lr_scheduler {SHORT}", "OneCycleLR fails at move 6 of the 10 of this run: Tried"),
        (f"--lr_scheduler_interval step --lr_scheduler {SHORT}", "fails at move 6 of the 30"),
        ("--lr_scheduler ReduceLROnPlateau --lr_scheduler.monitor val/los", "known: train/loss"),
        ("--checkpoint.monitor val/accuracy", "known: train/loss, train/acc, val/loss, val/acc"),
        ("--data.batch_size 5000", "5000"),
        ("--experiment my/../../x", "--experiment my/../../x leads out of logs/"),
        ("--experiment /x", "--experiment /x leads out of logs/"),
        ("--trainer.logger.save_dir /proc/nope", "the log folder /proc/nope/Digits cannot be"),
        ("--experiment a\x1bb", "--experiment a\\x1bb holds a control character"),
        ("--config null.yaml", "the section model of the configuration holds no options"),
        ("--config lr.yaml", "lr.yaml: the section optimizer.init_args is empty"),
        ("--config check.yaml", "the section checkpoint"),
        ("--config empty.yaml", "a --config holds no options"),
        ("--trainer.strategy ddp_spawn --trainer.devices 2", "a run cannot be handed to processes"),
        ("--config binary.yaml", "a --config is no text in UTF-8: "),
        ("--seed_everything -5", "--seed_everything is -5; needed is 0 to 4294967295"),
        ("--trainer.accumulate_grad_batches 0", "is 0; needed is 1 at least"),
        ("--trainer.gradient_clip_val -1", "is -1; needed is 0 at least"),
        ("--trainer.val_check_interval 0", "--trainer.val_check_interval is 0; needed is more"),
        (
            "--trainer.val_check_interval 1000",
            "less than or equal to the number of the training batches",
        ),
        ("--data.shift 8", "--data.shift 8 moves images of 8 x 8 out of sight"),
        ("--model.hidden_units [100000000000]", "can't allocate memory"),
        ("--trainer.accelerator tpu", "ModuleNotFoundError: Requirement 'torch_xla"),
        ("--lr_scheduler LRScheduler", "NotImplementedError"),
        ("--trainer.callbacks BatchSizeFinder", "looks at each start for a --data.batch_size that"),
        ("--trainer.callbacks LearningRateFinder", "looks at each start for a --optimizer.lr that"),
        (
            "--trainer.callbacks LearningRateFinder --trainer.callbacks.update_attr false",
            "the run could not be gone on with. Leave it out, and say --optimizer.lr; train.py sweep",
        ),
        ("--trainer.callbacks BackboneFinetuning", "has no attribute 'backbone'"),
        (
            f"{SWA}.swa_lrs -1",
            "The `swa_lrs` should a positive float, or a list of positive floats",
        ),
        (
            f"{SWA}.swa_lrs [0.1,0.2]",
            "swa_lrs has 2 rates, and the optimiser 1 group of parameters",
        ),
        (f"{PRUNING}", "--trainer.callbacks.pruning_fn: l1_unstructured cannot be written"),
        (
            f"{PLATEAU} --data.val_fraction 0",
            "ReduceLROnPlateau waits for 'val/loss', and there are no",
        ),
        (f"{PLATEAU} --trainer.check_val_every_n_epoch 2", "and not each has a validation"),
        ("--trainer.limit_train_batches 0", "--trainer.limit_train_batches is 0: no batch would"),
        ("--trainer.limit_train_batches 0.01", "You requested to check 0.01 of the"),
        ("--test_best true --trainer.limit_test_batches 0", "limit_test_batches is 0: no batch"),
        ("--checkpoint.every_n_epochs 0", "--checkpoint.every_n_epochs is 0; needed is 1 at least"),
        ("--data.normalize [[.nan],[1]]", "normalize: means must be finite, got [nan]"),
        ("--data.normalize [[0],[.inf]]", "normalize: deviations must be above 0 and finite"),
        ("--config /dev/zero", "--config /dev/zero is a device, and no file"),
        ("--optimizer /dev/zero", "/dev/zero is a device, and no file"),
        ("--trainer.logger.save_dir file", "the log folder file/Digits cannot be written: Not a"),
    ],
)
@pytest.mark.one_in(3)
def test_a_start_that_fails_is_one_line_and_leaves_no_folder(run, tmp_path, capsys, options, words):
    given = {"file": b"", "null.yaml": b"model: null", "binary.yaml": b"\xee\x80"}
    given |= {"lr.yaml": b"optimizer:\n  class_path: torch.optim.SGD\n  init_args:\n"}
    given |= {"check.yaml": b"model:\n  hidden_units: [8]\ncheckpoint:\n", "empty.yaml": b""}
    for name, content in given.items():
        (tmp_path / name).write_bytes(content)
    small = [] if options.startswith("--config") else SMALL
    assert run("fit", *small, *options.split()) == 2
    said = message(capsys)
    assert words in said and "Union" not in said
    assert {path.name for path in tmp_path.iterdir()} == {*given}


def test_who_watches_an_accuracy_waits_for_a_larger_one(run, tmp_path, capsys):
    watching = [("EarlyStopping", "val/macro_f1"), ("ModelCheckpoint", "train/acc")]
    content = {
        "lr_scheduler": {"class_path": "ReduceLROnPlateau", "init_args": {"monitor": "val/acc"}},
        "trainer": {
            "callbacks": [
                {"class_path": kind, "init_args": {"monitor": monitor, **mode}}
                for kind, monitor, mode in [
                    ("EarlyStopping", "val/macro_f1", {}),
                    ("EarlyStopping", "val/loss", {}),
                    ("ModelCheckpoint", "train/acc", {}),
                    ("ModelCheckpoint", "val/balanced_acc", {"mode": "max"}),
                ]
            ]
        },
    }
    (tmp_path / "watch.yaml").write_text(yaml.safe_dump(content))
    assert run("fit", "--config", "watch.yaml", *SMALL, "--trainer.max_epochs", "1") == 0
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note: ")]
    assert said == [
        f"note: {kind} waits for a larger {monitor}, so its mode is max, not min"
        for kind, monitor in [("ReduceLROnPlateau", "val/acc"), *watching]
    ]
    kept = yaml.safe_load((tmp_path / "logs/Digits/version_0/config.yaml").read_text())
    assert kept["lr_scheduler"]["init_args"]["mode"] == "max"
    modes = [callback["init_args"]["mode"] for callback in kept["trainer"]["callbacks"]]
    assert modes == ["max", "min", "max", "max"]
    assert run("fit", "--ckpt_path", "last", "--trainer.max_epochs", "2") == 0
    assert "so its mode is" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (f"{PLATEAU} --lr_scheduler.mode max", "larger val/loss: leave its mode max out"),
        (
            f"{STOPPING} train/loss --trainer.callbacks.mode max",
            "larger train/loss: leave its mode",
        ),
        (f"{STOPPING} val/acc --trainer.callbacks.mode=min", "smaller val/acc: leave its mode min"),
        ("--config watch.yaml", "smaller val/acc: leave its mode min out"),
    ],
)
def test_the_wrong_end_of_a_figure_is_refused(run, tmp_path, capsys, options, words):
    stated = {"monitor": "val/acc", "mode": "min"}
    content = {"lr_scheduler": {"class_path": "ReduceLROnPlateau", "init_args": stated}}
    (tmp_path / "watch.yaml").write_text(yaml.safe_dump(content))
    assert run("fit", *SMALL, *options.split()) == 2
    assert words in message(capsys)


def test_a_network_that_raises_without_a_text(run, tmp_path, capsys, monkeypatch):
    lines = "import torch\n\nclass Silent(torch.nn.Module):\n    def __init__(self):\n"
    (tmp_path / "silent.py").write_text(f"{lines}        raise ValueError\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert run("fit", *SMALL[2:], "--model.network", "silent.Silent") == 2
    assert "raises an error without a text" in message(capsys)


@pytest.mark.parametrize(
    "options",
    [
        f"{STOPPING} train/loss --trainer.val_check_interval 0.5",
        f"{STOPPING} val/loss --trainer.callbacks.check_on_train_epoch_end true "
        "--trainer.check_val_every_n_epoch 2",
        "--checkpoint.monitor train/loss --trainer.val_check_interval 0.5",
    ],
)
def test_who_watches_looks_when_there_is_something_to_see(run, tmp_path, options):
    assert run("fit", *SMALL, "--trainer.max_epochs", "2", *options.split()) == 0
    assert (tmp_path / "logs/Digits/version_0/checkpoints/best.ckpt").is_file()


@pytest.mark.parametrize(
    "options",
    [
        "ModelCheckpoint --trainer.callbacks.filename best",
        "ModelCheckpoint --trainer.callbacks.save_last true",
        "OnExceptionCheckpoint --trainer.callbacks.dirpath logs/Digits/version_0/checkpoints "
        "--trainer.callbacks.filename averaged",
    ],
)
def test_another_callback_that_would_write_the_runs_own_checkpoints(run, tmp_path, capsys, options):
    args = [*SMALL, "--trainer.max_epochs", "1", "--trainer.callbacks+"]
    assert run("fit", *args, *options.split()) == 2
    assert "checkpoint: give it another filename or dirpath" in message(capsys)
    assert not list(tmp_path.glob("logs/**/*.ckpt"))
    elsewhere = options.split()[0], "--trainer.callbacks.dirpath", "mine"
    named = "--trainer.callbacks.filename", "best"
    assert run("fit", *args, *elsewhere, *named) == 0


def test_a_log_folder_that_is_a_file(run, tmp_path, capsys):
    (tmp_path / "logs").write_text("")
    assert run("fit", *SMALL) == 2
    assert "the log folder logs/Digits cannot be written" in message(capsys)


def test_a_failed_start_leaves_the_runs_that_were_there(trained, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    assert trained("fit", *SMALL, "--data.batch_size", "5000") == 2
    assert sorted(tmp_path.rglob("*")) == before


def test_a_key_that_a_network_lacks_is_said_to_be_one(run, tmp_path, capsys, monkeypatch):
    text = (
        "import torch\n\nclass Net(torch.nn.Linear):\n    def __init__(self):\n        {}['zz']\n"
    )
    (tmp_path / "keyless.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    assert run("fit", "--model.network", "keyless.Net") == 2
    assert message(capsys) == "KeyError: 'zz'"


def test_a_configuration_is_a_file_or_a_pipe_of_the_shells(run, tmp_path, capsys):
    (tmp_path / "large.yaml").write_text("#" * (1 << 20) + "\n")
    os.mkfifo(tmp_path / "pipe")
    for command in ("fit", "sweep", "compare"):
        for name, words in (("large.yaml", "is too large"), ("pipe", "is a pipe, and no file")):
            assert run(command, "--config", name) == 2
            assert words in message(capsys)
    reading, writing = os.pipe()
    with os.fdopen(writing, "w") as file:
        file.write("model: {hidden_units: [7]}\ntrainer: {max_epochs: 1, accelerator: cpu}\n")
    assert run("fit", f"--config=/dev/fd/{reading}", "--monitor.every", "off") == 0
    os.close(reading)
    kept = yaml.safe_load((tmp_path / "logs/Digits/version_0/config.yaml").read_text())
    assert kept["model"]["hidden_units"] == [7]


@pytest.mark.parametrize("command", ["test", "validate", "predict"])
def test_a_command_that_would_measure_nothing(run, capsys, command):
    part = {"test": "test", "validate": "val", "predict": "predict"}[command]
    options = ["--ckpt_path", "gone.ckpt", f"--trainer.limit_{part}_batches", "0"]
    assert run(command, *SMALL, *options) == 2
    assert f"--trainer.limit_{part}_batches is 0: no batch would be left" in message(capsys)


def test_a_run_of_which_no_epoch_is_judged_says_so_first(run, tmp_path, capsys):
    options = "--checkpoint.every_n_epochs 2 --trainer.check_val_every_n_epoch 3"
    args = [*SMALL, *options.split(), "--trainer.max_epochs"]
    said = (
        "note: with --checkpoint.every_n_epochs 2 and --trainer.check_val_every_n_epoch 3 no epoch up to "
        "--trainer.max_epochs 4 is judged: there will be no best.ckpt but of before\n"
    )
    for epochs in (4, 6):
        capsys.readouterr()
        assert run("fit", *args, epochs) == 0
        assert (said in capsys.readouterr().out) == (epochs == 4)
        best = tmp_path / f"logs/Digits/version_{(epochs - 4) // 2}/checkpoints/best.ckpt"
        assert best.is_file() == (epochs == 6)
    assert run("compare", *args, "4", "--vary", "model.dropout", "[0, 0.1]") == 2
    assert "no epoch up to --trainer.max_epochs 4 is judged" in message(capsys)


@pytest.mark.parametrize("command", ["compare", "sweep"])
@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("limit_val_batches", "--trainer.limit_val_batches is 0: there is nothing to judge by"),
        ("limit_train_batches", "--trainer.limit_train_batches is 0: no batch would be left"),
    ],
)
def test_runs_that_nothing_would_come_of_are_not_begun(
    run, tmp_path, capsys, command, option, words
):
    more = ["--vary", f"trainer.{option}", "[0, 5]"]
    if command == "sweep":
        more = [f"--trainer.{option}", "0", "--search.model.dropout", "[0, 0.1]"]
    assert run(command, *SMALL, *more) == 2
    assert words in message(capsys)
    assert not (tmp_path / "logs").exists()


@pytest.mark.parametrize("steps", ["2", "0"])
def test_a_network_of_another_size_is_told_the_images(run, tmp_path, capsys, monkeypatch, steps):
    (tmp_path / "my_networks.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    options = ["--data.batch_size", "512", "--trainer.accelerator", "cpu"]
    options += ["--trainer.num_sanity_val_steps", steps]
    assert run("fit", "--model.network", "my_networks.Narrow", *options) == 2
    said = message(capsys)
    size = "(144, 1, 8, 8)" if steps == "2" else "(512, 1, 8, 8)"
    assert f"the network fails on its first images, {size}" in said
    assert "RuntimeError" in said
    assert "63" in said
    assert (tmp_path / "logs").exists() == (steps == "0")  # there the training had begun
    with pytest.raises(AttributeError, match="nowhere"):
        run("fit", "--model.network", "my_networks.Buggy", *options)
    del sys.modules["my_networks"]


@pytest.mark.parametrize("name", ["glu", "softmax2d", "threshold", "GLU", "rellu"])
def test_activations_that_no_hidden_layer_can_have(name):
    with pytest.raises(TrainingError) as refused:
        ImageClassifier(hidden_units=[8], activation=name)
    known = str(refused.value).split("known: ")[1].split(", ")
    assert {"ReLU", "LeakyReLU", "GELU", "PReLU"} <= set(known)
    assert not {"GLU", "Softmax2d", "Threshold"} & set(known)
    for other in known:
        ImageClassifier(hidden_units=[8], activation=other)


def test_a_message_starts_on_a_line_of_its_own(run, capsys):
    assert run("fit", *SMALL, "--optimizer.lr", "1e30") == 2
    assert capsys.readouterr().out.endswith("\n")


def test_without_tensorboard_it_is_not_advertised(run, capsys):
    assert run("fit", *SMALL, "--trainer.max_epochs", "1", "--trainer.logger", "CSVLogger") == 0
    printed = capsys.readouterr().out
    assert "tensorboard" not in printed
    assert "curves" in printed


def test_help_is_not_a_list_of_every_module(run, capsys):
    with pytest.raises(SystemExit):
        run("fit", "--help")
    assert "torch.nn.Conv2d" not in capsys.readouterr().out


SLOW = """
import os, signal, time

try:
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(60)
except KeyboardInterrupt:
    pass  # as libraries do that try one import after another

def main():
    return 0
"""


def test_ctrl_c_while_importing(tmp_path):
    package = tmp_path / "manualnn" / "training"
    package.mkdir(parents=True)
    for folder in (package.parent, package):
        (folder / "__init__.py").touch()
    (package / "cli.py").write_text(SLOW)
    shutil.copy(ROOT / "train.py", tmp_path)
    command = [sys.executable, str(tmp_path / "train.py")]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 130
    assert ended.stderr == "interrupted\n"
