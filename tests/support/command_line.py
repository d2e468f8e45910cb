"""The command line as the tests start it: in this process, or in one of its own."""

import os
import subprocess
import sys
from pathlib import Path

import torch

from manualnn.training.cli import command as cli

ROOT = Path(__file__).parents[2]
SMALL = ["--model.hidden_units", "[8]", "--data.batch_size", "512", "--trainer.accelerator", "cpu"]


def launch(args, folder, **options):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "train.py"), *map(str, args)]
    return subprocess.Popen(
        command, cwd=folder, env=environment, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, **options,
    )  # fmt: skip


def message(capsys) -> str:
    """The one line of a refusal."""
    lines = [x for x in capsys.readouterr().err.splitlines() if x.startswith("train.py: ")]
    assert len(lines) == 1
    return lines[0].removeprefix("train.py: ")


def train(folder, *args, monkeypatch):
    """The command line inside this process: what importing costs is paid once."""
    monkeypatch.chdir(folder)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return cli.main([str(arg) for arg in args])
    finally:
        torch.set_num_threads(threads)
