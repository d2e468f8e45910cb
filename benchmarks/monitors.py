"""What the monitors cost: a run with them over the same run with ``--monitor.every off``.

python benchmarks/monitors.py [--data ../shared/data] [--rounds 5] [--epochs 8] [--save]

Both train through the command line, in one process and in turn: 784-512-256-10 on MNIST, the convolutions of
configs/mnist_cnn.yaml, and the default experiment on Digits. Timed is all of ``Trainer.fit``: the training,
its validation, its logging. The pictures that are drawn once, when the last epoch has ended, are given apart.
The processor's time of all threads is compared too. On a busy machine both move by more than the monitors
cost; the share of the training thread's own time that is spent in the monitor's hooks moves least. It leaves
out that `nn.MLP` runs layer by layer in a watched step.
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
    """Seconds in methods of a class while the block runs: by the clock, by the processor for all threads and
    for this one."""

    def __init__(self, owner, *names):
        self.owner, self.names = owner, names
        self.clock = self.processor = self.thread = 0.0

    def __enter__(self):
        self.methods = {name: vars(self.owner)[name] for name in self.names}
        for name, method in self.methods.items():
            setattr(self.owner, name, self.timed(method))
        return self

    def timed(self, method):
        def run(*args, **kwargs):
            clocks = time.perf_counter, time.process_time, time.thread_time
            before = [clock() for clock in clocks]
            try:
                return method(*args, **kwargs)
            finally:
                spent = [clock() - start for clock, start in zip(clocks, before, strict=True)]
                self.clock += spent[0]
                self.processor += spent[1]
                self.thread += spent[2]

        return run

    def __exit__(self, *_):
        for name, method in self.methods.items():
            setattr(self.owner, name, method)


HOOKS = [name for name in vars(Monitor) if name.startswith("on_") and name != "on_train_end"]


def fit(config, every, epochs, *options):
    """Of a run without the pictures at its end: seconds of the clock, of the processor, and the share of this
    thread's time that is spent in the monitor; seconds of the pictures at the end."""
    here = os.getcwd()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        os.chdir(folder)
        try:
            with (
                Stopwatch(Trainer, "fit") as whole,
                Stopwatch(Monitor, "on_train_end") as last,
                Stopwatch(Monitor, *HOOKS, "state_dict") as own,
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
    share = own.thread / (whole.thread - last.thread)
    return whole.clock - last.clock, whole.processor - last.processor, share, last.clock


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
        own = statistics.median(a[2] for a, _ in pairs)
        last = statistics.median(a[3] for a, _ in pairs)
        print(
            f"{config:12}{epochs:3} epochs{seconds:8.2f} s; with monitors: clock {clock:.3f}, "
            f"processor {processor:.3f}, the monitor's own share {own:.3f}; last pictures {last:.2f} s",
            flush=True,
        )
        rows.append(
            {
                "run": config,
                "epochs": epochs,
                "seconds": round(seconds, 2),
                "ratio": round(clock, 3),
                "ratio_processor": round(processor, 3),
                "own_share": round(own, 4),
                "last_pictures_seconds": round(last, 2),
            }
        )
    if arguments.save:
        save("monitors", rows)


if __name__ == "__main__":
    main()
