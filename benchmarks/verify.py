"""What the verification of recomputed tensors costs: a training step with it over the step without.

python benchmarks/verify.py [--models resnet18,...] [--size 64] [--batch 4] [--rounds 15] [--save]

The two take turns, one step each, in one process; a row's ratio is the median of the rounds' ratios, which on
a busy machine is no better than a few hundredths. Its share is what a clock in the same steps says: the time
between entering and leaving the verification, over the step's. Without options ten small models at 64×64 in
batches of four, where Python's share is largest; --large takes the eight of the tables of memory and speed at
224×224, in the batches that speed.py takes.
"""

import math
import statistics
import time

import torch
import vision
from speed import batch_of, seconds
from timing import merge

import manualnn
from manualnn.memory.packed import Packed
from manualnn.memory.recorder import Recorder

SMALL = (
    *("resnet18", "resnet34", "vgg11_bn", "squeezenet1_1", "mobilenet_v2", "mobilenet_v3_small"),
    *("shufflenet_v2_x0_5", "efficientnet_b0", "mnasnet0_5", "densenet121"),
)


class Clock:
    """The time inside the verification, counted once where one part calls another."""

    PARTS = ((Recorder, "_take_fingerprint"), (Recorder, "_is_unchanged"), (Packed, "verify"))

    def __init__(self):
        self.seconds, self._depth = 0.0, 0
        for owner, name in self.PARTS:
            setattr(owner, name, self._timed(getattr(owner, name)))

    def _timed(self, call):
        def timed(*args):
            start, self._depth = time.perf_counter(), self._depth + 1
            try:
                return call(*args)
            finally:
                self._depth -= 1
                if not self._depth:
                    self.seconds += time.perf_counter() - start

        return timed


def task(name, found, verify):
    made = vision.Task(name, vision.THEIRS, "fp32", found.batch, found.size)
    manualnn.convert(made.model, verify=verify)
    return made


def row(name, found, clock):
    found.batch = found.given or (None if found.large else 4)  # None: batch_of decides
    found.batch = batch_of(name, "fp32", found)
    tasks = [task(name, found, verify) for verify in (True, False)]
    for each in tasks * 2:
        each()
    rounds, shares = [], []
    for i in range(found.rounds):
        timed = {}
        for at in (0, 1) if i % 2 else (1, 0):
            clock.seconds = 0.0
            timed[at] = seconds(tasks[at])
            if at == 0:
                shares.append(clock.seconds / timed[at])
        rounds.append((timed[0], timed[1]))
    made = {"model": name, "size": found.size, "batch": found.batch, "machine": vision.where("cpu")}
    made["seconds"] = round(statistics.median(b for _, b in rounds), 4)
    made["ratio"] = round(statistics.median(a / b for a, b in rounds), 4)
    return made | {"share": round(statistics.median(shares), 4)}


def main():
    parser = vision.parser_of(__doc__)
    parser.add_argument("--models", help="names, with commas between them")
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--size", type=int, help="of the images")
    parser.add_argument("--batch", dest="given", type=int)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--save", action="store_true", help="into benchmarks/results")
    found = parser.parse_args()
    names = found.models.split(",") if found.models else vision.NAMES if found.large else SMALL
    found.size = found.size or (224 if found.large else 64)
    found.device = "cpu"
    torch.set_num_threads(2)
    clock, rows = Clock(), []
    for name in names:
        rows.append(row(name, found, clock))
        made = rows[-1]
        print(
            f"{name:20} batch {made['batch']:3} {made['seconds']:8.4f} s  "
            f"ratio {made['ratio']:.4f}  share {made['share']:.4f}",
            flush=True,
        )
        if found.save:
            merge("verify", rows, ("model", "size", "batch"))
    mean = math.exp(sum(math.log(r["ratio"]) for r in rows) / len(rows))
    share = statistics.mean(r["share"] for r in rows)
    print(f"{len(rows)} models at {found.size}: ratio {mean:.4f}, share {share:.4f}")


if __name__ == "__main__":
    main()
