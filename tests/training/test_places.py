"""A run that is stopped anywhere goes on to the weights, states and curves of one that was not, bit for bit."""

import functools
import shlex
import signal

import pytest
import torch
from battery import EVERY_ROW
from forked import server
from stopped_runs import RUN, curves, differences

BASE = (
    "fit --model.hidden_units [16] --model.dropout 0.2 --data.batch_size 64 --data.shift 1 "
    "--optimizer.momentum 0.9 --trainer.max_epochs 3 --trainer.log_every_n_steps 4 "
    "--trainer.accelerator cpu --monitor.every off"
).split()
EPOCH = 21  # steps; three batches of validation, of which two come before the first step as well
OPTIONS = {
    "plain": "",
    "accumulated": "--trainer.accumulate_grad_batches 3",
    "accumulated otherwise": "--trainer.callbacks+=GradientAccumulationScheduler "
    "--trainer.callbacks.scheduling '{0: 3, 1: 5, 2: 2}' --lr_scheduler CosineAnnealingLR "
    "--lr_scheduler_interval step",
    "validated within": "--trainer.val_check_interval 0.3",
    "both": "--trainer.accumulate_grad_batches 4 --trainer.val_check_interval 0.3",
    "stepped": "--lr_scheduler StepLR --lr_scheduler.step_size 5 --lr_scheduler_interval step",
    "plateau": "--lr_scheduler ReduceLROnPlateau --lr_scheduler.monitor val/loss "
    "--lr_scheduler.patience 0 --lr_scheduler.threshold 1",
    "averaged": "--trainer.callbacks+=EMAWeightAveraging --trainer.callbacks.decay 0.9",
    "stopped early": "--trainer.callbacks+=EarlyStopping --trainer.callbacks.monitor val/loss "
    "--trainer.callbacks.patience 1 --trainer.callbacks.min_delta 0.3 --trainer.max_epochs 8",
    "without validation": "--data.val_fraction 0 --checkpoint.monitor train/loss",
    "in float64": "--trainer.precision 64-true",
    "in bfloat16": "--trainer.precision bf16-true",
    "in bfloat16, states in float32": "--trainer.precision bf16-true --optimizer NAdam --optimizer.lr 0.05",
    "watched": "--monitor.every 3 --trainer.accumulate_grad_batches 3",
    "every 5 steps": "--checkpoint.every_n_steps 5",
    "warm, weighed, augmented": "--model.warmup_steps 35 --model.head_lr 0.02 --model.class_weights balanced "
    "--lr_scheduler CosineAnnealingLR --data.augment [RandAugment,MixUp,CutMix] --early_stopping 9",
}
STOPS = [
    ("plain", "training_step", 1, "SIGTERM"),
    ("plain", "training_step", 30, "SIGHUP"),
    ("plain", "training_step", EPOCH, "SIGTERM"),
    ("plain", "training_step", 3 * EPOCH, "SIGTERM"),
    ("plain", "validation_step", 4, "SIGUSR1"),
    ("plain", "validation_step", 5, "SIGTERM"),
    ("plain", "validation_step", 11, "SIGTERM"),
    ("accumulated", "training_step", 32, "SIGTERM"),
    ("accumulated otherwise", "training_step", 10, "SIGTERM"),
    ("accumulated otherwise", "training_step", EPOCH + 8, "SIGTERM"),
    ("accumulated otherwise", "training_step", 2 * EPOCH + 3, "SIGKILL"),
    ("validated within", "training_step", 17, "SIGTERM"),
    ("validated within", "validation_step", 7, "SIGTERM"),
    ("both", "validation_step", 4, "SIGTERM"),
    ("both", "training_step", 10, "SIGKILL"),
    ("stepped", "training_step", 38, "SIGTERM"),
    ("plateau", "training_step", EPOCH + 1, "SIGKILL"),
    ("plateau", "training_step", EPOCH + 9, "SIGTERM"),
    ("averaged", "validation_step", 4, "SIGTERM"),
    ("averaged", "training_step", 30, "SIGTERM"),
    ("stopped early", "training_step", 50, "SIGTERM"),
    ("without validation", "training_step", 2 * EPOCH, "SIGTERM"),
    ("in float64", "training_step", 30, "SIGTERM"),
    ("in bfloat16", "training_step", 30, "SIGTERM"),
    ("in bfloat16, states in float32", "training_step", 3, "SIGTERM"),
    ("watched", "training_step", 35, "SIGTERM"),
    ("every 5 steps", "training_step", 34, "SIGKILL"),
    ("warm, weighed, augmented", "training_step", EPOCH + 3, "SIGTERM"),
]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """options -> the run with them that nothing happens to."""

    @functools.cache
    def run(name):
        folder = tmp_path_factory.mktemp("whole")
        status, run = server().run(folder, *BASE, *shlex.split(OPTIONS[name]))
        assert status == 0, run.err
        return folder / RUN

    return run


def same(run, whole):
    for name in ("last", "best"):
        ours, theirs = (
            torch.load(folder / f"checkpoints/{name}.ckpt", weights_only=True)
            for folder in (run, whole)
        )
        for content in (ours, theirs):
            del content["callbacks"], content["curves"]  # which hold paths
        assert differences(ours, theirs) == []
    ours, theirs = curves(run), curves(whole)
    assert ours.keys() == theirs.keys()
    for tag, points in ours.items():
        assert tag.startswith("time/") or points == theirs[tag], tag


# Every third takes long enough; EVERY_ROW in the environment: all.
@pytest.mark.parametrize(
    ("options", "step", "number", "sent"), STOPS if EVERY_ROW else STOPS[1::3] + STOPS[14:15]
)
def test_a_run_that_is_stopped_goes_on_as_if_it_were_not(
    tmp_path, whole, options, step, number, sent
):
    plant = ["at_step", step, number, sent]
    status, run = server().run(tmp_path, *BASE, *shlex.split(OPTIONS[options]), plant=plant)
    last = tmp_path / RUN / "checkpoints/last.ckpt"
    if sent == "SIGKILL":
        assert status == -signal.SIGKILL
    else:
        assert status == 128 + getattr(signal, sent), run.err
        assert f"ended by {sent}; kept: " in run.err and "Traceback" not in run.err
    at = torch.load(last, weights_only=True)["place"]
    if step == "training_step" and sent != "SIGKILL":
        assert at["batches"] == number  # nothing that was learned is lost
    status, run = server().run(tmp_path, "fit", "--ckpt_path", "last")
    assert status == 0, run.err
    same(tmp_path / RUN, whole(options))


def test_max_steps_within_an_epoch_may_be_raised_later(tmp_path, whole):
    for steps in (10, 21, 30, 45):
        more = BASE if steps == 10 else ["fit", "--ckpt_path", "last"]
        status, run = server().run(tmp_path, *more, "--trainer.max_steps", steps)
        assert status == 0, run.err
    status, run = server().run(tmp_path, "fit", "--ckpt_path", "last", "--trainer.max_steps", "-1")
    assert status == 0, run.err
    ours, theirs = (
        torch.load(folder / "checkpoints/last.ckpt", weights_only=True)
        for folder in (tmp_path / RUN, whole("plain"))
    )
    for content in (ours, theirs):
        del content["settings"], content["callbacks"], content["curves"]
    assert differences(ours, theirs) == []


def test_a_run_that_is_killed_between_its_validation_and_the_checkpoint_logs_each_point_once(
    tmp_path,
):
    more = ["--checkpoint.every_n_steps", EPOCH, "--trainer.max_epochs", 2]
    plant = ["at_replace", 2, "last.ckpt", False]
    status, run = server().run(tmp_path, *BASE, *more, plant=plant)
    assert status == -signal.SIGKILL, run.err
    assert [step for step, _ in curves(tmp_path / RUN)["val/loss"]] == [EPOCH]
    status, run = server().run(tmp_path, "fit", "--ckpt_path", "last")
    assert status == 0, run.err
    logged = curves(tmp_path / RUN)
    for tag in ("val/loss", "epoch", "time/epoch"):
        assert [step for step, _ in logged[tag]] == [EPOCH, 2 * EPOCH], tag
    for points in logged.values():
        assert len({step for step, _ in points}) == len(points)


def test_the_second_signal_does_not_wait(tmp_path):
    plant = ["twice_in_a_step", 5, "SIGTERM"]
    status, run = server().run(tmp_path, *BASE, plant=plant)
    assert status == -signal.SIGTERM, run.err
