"""One op, forward and backward, ours over torch.nn's: on 8×8 and on 16 million elements.

python benchmarks/ops.py [--only NAME] [--save]
"""

import argparse

import torch
from timing import machine, ratio, save

from manualnn import nn

NEED_OPTIONS = {"Softmax", "Softmax2d", "Softmin", "LogSoftmax", "Threshold"}
ACTIVATIONS = [name for name in nn.activations.__all__ if name not in NEED_OPTIONS]
OPTIONS = {
    "Threshold": (0.1, 0.0),
    "Softmax": (-1,),
    "Softmin": (-1,),
    "LogSoftmax": (-1,),
    "Linear": (8, 8),
    "Dropout": (0.5,),
    "AlphaDropout": (0.5,),
}
LOSSES = "CrossEntropyLoss NLLLoss BCELoss BCEWithLogitsLoss MSELoss L1Loss SmoothL1Loss HuberLoss".split()


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
    options = OPTIONS.get(name, ())
    tensors = inputs(name, shape)
    ours, theirs = getattr(nn, name)(*options), getattr(torch.nn, name)(*options)
    return ratio(step(ours, tensors), step(theirs, tensors), **timing)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", help="one module's name")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/ops.json")
    arguments = parser.parse_args()
    names = [arguments.only] if arguments.only else [*ACTIVATIONS, *OPTIONS, *LOSSES]
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
