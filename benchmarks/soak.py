"""Does memory grow over a long run? Many steps of a small network through ``train.py``.

python benchmarks/soak.py [--steps 200000] [--save]

Digits, 64-8-10, batches of 8, everything on that is on by default: curves, checkpoints, validation, bar.
The resident memory is read every 1000 steps (Linux). After the first tenth of the run, which warms up
caches and allocators, it is to stay within 2 % of its median.
"""

import argparse
import contextlib
import gc
import os
import pathlib
import statistics
import tempfile
import time

import lightning
import torch
from lightning.pytorch import Callback
from timing import save

from manualnn.training.cli import command as cli

EVERY = 1000
WARM_UP = 0.1
BAND = 0.02


def resident() -> float:
    """MiB of this process that are in memory now."""
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGESIZE") / 2**20


class Memory(Callback):
    """Reads the resident memory every 1000 steps: rows of (step, MiB)."""

    rows: list[tuple[int, float]] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step % EVERY == 0:
            self.rows.append((trainer.global_step, resident()))


def train(steps: int, log) -> None:
    args = ["fit", "--model.hidden_units", "[8]", "--data.batch_size", "8"]
    args += ["--optimizer.lr", "0.01", "--trainer.accelerator", "cpu"]
    args += ["--trainer.max_epochs", "-1", "--trainer.max_steps", str(steps)]
    args += ["--trainer.callbacks", "__main__.Memory"]
    with contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
        status = cli.main(args)
    if status:
        raise SystemExit(f"the run ended with status {status}: see {log.name}")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=200_000)
    parser.add_argument("--save", action="store_true")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    started, home = time.perf_counter(), pathlib.Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        with open("output", "w") as log:
            train(chosen.steps, log)
        os.chdir(home)
    seconds = time.perf_counter() - started
    warm = [mib for step, mib in Memory.rows if step > WARM_UP * chosen.steps]
    middle = statistics.median(warm)
    slope = statistics.linear_regression(range(len(warm)), warm).slope
    row = {
        "steps": chosen.steps,
        "seconds": round(seconds),
        "after_warm_up_mib": round(warm[0], 1),
        "median_mib": round(middle, 1),
        "lowest_over_median": round(min(warm) / middle, 4),
        "highest_over_median": round(max(warm) / middle, 4),
        "mib_per_100_000_steps": round(slope * 100_000 / EVERY, 2),
        "python_objects": len(gc.get_objects()),
        "lightning": lightning.__version__,
        "mib_every_10_000_steps": [
            round(mib, 1) for step, mib in Memory.rows if step % 10_000 == 0
        ],
    }
    for name, value in row.items():
        print(f"{name:>24}  {value}")
    flat = max(warm) / middle - 1 <= BAND and 1 - min(warm) / middle <= BAND
    print(f"within {BAND:.0%} of the median after warm-up: {'yes' if flat else 'no'}")
    if chosen.save:
        save("soak", [row])


if __name__ == "__main__":
    main()
