"""Runs of ``train.py`` in a process of their own, and what their event files say."""

import os
import pathlib
import subprocess
import sys
import tempfile

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

ROOT = pathlib.Path(__file__).resolve().parent.parent


def train(config, *options, command=("fit",)):
    """Trains with configs/<config>.yaml in an empty folder. Returns {tag: [(step, value), ...]}."""
    with tempfile.TemporaryDirectory() as folder:
        run = subprocess.run(
            [
                sys.executable,
                str(ROOT / "train.py"),
                *command,
                *("--config", str(ROOT / "configs" / f"{config}.yaml")),
                *options,
            ],
            cwd=folder,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,  # the progress bar is drawn, into a pipe
            text=True,
        )
        if run.returncode:
            raise SystemExit(run.stderr.strip().splitlines()[-1])
        curves = {}
        for file in sorted(pathlib.Path(folder).glob("logs/**/events.out.tfevents.*")):
            events = EventAccumulator(str(file)).Reload()
            for tag in events.Tags()["scalars"]:
                points = [(e.step, e.value) for e in events.Scalars(tag)]
                curves.setdefault(tag, []).extend(points)
    return curves
