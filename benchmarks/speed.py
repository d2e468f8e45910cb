"""Time of a training step of torchvision's models, over torch.nn's: forward, cross_entropy, backward.

python benchmarks/speed.py [--models resnet50,vit_b_16] [--precision fp32,bf16] [--compile] [--save]

The contestants take turns, one step each; a row's ratio is the median of the rounds' ratios. On a CPU each has
a process of its own, as its user has: in one process a step finds the memory that the other's left.
On a CPU with two threads and as many images as take torch.nn about a second and a half, on a GPU with 0.9 of
the largest batch that fits torch.nn, unless --batch says how many.
"""

import contextlib
import math
import multiprocessing
import statistics
import time

import torch
import vision
from timing import merge

TARGET = 1.5  # seconds


def batch_of(name, precision, found):
    if found.batch:
        return found.batch
    if found.device == "cuda":
        fit = vision.fits(name, vision.THEIRS, precision, found.size)
        return max(1, int(0.9 * vision.largest_batch(fit)))
    few = 2
    task = Alone(name, vision.THEIRS, precision, few, found.size)
    task()
    batch = min(64, max(few, round(few * TARGET / min(task(), task()))))
    task.end()
    return batch


class Here:
    """A contestant's step in this process: the seconds it takes."""

    def __init__(self, *what):
        self.task = vision.Task(*what)

    def __call__(self):
        start = time.perf_counter()
        self.task()
        return time.perf_counter() - start

    def end(self):
        pass


class Alone:
    """The same in a process of its own, with as many threads."""

    def __init__(self, *what):
        spawning = multiprocessing.get_context("spawn")
        self.pipe, other = spawning.Pipe()
        self.process = spawning.Process(
            target=step_when_asked, args=(other, torch.get_num_threads(), what), daemon=True
        )
        self.process.start()
        other.close()

    def __call__(self):
        self.pipe.send("step")
        return self.pipe.recv()

    def end(self):
        self.pipe.close()
        self.process.join()


def step_when_asked(pipe, threads, what):
    torch.set_num_threads(threads)
    task = Here(*what)
    with contextlib.suppress(EOFError):
        while pipe.recv():
            pipe.send(task())


def row(name, precision, found):
    batch = batch_of(name, precision, found)
    kinds = vision.contestants(found)
    place = Alone if found.device == "cpu" else Here
    tasks = {k: place(name, k, precision, batch, found.size, found.device) for k in kinds}
    for task in tasks.values():
        task()
        task()
    rounds = []
    for i in range(found.rounds):
        order = kinds[i % len(kinds) :] + kinds[: i % len(kinds)]
        rounds.append({kind: tasks[kind]() for kind in order})
    for task in tasks.values():
        task.end()
    of = {}
    for kind in kinds:
        ratios = [r[kind] / r[vision.THEIRS] for r in rounds]
        of[kind] = {"seconds": round(statistics.median(r[kind] for r in rounds), 4)}
        of[kind] |= {"ratio": round(statistics.median(ratios), 4)}
        of[kind] |= {"ratios": [round(r, 4) for r in ratios]}
    made = {"model": name, "precision": precision, "device": found.device, "size": found.size}
    return made | {"batch": batch, "contestants": of, "machine": vision.where(found.device)}


def show(made):
    cells = [
        f"{kind} {of['seconds']:.3f} s {of['ratio']:.3f}"
        for kind, of in made["contestants"].items()
    ]
    head = f"{made['model']}, {made['precision']}, batch {made['batch']}"
    print(f"{head:38}" + "   ".join(cells), flush=True)


def main():
    parser = vision.parser_of(__doc__)
    vision.arguments(parser)
    parser.add_argument("--batch", type=int, help="of all models")
    parser.add_argument("--rounds", type=int, default=7)
    found = vision.parsed(parser)
    if found.device == "cpu":
        torch.set_num_threads(2)
    rows = []
    for model in found.models:
        for precision in found.precision:
            rows.append(row(model, precision, found))
            show(rows[-1])
            torch.compiler.reset()
            if found.save:
                name = "speed" if found.size == 224 else f"speed_{found.size}"
                merge(name, rows, ("model", "precision", "device", "size"))
    for precision in found.precision:
        of = [r["contestants"] for r in rows if r["precision"] == precision]
        for kind in vision.contestants(found)[1:]:
            mean = math.exp(sum(math.log(o[kind]["ratio"]) for o in of) / len(of))
            print(f"{precision}, geometric mean over {len(of)} models, {kind}: {mean:.3f}")


if __name__ == "__main__":
    main()
