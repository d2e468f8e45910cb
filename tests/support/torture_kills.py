"""Kills of the trainer's commands at moments drawn by a seed: each goes on to what it would have made.

    python tests/support/torture_kills.py    # 40 of fit, 20 within a checkpoint, 12 double, 10 of each other
    python tests/support/torture_kills.py --seed 7 --only export

Checkpoints, curves, predictions, exports, trials and comparisons are compared, bit for bit, with those of runs
that nothing happened to. Exit status 1 if one differs, or if something half written was found.
"""

import argparse
import csv
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from forked import server
from safetensors import safe_open
from stopped_runs import ARGS, LAST, RUN, checkpoints_are_whole, go_on, same

SMALL = (
    "--data.dataset Digits --model.hidden_units [8] --data.batch_size 256 --trainer.accelerator cpu "
    "--trainer.max_epochs 2 --monitor.every off --trainer.enable_progress_bar false"
).split()
BEST = RUN / "checkpoints/best.ckpt"
SWEEP = ["sweep", *SMALL, "--search.optimizer.lr", "{low: 1e-3, high: 1, log: true}"]
SWEEP += ["--sweep.n_trials", "4", "--sweep.finalists", "0", "--experiment", "small"]
COMPARE = ["compare", *SMALL, "--vary", "model.activation", "[relu, tanh]", "--seeds", "2"]
COMPARE += ["--experiment", "small"]
TIMES = {"seconds"}  # a column that no two runs share


def table(folder: Path, name: str) -> list[dict]:
    """The rows of the file of that name, without what the clock writes."""
    newest = max(folder.glob(f"logs/**/{name}"))  # a comparison that had ended began anew
    with newest.open() as file:
        return [{k: v for k, v in row.items() if k not in TIMES} for row in csv.DictReader(file)]


def trials(folder: Path) -> list[tuple]:
    """Values and figures of the trials that were finished; one that was killed has another number."""
    rows = table(folder, "trials.csv")
    return sorted(tuple(v for k, v in row.items() if k not in ("trial", "folder")) for row in rows)


def exported(folder: Path) -> dict:
    """The tensors, and what is said of them but for when."""
    with safe_open(folder / "out.safetensors", "pt") as file:
        tensors = {name: file.get_tensor(name).numpy().tobytes() for name in file.keys()}
        return {**tensors, **file.metadata()}


# command -> (the command, what it makes: compared; none of it may be there in halves)
COMMANDS: dict[str, tuple[list[str], Callable[[Path], object]]] = {
    "sweep": (SWEEP, trials),
    "compare": (COMPARE, lambda folder: table(folder, "runs.csv")),
    "export": (
        [
            "export",
            "--ckpt_path",
            str(BEST),
            "--format",
            "safetensors",
            "--output",
            "out.safetensors",
        ],
        exported,
    ),
    "predict": (
        ["predict", "--ckpt_path", str(BEST), "--trainer.enable_progress_bar", "false"],
        lambda folder: (folder / RUN / "predictions.csv").read_bytes(),
    ),
}


def timed(folder: Path, args: list[str]) -> float:
    start = time.monotonic()
    run = server().start(folder, args)
    assert run.wait(600) == 0, run.err
    return time.monotonic() - start


def killed(folder: Path, args: list[str], after: float) -> None:
    """The command, until so many seconds after its start; it may have ended by then."""
    run = server().start(folder, args)
    time.sleep(after)
    os.kill(run.pid, signal.SIGKILL)
    assert run.wait() in (-signal.SIGKILL, 0, 2), run.err


def in_fit(folder: Path, draw: random.Random, whole: Path, seconds: float) -> None:
    killed(folder, ARGS, draw.uniform(0, seconds))
    checkpoints_are_whole(folder)
    same(go_on(folder), whole / RUN)


def in_a_checkpoint(folder: Path, draw: random.Random, whole: Path, seconds: float) -> None:
    number = draw.randint(1, 6)
    name = draw.choice(["best.ckpt", "last.ckpt"])
    replaced = ["at_replace", (number + 1) // 2, name, draw.random() < 0.5]
    plant = draw.choice([["in_save", number], replaced])
    status, run = server().run(folder, *ARGS, plant=plant)
    assert status in (-signal.SIGKILL, 0), run.err
    checkpoints_are_whole(folder)
    same(go_on(folder), whole / RUN)


def doubly(folder: Path, draw: random.Random, whole: Path, seconds: float) -> None:
    killed(folder, ARGS, draw.uniform(0, seconds))
    killed(folder, LAST, draw.uniform(0, seconds))
    checkpoints_are_whole(folder)
    same(go_on(folder), whole / RUN)


def in_another(name: str):
    args, made = COMMANDS[name]

    def kill(folder: Path, draw: random.Random, whole: Path, seconds: float) -> None:
        if name in ("export", "predict"):
            shutil.copytree(whole / "logs", folder / "logs")
            for path in folder.rglob("predictions.csv"):
                path.unlink()
        killed(folder, args, draw.uniform(0, seconds))
        if name in ("export", "predict"):
            there = folder / ("out.safetensors" if name == "export" else RUN / "predictions.csv")
            assert not there.exists() or made(folder) == made(whole), "half of it is there"
        again = server().start(folder, args)
        assert again.wait(600) == 0, again.err
        assert made(folder) == made(whole)
        assert not list(folder.rglob("*.part"))

    return kill


KINDS = {"fit": (in_fit, 40), "checkpoint": (in_a_checkpoint, 20), "double": (doubly, 12)}
KINDS |= {name: (in_another(name), 10) for name in COMMANDS}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=KINDS)
    parser.add_argument("--count", type=int, help="of each kind")
    options = parser.parse_args()
    failures = 0
    for name, (kill, count) in KINDS.items():
        if options.only not in (None, name):
            continue
        with tempfile.TemporaryDirectory() as place:
            whole = Path(place, "whole")
            whole.mkdir()
            seconds = timed(whole, COMMANDS[name][0] if name in ("sweep", "compare") else ARGS)
            if name in ("export", "predict"):
                seconds = timed(whole, COMMANDS[name][0])
            held = 0
            for number in range(options.count or count):
                folder = Path(place, str(number))
                folder.mkdir()
                try:
                    kill(folder, random.Random(f"{options.seed} {name} {number}"), whole, seconds)
                    held += 1
                except BaseException:
                    failures += 1
                    print(
                        f"{name} {number}, seed {options.seed}:\n{traceback.format_exc()[-1500:]}"
                    )
                shutil.rmtree(folder)
            print(f"{name}: {held} of {options.count or count} went on to the same", flush=True)
    return bool(failures)


if __name__ == "__main__":
    sys.exit(main())
