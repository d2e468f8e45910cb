"""What a step costs beyond torch.nn's, in parts: the least that hand-written layers which keep less can take.

python benchmarks/remaking.py [--models resnet50,vit_b_16] [--rounds 7] [--save]

functions  the step with keep="all", over torch.nn's: the same kernels from Functions in Python, and nothing
           made again
remade     seconds in which backward makes again what was not kept, over torch.nn's step: PyTorch's kernels
           alone, a pass or two over memory for each tensor
converted  the step of ``convert(model)``, over torch.nn's

No way of remembering origins, however cheap, takes less than ``functions`` and ``remade`` together. The
contestants take turns, one step each; medians; float32, as many images as in benchmarks/speed.py.
"""

import math
import statistics
import time

import torch
import vision
from speed import batch_of, seconds
from timing import merge

import manualnn
from manualnn.memory import Recorder


class Stopwatch:
    """Seconds that recipes take to recompute values, while the block runs."""

    def __enter__(self):
        self.seconds, self._set_recipe = 0.0, Recorder.set_recipe

        def set_recipe(recorder, t, recompute, sources, op, is_view=False, in_place=None):
            in_place = None if in_place is None else self.timed(in_place)
            self._set_recipe(recorder, t, self.timed(recompute), sources, op, is_view, in_place)

        Recorder.set_recipe = set_recipe
        return self

    def timed(self, make):
        def run(*values):
            start = time.perf_counter()
            try:
                return make(*values)
            finally:
                self.seconds += time.perf_counter() - start

        return run

    def __exit__(self, *_):
        Recorder.set_recipe = self._set_recipe


class KeepsAll(vision.Task):
    """The model converted, with nothing made again."""

    def __init__(self, name, batch, size):
        super().__init__(name, vision.THEIRS, "fp32", batch, size)
        self.model = manualnn.convert(self.model, keep="all")
        self.parameters = list(self.model.parameters())


def row(name, found):
    batch = batch_of(name, "fp32", found)
    theirs = vision.Task(name, vision.THEIRS, "fp32", batch, found.size)
    ours = vision.Task(name, vision.OURS, "fp32", batch, found.size)
    every = KeepsAll(name, batch, found.size)
    tasks = theirs, every, ours
    for task in tasks * 2:
        task()
    rounds = []
    for i in range(found.rounds):
        taken = {}
        for task in tasks[i % 3 :] + tasks[: i % 3]:
            with Stopwatch() as remaking:
                taken[task] = seconds(task)
            if task is ours:
                remade = remaking.seconds
        rounds.append((taken[every], remade, taken[ours], taken[theirs]))
    shares = [statistics.median(r[i] / r[3] for r in rounds) for i in range(3)]
    parts = dict(zip(("functions", "remade", "converted"), shares, strict=True))
    made = {"model": name, "device": "cpu", "size": found.size, "batch": batch}
    made |= {part: round(share, 4) for part, share in parts.items()}
    return made | {"machine": vision.where("cpu")}


def main():
    parser = vision.parser_of(__doc__)
    vision.arguments(parser)
    parser.add_argument("--batch", type=int, help="of all models")
    parser.add_argument("--rounds", type=int, default=7)
    parser.set_defaults(precision="fp32", device="cpu")
    found = vision.parsed(parser)
    if (found.precision, found.compile, found.device) != (["fp32"], False, "cpu"):
        parser.error("it measures float32 on the CPU, without torch.compile")
    torch.set_num_threads(2)
    rows = []
    for name in found.models:
        rows.append(row(name, found))
        made = rows[-1]
        print(
            f"{name:20} batch {made['batch']:3}   functions {made['functions']:.3f}   "
            f"remade {made['remade']:.3f}   converted {made['converted']:.3f}",
            flush=True,
        )
        if found.save:
            merge("remaking", rows, ("model", "device", "size"))
    for part in ("functions", "converted"):
        mean = math.exp(statistics.fmean(math.log(r[part]) for r in rows))
        print(f"{part}, geometric mean over {len(rows)} models: {mean:.3f}")
    least = [math.log(r["functions"] + r["remade"]) for r in rows]
    print(f"functions and remade together: {math.exp(statistics.fmean(least)):.3f}")


if __name__ == "__main__":
    main()
