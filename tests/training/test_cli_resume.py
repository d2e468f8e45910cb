"""Going on with a run, and using its checkpoints: what may change, what is recorded, what is said."""

import csv
import os
import re
import shutil
import signal

import pytest
import torch
import torchvision_files as files
import yaml
from command_line import SMALL, message, train
from forked import server
from stopped_runs import wait_for
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from manualnn.training.data.split import split

RUN = "logs/Digits/version_0"
ONE_EPOCH = [*SMALL, "--trainer.max_epochs", "1"]
STEPS = ["--lr_scheduler", "StepLR", "--lr_scheduler.step_size", "1"]


def scalars(folder) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    return {
        tag: [(point.step, point.value) for point in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    }


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--optimizer.lr", "0.5"], "--optimizer.lr is 0.5 here and 0.05 in the run."),
        (["--optimizer", "Adam"], "--optimizer is Adam here and SGD in the run."),
        (STEPS, "--lr_scheduler is StepLR here and null in the run."),
        (["--data.batch_size", "256"], "--data.batch_size is 256 here and 512 in the run."),
        (["--model.dropout", "0.5"], "--model.dropout is 0.5 here and 0.0 in the run."),
        (["--seed_everything", "3"], "--seed_everything is 3 here and 0 in the run."),
    ],
)
@pytest.mark.one_in(3)
def test_a_run_goes_on_only_with_its_own_settings(trained, tmp_path, capsys, options, words):
    before = (tmp_path / RUN / "config.yaml").read_text()
    capsys.readouterr()
    for checkpoint in ("last", "best"):
        assert trained("fit", "--ckpt_path", checkpoint, "--trainer.max_epochs", "2", *options) == 2
        assert words in message(capsys)
    assert (tmp_path / RUN / "config.yaml").read_text() == before
    assert [path.name for path in (tmp_path / "logs/Digits").iterdir()] == ["version_0"]


def test_where_and_how_fast_may_change(trained, tmp_path):
    options = ["--data.num_workers", "1", "--data.root", "elsewhere", "--trainer.max_epochs", "2"]
    options += ["--trainer.log_every_n_steps", "1"]
    assert trained("fit", "--ckpt_path", "last", *options) == 0
    config = yaml.safe_load((tmp_path / RUN / "config.yaml").read_text())
    assert config["trainer"]["max_epochs"] == 2


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--optimizer", "Adam"], "--optimizer is Adam here and SGD in the run"),
        (["--optimizer.lr", "0.5"], "--optimizer.lr is 0.5 here and 0.05 in the run."),
        (["--data.batch_size", "64"], "--data.batch_size is 64 here and 512 in the run"),
        ([], None),
    ],
)
@pytest.mark.one_in(2)
def test_a_checkpoint_without_its_configuration_is_compared_too(
    trained, tmp_path, capsys, options, words
):
    capsys.readouterr()
    shutil.copyfile(tmp_path / RUN / "checkpoints/last.ckpt", tmp_path / "moved.ckpt")
    assert trained("fit", *ONE_EPOCH, "--ckpt_path", "moved.ckpt", *options) == (2 if words else 0)
    if words:
        assert words in message(capsys)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--optimizer", "Adam"], "--optimizer is Adam here and another one in the checkpoint"),
        (["--optimizer.lr", "0.5"], "--optimizer.lr is 0.5 here and 0.1 in the checkpoint"),
        ([], None),
    ],
)
@pytest.mark.one_in(3)
def test_a_checkpoint_without_settings_is_compared_by_its_optimiser(
    trained, tmp_path, capsys, options, words
):
    capsys.readouterr()
    content = torch.load(tmp_path / RUN / "checkpoints/last.ckpt", weights_only=True)
    del content["settings"]  # as a plain Trainer leaves it
    torch.save(content, tmp_path / "plain.ckpt")
    assert trained("fit", *ONE_EPOCH, "--ckpt_path", "plain.ckpt", *options) == (2 if words else 0)
    if words:
        assert words in message(capsys)


def test_the_chosen_checkpoint_is_named_and_a_finished_run_is_said_to_be(run, capsys):
    assert run("fit", *ONE_EPOCH) == 0
    assert "nothing to do" not in capsys.readouterr().out
    assert run("fit", "--ckpt_path", "last") == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"checkpoint: {RUN}/checkpoints/last.ckpt (Digits, 3 steps)\n")
    assert "nothing to do: the run has taken all of its 3 steps" in printed


def test_a_folder_that_lacks_classes_is_tested_and_another_class_is_refused(run, tmp_path, capsys):
    files.pictures(tmp_path / "p", {"cat": 12, "dog": 12, "elk": 12})
    options = (
        "--data.dataset ImageFolder --data.root p --data.batch_size 4 --model.hidden_units [4]"
    )
    assert run("fit", *options.split(), *ONE_EPOCH[-4:], "--experiment", "x") == 0
    files.pictures(tmp_path / "q", {**dict.fromkeys("abc", 0), "elk": 5})
    for name in "abc":
        (tmp_path / "q" / name).rmdir()
    args = ["--ckpt_path", "last", "--experiment", "x", "--data.root", "q"]
    for subcommand in ("test", "validate", "predict"):
        capsys.readouterr()
        assert run(subcommand, *args) == 0
        printed = capsys.readouterr().out
        assert (
            "5 pictures, 3 classes: cat, dog, elk" in printed and "all 5 pictures in q" in printed
        )
    capsys.readouterr()
    assert run("fit", *args, "--trainer.max_epochs", "2") == 2
    assert "holds one class only (elk)" in message(capsys)
    (tmp_path / "q/yak").mkdir()
    for subcommand, words in (
        ("test", "q holds yak; the classes are cat, dog, elk"),
        ("fit", "was trained on the classes cat, dog, elk; these images have elk, yak"),
    ):
        shutil.copy(tmp_path / "p/cat/000.png", tmp_path / "q/yak")
        assert run(subcommand, *args, "--trainer.max_epochs", "2") == 2
        assert words in message(capsys)


def test_where_no_epoch_was_judged_the_test_says_so(run, capsys):
    args = [*SMALL, "--test_best", "true", "--data.batch_size", "256"]
    for limit in ("max_epochs", "max_steps"):
        assert run("fit", *args, f"--trainer.{limit}", "0", "--experiment", "none") == 0
        assert "nothing to test: no step was taken" in capsys.readouterr().out
    assert run("fit", *args, "--trainer.max_steps", "3") == 0
    said = (
        f"no epoch was judged by val/acc: the last weights are tested, {RUN}/checkpoints/last.ckpt"
    )
    assert said in capsys.readouterr().out
    assert (
        run("fit", "--ckpt_path", "last", "--trainer.max_epochs", "5", "--test_best", "true") == 0
    )
    printed = capsys.readouterr().out
    assert "a larger --trainer.max_steps lets it go on" in printed
    assert said in printed and "test/acc" in printed


def test_a_run_goes_on_in_its_own_folder_from_wherever_it_is_named(tmp_path, monkeypatch, capsys):
    def fit(*args):
        capsys.readouterr()
        assert train(elsewhere, "fit", *args, monkeypatch=monkeypatch) == 0
        return capsys.readouterr().out

    assert train(tmp_path, "fit", *ONE_EPOCH, monkeypatch=monkeypatch) == 0
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    checkpoints = tmp_path / RUN / "checkpoints"
    said = fit("--ckpt_path", checkpoints / "last.ckpt", "--trainer.max_epochs", "2")
    assert "note" not in said and not (elsewhere / "logs").exists()
    assert torch.load(checkpoints / "last.ckpt", weights_only=True)["global_step"] == 6
    # As a start from another checkpoint than the last, which goes on in a new folder.
    said = fit("--ckpt_path", checkpoints / "best.ckpt", "--trainer.max_epochs", "3")
    assert "note: it goes on in a new folder in logs/Digits\n" in said and "edited" not in said
    assert (elsewhere / RUN / "config.yaml").is_file()


def test_a_run_that_averages_goes_on_until_it_does(run, tmp_path, capsys):
    averaging = ["--trainer.callbacks", "StochasticWeightAveraging"]
    averaging += ["--trainer.callbacks.swa_lrs", "0.05", "--trainer.callbacks.swa_epoch_start", "3"]
    assert run("fit", *ONE_EPOCH, *averaging) == 0
    printed = capsys.readouterr().out
    assert "note: once StochasticWeightAveraging averages, the run cannot be gone on" in printed
    for epochs, status in ((3, 0), (4, 2)):
        assert run("fit", "--ckpt_path", "last", "--trainer.max_epochs", epochs) == status
    assert "StochasticWeightAveraging had begun to average, and Lightning does" in message(capsys)


@pytest.mark.parametrize(
    ("end", "averages"),
    [
        ("--trainer.max_epochs 4", True),
        ("--trainer.max_steps 7", False),
        ("--early_stopping 1", False),
    ],
)
def test_an_average_that_was_not_made_is_not_written(run, tmp_path, capsys, end, averages):
    """Lightning puts it into the network after the last of max_epochs alone."""
    options = "--trainer.callbacks StochasticWeightAveraging --trainer.callbacks.swa_lrs 5.0"
    options += " --trainer.callbacks.swa_epoch_start 1 --trainer.callbacks.annealing_epochs 1"
    options += " --lr_scheduler null --optimizer.lr 0.3 --trainer.max_epochs 12"
    assert run("fit", *SMALL, *options.split(), *end.split()) == 0
    said = "note: there is no averaged.ckpt: the run ended before the last of --trainer.max_epochs"
    assert (said in capsys.readouterr().out) is not averages
    path = tmp_path / RUN / "checkpoints/averaged.ckpt"
    assert path.exists() is averages
    if averages:
        weights, last = (
            torch.load(p, weights_only=True)["state_dict"]
            for p in (path, path.with_name("last.ckpt"))
        )
        assert any(not torch.equal(weights[name], last[name]) for name in weights)


def test_a_newer_run_without_a_checkpoint_is_named(trained, tmp_path, capsys):
    newer = tmp_path / "logs/Digits/version_1"
    newer.mkdir()
    text = (tmp_path / RUN / "config.yaml").read_text()
    (newer / "config.yaml").write_text(text.replace("# run 1,", "# run 2,"))
    assert trained("test", "--ckpt_path", "best") == 0
    note = "note: the newer run logs/Digits/version_1 has left no checkpoint\n"
    assert note in capsys.readouterr().out
    assert trained("export", "--ckpt_path", "best", "--format", "safetensors") == 0
    assert note in capsys.readouterr().err


def test_validation_says_nothing_of_other_folders(run, recwarn):
    assert run("fit", *ONE_EPOCH) == 0
    assert run("validate", "--ckpt_path", "best") == 0
    assert not [w for w in recwarn if "dirpath" in str(w.message)]


def test_what_is_logged_at_which_step(run, tmp_path):
    options = ["--lr_scheduler", "ExponentialLR", "--lr_scheduler.gamma", "0.5"]
    assert run("fit", *SMALL, *options, "--trainer.max_epochs", "2") == 0
    assert run("test", "--ckpt_path", "best") == 0
    logged = scalars(tmp_path / RUN)
    steps = {tag: [step for step, _ in points] for tag, points in logged.items()}
    assert steps["train/loss"] == steps["val/loss"] == steps["lr"] == [3, 6]
    assert steps["test/loss"] == [6]
    assert logged["epoch"] == [(3, 0), (6, 1)]
    # The value that the epoch's steps were taken with, not the next one's.
    assert [rate for _, rate in logged["lr"]] == pytest.approx([0.05, 0.025])
    assert run("fit", *ONE_EPOCH, "--experiment", "both", "--test_best", "true") == 0
    assert [step for step, _ in scalars(tmp_path / "logs/both/version_0")["test/acc"]] == [3]


def test_a_test_that_is_made_anew_takes_the_place_of_the_one_before(run, tmp_path):
    assert run("fit", *ONE_EPOCH, "--test_best", "true") == 0
    for _ in range(2):
        assert run("fit", "--ckpt_path", "last") == 0
        assert [step for step, _ in scalars(tmp_path / RUN)["test/acc"]] == [3]
    # One that was made by hand stays.
    assert run("fit", *ONE_EPOCH, "--experiment", "by_hand") == 0
    own = ["--ckpt_path", "last", "--experiment", "by_hand"]
    assert run("test", *own) == 0
    assert run("fit", *own, "--trainer.max_epochs", "2") == 0
    logged = scalars(tmp_path / "logs/by_hand/version_0")
    assert [step for step, _ in logged["test/acc"]] == [3]
    assert [step for step, _ in logged["val/acc"]] == [3, 6]


def hparams(folder) -> dict[str, HParamsPluginData]:
    content = EventAccumulator(str(folder)).Reload().PluginTagToContent("hparams")
    return {tag: HParamsPluginData.FromString(value) for tag, value in content.items()}


def test_hyperparameters_are_those_that_a_person_compares(run, tmp_path):
    assert run("fit", *ONE_EPOCH, *STEPS) == 0
    shown = set(hparams(tmp_path / RUN)["_hparams_/session_start_info"].session_start_info.hparams)
    assert {"seed", "model.hidden_units", "data.batch_size", "optimizer", "optimizer.lr"} <= shown
    assert {"lr_scheduler", "lr_scheduler.step_size", "trainer.max_epochs"} <= shown
    noise = ("data.root data.download data.num_workers data.channels optimizer.foreach "
             "optimizer.fused optimizer.maximize optimizer.differentiable optimizer.capturable "
             "lr_scheduler.last_epoch trainer.max_steps")  # fmt: skip
    assert not shown & set(noise.split())


def test_ctrl_c_ends_the_record_and_the_bar(tmp_path):
    going = server().start(tmp_path, ["fit", *SMALL, "--trainer.max_epochs", "-1"])
    wait_for(tmp_path / RUN / "checkpoints/last.ckpt")
    os.kill(going.pid, signal.SIGINT)
    assert going.wait() == 130, going.err
    assert going.out.endswith("\n")
    assert f"python train.py fit --ckpt_path {RUN}/checkpoints/last.ckpt" in going.err
    assert "_hparams_/session_end_info" in hparams(tmp_path / RUN)


def test_a_continued_run_whose_first_part_was_killed_gets_its_end(trained, tmp_path):
    for path in (tmp_path / RUN).glob("events*"):
        path.write_bytes(b"")  # as if it had not come to its end
    assert trained("fit", "--ckpt_path", "last", "--trainer.max_epochs", "2") == 0
    assert "_hparams_/session_end_info" in hparams(tmp_path / RUN)


def test_predictions_name_the_files(run, tmp_path, capsys):
    files.pictures(tmp_path / "pictures", {"cat": 12, "dog": 8})
    options = ["--data.dataset", "ImageFolder", "--data.root", "pictures"]
    options += [
        "--data.batch_size",
        "4",
        "--trainer.max_epochs",
        "1",
        "--trainer.accelerator",
        "cpu",
    ]
    assert run("fit", "--model.hidden_units", "[4]", *options) == 0
    assert run("predict", "--ckpt_path", "last", "--experiment", "ImageFolder") == 0
    said = capsys.readouterr().out.splitlines()[-1]
    assert re.match("5 predictions, of the 5 test pictures of the run's split: ", said)
    with (tmp_path / said.rsplit(": ", 1)[1]).open() as file:
        rows = list(csv.DictReader(file))
    assert all((tmp_path / row["image"]).is_file() for row in rows)
    assert len({row["image"] for row in rows}) == 5


def test_a_run_on_pictures_keeps_its_split_and_another_folder_is_tested_whole(
    run, tmp_path, capsys
):
    files.pictures(tmp_path / "pictures", {"cat": 12, "dog": 8})
    options = "--data.dataset ImageFolder --data.root pictures --data.batch_size 4 --experiment x"
    assert run("fit", "--model.hidden_units", "[4]", *options.split(), *ONE_EPOCH[-4:]) == 0

    def said(*line):
        capsys.readouterr()
        assert run(*line, "--ckpt_path", "last", "--experiment", "x") == 0
        return capsys.readouterr().out.splitlines()

    before = said("test")
    assert "20 pictures, 2 classes: cat, dog" in before
    assert "test: the 5 test pictures of the run's split" in before
    files.pictures(tmp_path / "later", {**dict.fromkeys("abcd", 0), "cat": 21})  # other pixels
    names = [f"cat/x{number}.png" for number in range(21)]
    parts = split(names, [0] * 21, 0, 0.1, 0.1)
    added = [name for name, part in zip(names, parts, strict=True) if part != "test"]
    for name in added:
        (tmp_path / f"later/cat/{int(name[5:-4]):03}.png").rename(tmp_path / "pictures" / name)
    after = said("test")
    assert f"{20 + len(added)} pictures, 2 classes: cat, dog" in after
    figures = [[line for line in lines if "test/" in line] for lines in (before, after)]
    assert figures[0] == figures[1] != []
    on = ["fit", "--ckpt_path", "last", "--experiment", "x", "--trainer.max_epochs", "2"]
    assert run(*on) == 2
    refused = f"the pictures in pictures are not those of the run: {len(added)} more. A run goes on"
    assert message(capsys).startswith(refused)
    for name in added:
        os.remove(tmp_path / "pictures" / name)
    shutil.copytree(tmp_path / "pictures", tmp_path / "renamed")
    for path in sorted((tmp_path / "renamed").rglob("*.png")):
        path.rename(path.with_name(f"{path.stem[::-1]}-.png"))
    shutil.copytree(tmp_path / "logs/x", tmp_path / "kept")
    weights = []
    for folder in ("renamed", "pictures"):
        shutil.rmtree(tmp_path / "logs/x")
        shutil.copytree(tmp_path / "kept", tmp_path / "logs/x")
        assert run(*on, "--data.root", folder) == 0
        content = torch.load(tmp_path / "logs/x/version_0/checkpoints/last.ckpt")
        weights.append(content["state_dict"])
    assert all(x.equal(weights[1][name]) for name, x in weights[0].items())

    files.pictures(tmp_path / "more", {"cow": 0, "emu": 0, "cat": 5, "dog": 4})  # other pixels
    for animal in ("cat", "dog"):
        shutil.copytree(tmp_path / "more" / animal, tmp_path / "new/test1" / animal)
    assert "test: all 9 pictures in new/test1" in said("test", "--data.root", "new")
    (tmp_path / "new/test1").rename(tmp_path / "plain")
    lines = said("test", "--data.root", "plain")
    assert "test: all 9 pictures in plain, which is another folder than the run's" in lines
    last = said("predict", "--data.root", "plain")[-1]
    assert last.startswith("9 predictions, of all 9 pictures in plain, which is another folder")

    # So few that a split would leave none for the test.
    files.pictures(tmp_path / "fewer", {"cow": 0, "emu": 0, "fox": 0, "cat": 1, "dog": 1})
    for animal in ("cat", "dog"):
        shutil.copytree(tmp_path / "fewer" / animal, tmp_path / "few" / animal)
    said("test", "--data.root", "few")
    assert said("validate", "--data.root", "few")
    assert said("predict", "--data.root", "few")[-1].startswith("2 predictions, of all 2 pictures")


@pytest.mark.parametrize("logger", [[], ["--trainer.logger", "false"]])
def test_best_and_last_are_of_the_experiment_that_is_named(run, capsys, logger):
    for name in ("a", "b"):
        assert run("fit", *SMALL, "--trainer.max_epochs", "1", "--experiment", name) == 0
    for command in ("test", "predict", "validate"):
        capsys.readouterr()
        assert run(command, "--ckpt_path", "best", "--experiment", "a", *logger) == 0
        said = capsys.readouterr().out.splitlines()
        assert said[0].startswith("checkpoint: logs/a/") and said[1].startswith(
            "configuration: logs/a/"
        )


@pytest.mark.parametrize(
    "place", ["--trainer.logger false", "--trainer.logger.version version_0 --experiment a"]
)
def test_a_run_writes_over_no_other_runs_checkpoints(run, tmp_path, capsys, place):
    args = ["fit", *SMALL, *place.split(), "--trainer.max_epochs"]
    assert run(*args, "1") == 0
    (last,) = tmp_path.rglob("last.ckpt")
    before = last.read_bytes()
    for more in ([], ["--ckpt_path", last.with_name("best.ckpt")]):
        capsys.readouterr()
        assert run(*args, "2", *more) == 2
        said = message(capsys)
        name = last.relative_to(tmp_path)
        assert f"{name} is another run's, and this one would write over it" in said
        assert "--trainer.default_root_dir" in said and "--ckpt_path" in said
        assert last.read_bytes() == before
    assert run(*args, "2", "--ckpt_path", last) == 0
    assert torch.load(last, weights_only=True)["global_step"] == 6
    assert run(*args, "1", "--trainer.fast_dev_run", "true") == 0


def test_without_a_logger_another_root_is_another_run(run, tmp_path, capsys):
    args = ["fit", *SMALL, "--trainer.logger", "false", "--trainer.max_epochs", "1"]
    assert run(*args) == 0
    assert run(*args, "--trainer.default_root_dir", "b") == 0
    assert len([*tmp_path.rglob("last.ckpt")]) == 2
    # It was killed before its first last.ckpt.
    (tmp_path / "checkpoints/last.ckpt").unlink()
    assert run(*args) == 2
    assert "checkpoints/best.ckpt is another run's" in message(capsys)
    assert run(*args, "--ckpt_path", "checkpoints/best.ckpt", "--trainer.max_epochs", "2") == 0


def test_what_a_command_says_of_the_checkpoint_is_the_checkpoints(run, tmp_path, capsys):
    files.pictures(tmp_path / "d", {"cat": 9, "dog": 9}, size=(8, 8))
    options = "--data.dataset ImageFolder --data.root d --data.channels 1 --data.batch_size 4"
    small = ["--model.hidden_units", "[4]", "--trainer.max_epochs", "1"]
    assert run("fit", *small, *options.split(), "--experiment", "a") == 0
    path = "logs/a/version_0/checkpoints/last.ckpt"
    capsys.readouterr()
    assert run("test", "--ckpt_path", path, "--data.normalize", "null") == 2
    assert "--data.normalize is null here and auto in the checkpoint" in message(capsys)
    # A configuration of another dataset is named; it is the checkpoint's all the same.
    (tmp_path / "digits.yaml").write_text("data: {dataset: Digits}\nmodel: {hidden_units: [4]}")
    run("test", "--config", "digits.yaml", "--ckpt_path", path)
    assert f"checkpoint: {path} (ImageFolder, " in capsys.readouterr().out


def test_a_part_of_the_test_is_said_to_be_one(run, tmp_path, capsys):
    assert (
        run(
            "fit",
            *SMALL,
            "--trainer.max_epochs",
            "1",
            "--trainer.logger",
            "true",
            "--experiment",
            "a",
        )
        == 0
    )
    options = ["--ckpt_path", "best", "--data.batch_size", "100"]
    assert run("test", *options, "--trainer.limit_test_batches", "2") == 0
    assert (
        "note: test takes 2 of 4 batches (--trainer.limit_test_batches" in capsys.readouterr().out
    )
    assert run("predict", *options, "--trainer.limit_predict_batches", "2") == 0
    assert "200 predictions, of the first of the test images of Digits: " in capsys.readouterr().out
    lines = (tmp_path / "logs/a/version_0/predictions.csv").read_text().splitlines()
    assert len(lines) == 201


def test_a_run_without_test_images_says_so_at_its_end(run, tmp_path, capsys):
    files.pictures(tmp_path / "d", {"cat": 12, "dog": 12}, size=(8, 8))
    options = "--data.dataset ImageFolder --data.root d --data.test_fraction 0 --test_best true"
    small = ["--model.hidden_units", "[8]", "--data.batch_size", "8", "--trainer.max_epochs", "1"]
    assert run("fit", *small, *options.split()) == 0
    assert "nothing to test: there are no test images" in capsys.readouterr().out
    for command in ("test", "predict"):
        assert run(command, "--ckpt_path", "last") == 2
        assert message(capsys) == "there are no test images; --data.test_fraction is 0"
