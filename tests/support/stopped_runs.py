"""Runs that are stopped and go on: how they are started, and what they must share with one that was not."""

import re
import time
from pathlib import Path

import torch
from forked import server
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

RUN = Path("logs/Digits/version_0")
ARGS = (
    "fit --model.hidden_units [16] --model.dropout 0.2 --data.batch_size 64 --data.shift 1 "
    "--optimizer.momentum 0.9 --lr_scheduler CosineAnnealingLR --lr_scheduler.T_max 3 "
    "--trainer.max_epochs 3 --trainer.log_every_n_steps 4 --trainer.accelerator cpu "
    "--monitor.every 7"  # `auto` watches what the clock allows
).split()
LAST = ["fit", "--ckpt_path", "last"]
STEPS = 21  # an epoch


def curves(run: Path) -> dict[str, list[tuple[int, float]]]:
    """Every point in the files of the run, in their order, as a reader that knows nothing of restarts."""
    sizes = {"scalars": 0}
    events = EventAccumulator(str(run), sizes, purge_orphaned_data=False).Reload()
    return {
        tag: [(point.step, point.value) for point in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    }


def checkpoint(path: Path) -> dict:
    return torch.load(path, weights_only=True)


def wait_for(path: Path) -> None:
    end = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < end, path
        time.sleep(0.002)


def go_on(folder: Path) -> Path:
    """Goes on with the killed run as a person would, by what the messages say; its folder."""
    status, run = server().run(folder, *LAST)
    if status == 0:
        return folder / RUN
    assert status == 2, run.err
    assert not list((folder / RUN).glob("checkpoints/*.ckpt")), run.err
    if anew := re.search(r"python train.py (fit --config \S+)$", run.message):
        assert f"the run {RUN} was stopped before its first checkpoint" in run.message
        status, run = server().run(folder, *anew[1].split())
    else:
        assert re.search("left a checkpoint last.ckpt; fit without --ckpt_path", run.message)
        status, run = server().run(folder, *ARGS)
    assert status == 0, run.err
    runs = sorted((folder / "logs/Digits").iterdir())
    # Of a run that had not begun nothing stays.
    assert len(runs) == 1 + bool(anew)
    return runs[-1]


def same(run: Path, whole: Path) -> None:
    for name in ("last", "best"):
        ours, theirs = (checkpoint(folder / f"checkpoints/{name}.ckpt") for folder in (run, whole))
        states = [c.pop("callbacks").values() for c in (ours, theirs)]
        for content in (ours, theirs):
            del content["curves"]  # by the files' names
        scores = [
            [s["best_model_score"] for s in some if "best_model_score" in s] for some in states
        ]
        assert len(scores[0]) == 1 and scores[0] == scores[1]
        assert differences(ours, theirs) == []
    ours, theirs = curves(run), curves(whole)
    assert ours.keys() == theirs.keys()
    for tag, points in ours.items():
        assert [step for step, _ in points] == [step for step, _ in theirs[tag]], tag
        assert tag.startswith("time/") or points == theirs[tag], tag
    assert not list(run.rglob("*.part"))


def differences(ours, theirs, name: str = "") -> list[str]:
    """Where two nested checkpoints are not the same, bit for bit."""
    if isinstance(ours, dict):
        if ours.keys() != theirs.keys():
            return [name]
        return [x for key in ours for x in differences(ours[key], theirs[key], f"{name}.{key}")]
    if isinstance(ours, (list, tuple)):
        pairs = enumerate(zip(ours, theirs, strict=True))
        return [x for i, pair in pairs for x in differences(*pair, f"{name}[{i}]")]
    equal = torch.equal(ours, theirs) if isinstance(ours, torch.Tensor) else ours == theirs
    return [] if equal else [name]


def checkpoints_are_whole(folder: Path) -> None:
    for path in (folder / RUN).glob("checkpoints/*.ckpt"):
        assert checkpoint(path)["global_step"] % STEPS == 0
