"""What the monitors cost: a run with them over the same run with ``--monitor.every off``.

python benchmarks/monitors.py [--data ../shared/data] [--rounds 5] [--epochs 8] [--save]

Both train through the command line, in one process and in turn: 784-512-256-10 on MNIST, the convolutions of
configs/mnist_cnn.yaml, and the default experiment on Digits. Timed is all of ``Trainer.fit``: the training,
its validation, its logging. The pictures that are drawn once, when the last epoch has ended, are given apart.
The processor's time of all threads is compared too: on a busy machine it moves less than the clock.
"""

import argparse
import contextlib
import io
import os
import pathlib
import statistics
import tempfile
import time

import lightning
from lightning.pytorch import Trainer
from timing import machine, save

from manualnn.training import cli
from manualnn.training.monitors import Monitor

ROOT = pathlib.Path(__file__).resolve().parent.parent


class Stopwatch:
    """Seconds, of the clock and of the processor, in a method while the block runs."""

    def __init__(self, owner, name):
        self.owner, self.name, self.clock, self.processor = owner, name, 0.0, 0.0

    def __enter__(self):
        self.method = method = getattr(self.owner, self.name)

        def timed(*args, **kwargs):
            clock, processor = time.perf_counter(), time.process_time()
            try:
                return method(*args, **kwargs)
            finally:
                self.clock += time.perf_counter() - clock
                self.processor += time.process_time() - processor

        setattr(self.owner, self.name, timed)
        return self

    def __exit__(self, *_):
        setattr(self.owner, self.name, self.method)


def fit(config, every, epochs, *options):
    """(seconds of the clock, of the processor without the last pictures, seconds of these)."""
    here = os.getcwd()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        os.chdir(folder)
        try:
            with (
                Stopwatch(Trainer, "fit") as whole,
                Stopwatch(Monitor, "on_train_end") as last,
                contextlib.redirect_stdout(io.StringIO()),
            ):
                status = cli.main(
                    [
                        *("fit", "--config", str(ROOT / "configs" / f"{config}.yaml")),
                        *("--trainer.max_epochs", str(epochs), "--monitor.every", every, *options),
                    ]
                )
        finally:
            os.chdir(here)
    if status:
        raise SystemExit(f"{config} ended with status {status}")
    return whole.clock - last.clock, whole.processor - last.processor, last.clock


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="../shared/data", help="folder that holds MNIST/raw")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=8, help="of MNIST; Digits takes its 40")
    parser.add_argument("--only", nargs="*", default=["mnist", "mnist_cnn", "digits"])
    parser.add_argument(
        "--save", action="store_true", help="write benchmarks/results/monitors.json"
    )
    arguments = parser.parse_args()
    data = "--data.root", str(pathlib.Path(arguments.data).resolve())
    runs = {
        "mnist": (arguments.epochs, *data),
        "mnist_cnn": (max(1, arguments.epochs // 4), *data),
        "digits": (40,),
    }
    print(
        *(f"{k}: {v}" for k, v in machine().items()),
        f"lightning: {lightning.__version__}",
        sep="\n",
    )
    rows = []
    for config in arguments.only:
        epochs, *options = runs[config]
        fit(config, "auto", 1, *options)  # what a process pays once
        pairs = []
        for i in range(arguments.rounds):
            order = ("auto", "off") if i % 2 else ("off", "auto")
            timed = {every: fit(config, every, epochs, *options) for every in order}
            pairs.append((timed["auto"], timed["off"]))
        clock = statistics.median(a[0] / b[0] for a, b in pairs)
        processor = statistics.median(a[1] / b[1] for a, b in pairs)
        seconds = statistics.median(b[0] for _, b in pairs)
        last = statistics.median(a[2] for a, _ in pairs)
        print(
            f"{config:12}{epochs:3} epochs{seconds:8.2f} s; with monitors: clock {clock:.3f}, "
            f"processor {processor:.3f}; last pictures {last:.2f} s",
            flush=True,
        )
        rows.append(
            {
                "run": config,
                "epochs": epochs,
                "seconds": round(seconds, 2),
                "ratio": round(clock, 3),
                "ratio_processor": round(processor, 3),
                "last_pictures_seconds": round(last, 2),
            }
        )
    if arguments.save:
        save("monitors", rows)


if __name__ == "__main__":
    main()
