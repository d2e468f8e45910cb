"""What the monitors cost: a run with them over the same run with ``--monitor.every off``.

python benchmarks/monitors.py [--data ../shared/data] [--rounds 5] [--epochs 8] [--save]

Both train through the command line, in one process and in turn: 784-512-256-10 on MNIST, the convolutions of
configs/mnist_cnn.yaml, and the default experiment on Digits. Timed is all of ``Trainer.fit``: the training,
its validation, its logging, the pictures drawn when it ends; what these take is given apart, too. The
processor's time of all threads is compared as well. On a busy machine both move by more than the monitors
cost; the share of the training thread's own time that is spent in the monitor's hooks moves least. It leaves
out that `nn.MLP` runs layer by layer in a watched step. What a process pays once, at its first pictures, is
printed first.
"""

import argparse
import contextlib
import io
import os
import pathlib
import statistics
import tempfile
import time
from dataclasses import dataclass

import lightning
from lightning.pytorch import Trainer
from timing import machine, save

from manualnn.training.cli import command as cli
from manualnn.training.monitors import Monitor
from manualnn.training.monitors.writing import Board

ROOT = pathlib.Path(__file__).resolve().parent.parent


class Stopwatch:
    """Calls of an owner's functions while the block runs, and the seconds in them by each of the clocks.

    One clock for what is called at each step: to ask for the time costs as much as such a call.
    """

    def __init__(self, owner, *names, clocks=(time.thread_time,)):
        self.owner, self.names, self.clocks = owner, names, clocks
        self.calls, self.seconds = 0, [0.0] * len(clocks)

    def __enter__(self):
        self.methods = {name: vars(self.owner)[name] for name in self.names}
        for name, method in self.methods.items():
            setattr(self.owner, name, self.timed(method))
        return self

    def timed(self, method):
        def run(*args, **kwargs):
            before = [clock() for clock in self.clocks]
            try:
                return method(*args, **kwargs)
            finally:
                self.calls += 1
                for i, clock in enumerate(self.clocks):
                    self.seconds[i] += clock() - before[i]

        return run

    def __exit__(self, *_):
        for name, method in self.methods.items():
            setattr(self.owner, name, method)


ALL = time.perf_counter, time.process_time, time.thread_time  # the last: of this thread alone
HOOKS = [name for name in vars(Monitor) if name.startswith("on_")]


@dataclass
class Run:
    """Seconds by the clock, of the processor; of this thread's time the share that is spent in the monitor, and
    its seconds; seconds of the pictures at the end; flow pictures, all in all."""

    clock: float
    processor: float
    share: float
    own: float
    last: float
    pictures: int


def fit(config, every, epochs, *options):
    here = os.getcwd()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        os.chdir(folder)
        try:
            with (
                Stopwatch(Trainer, "fit", clocks=ALL) as whole,
                Stopwatch(Monitor, "on_train_end", clocks=ALL) as last,
                Stopwatch(Monitor, *HOOKS, "state_dict") as own,
                Stopwatch(Board, "histograms") as pictures,  # which go with each flow picture
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
    (clock, processor, thread), (in_monitor,) = whole.seconds, own.seconds
    return Run(clock, processor, in_monitor / thread, in_monitor, last.seconds[0], pictures.calls)


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
        first = fit(config, "auto", 1, *options)
        print(
            f"{config:12}first epoch of the process: {first.own:.2f} s in the monitor", flush=True
        )
        pairs = []
        for i in range(arguments.rounds):
            order = ("auto", "off") if i % 2 else ("off", "auto")
            runs_of = {every: fit(config, every, epochs, *options) for every in order}
            pairs.append((runs_of["auto"], runs_of["off"]))

        row = {
            "run": config,
            "epochs": epochs,
            "seconds": round(statistics.median(off.clock for _, off in pairs), 2),
            "ratio": round(statistics.median(on.clock / off.clock for on, off in pairs), 3),
            "ratio_processor": round(
                statistics.median(on.processor / off.processor for on, off in pairs), 3
            ),
            "own_share": round(statistics.median(on.share for on, _ in pairs), 4),
            "last_pictures_seconds": round(statistics.median(on.last for on, _ in pairs), 3),
            "flow_pictures": statistics.median(on.pictures for on, _ in pairs),
        }
        print(
            "{run:12}{epochs:3} epochs{seconds:8.2f} s; with monitors: clock {ratio:.3f}, processor "
            "{ratio_processor:.3f}, the monitor's own share {own_share:.3f}; last pictures "
            "{last_pictures_seconds:.3f} s; flow pictures {flow_pictures}".format(**row),
            flush=True,
        )
        rows.append(row)
    if arguments.save:
        save("monitors", rows)


if __name__ == "__main__":
    main()
