"""One op, forward and backward, ours over torch.nn's: on 8×8 and on 16 million elements.

python benchmarks/ops.py [--only NAME] [--save]
"""

import argparse
import inspect
import pathlib
import sys

import torch
from timing import machine, ratio, save

from manualnn import nn
from manualnn.ops.catalogue import families

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "examples"))
from snake import Snake

OPS = families()
FAMILIES = "activations", "losses", "dropout", "linear"
LOSSES = [op.twin.module for op in OPS["losses"]]
SIZES = {"Linear": {"in_features": 8, "out_features": 8}}


class SnakeOfOperations(torch.nn.Module):
    """What stands beside a user's own activation with a learned number: the same in PyTorch's operations."""

    def __init__(self):
        super().__init__()
        self.alpha = torch.nn.Parameter(torch.tensor(1.0))

    def forward(self, z):
        return Snake.g(z, self.alpha)


def modules():
    """{name of a module: its options}: of each op that keeps a shape, with the options of its first example."""
    found = {}
    for op in (op for family in FAMILIES for op in OPS[family]):
        for name in {op.twin.module, *op.twin.others} & {*vars(torch.nn)}:
            takes = inspect.signature(getattr(torch.nn, name)).parameters
            options = {k: v for k, v in op.examples[0].options.items() if k in takes}
            found.setdefault(name, SIZES.get(name, options))
    return found


def inputs(name, shape):
    x = torch.randn(*shape)
    if name == "BCELoss":
        x = x.sigmoid()
    x.requires_grad_()
    if name not in LOSSES:
        return (x,)
    if name in ("CrossEntropyLoss", "NLLLoss"):
        return x, torch.randint(0, shape[1], (shape[0],))
    return x, torch.rand(*shape)


def step(module, tensors):
    d_out = torch.ones_like(module(*tensors))

    def run():
        module(*tensors).backward(d_out)

    return run


def measure(name, shape, **timing):
    tensors = inputs(name, shape)
    if name == "Snake":
        ours, theirs = Snake.Module(), SnakeOfOperations()
    else:
        options = modules()[name]
        ours, theirs = getattr(nn, name)(**options), getattr(torch.nn, name)(**options)
    return ratio(step(ours, tensors), step(theirs, tensors), **timing)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", help="one module's name")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/ops.json")
    arguments = parser.parse_args()
    names = [arguments.only] if arguments.only else [*modules(), "Snake"]
    print(*(f"{k}: {v}" for k, v in machine().items()), sep="\n")
    print(f"\n{'':20}{'8×8':>8}{'ours µs':>10}{'torch µs':>10}{'16 M':>8}")
    rows = []
    for name in names:
        small, ours, theirs = measure(name, (8, 8))
        row = {"op": name, "8x8": round(small, 3)}
        line = f"{name:20}{small:8.2f}{ours:10.1f}{theirs:10.1f}"
        if name != "Linear":
            large, *_ = measure(name, (4096, 4096), rounds=9)
            row["16M"] = round(large, 3)
            line += f"{large:8.2f}"
        print(line, flush=True)
        rows.append(row)
    if arguments.save:
        save("ops", rows)


if __name__ == "__main__":
    main()
