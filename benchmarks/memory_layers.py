"""Bytes held between forward and backward, ours and torch.nn's, of each module in float32.

python benchmarks/memory_layers.py [--save]

Storages that the graph keeps, each counted once; the parameters and the target are not counted, an
input is.
"""

import argparse

import torch
from network import network
from ops import ACTIVATIONS, LOSSES, OPTIONS, inputs
from timing import save

from manualnn import nn

SHAPE = (256, 1024)
KIB = 1024


def held(module, tensors):
    """Bytes that the graph of module(*tensors) keeps."""
    uncounted = [p.untyped_storage().data_ptr() for p in (*module.parameters(), *tensors[1:])]
    storages = {}

    def note(t):
        storages[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        out = module(*tensors)
    del out
    return sum(n for at, n in storages.items() if at not in uncounted)


def rows():
    for name in [*ACTIVATIONS, *OPTIONS, *LOSSES]:
        options = (1024, 1024) if name == "Linear" else OPTIONS.get(name, ())
        tensors = inputs(name, SHAPE)
        yield (
            name,
            held(getattr(nn, name)(*options), tensors),
            held(getattr(torch.nn, name)(*options), tensors),
        )
    x = (torch.randn(128, 784),)
    yield "MLP 784-512-256-10", held(nn.MLP([784, 512, 256, 10]), x), held(network(torch.nn), x)
    layers = []
    for n_prev, n in ((784, 512), (512, 256)):
        layers += [torch.nn.Linear(n_prev, n), torch.nn.GELU(), torch.nn.Dropout(0.3)]
    theirs = torch.nn.Sequential(*layers, torch.nn.Linear(256, 10))
    yield (
        "MLP, GELU, dropout",
        held(nn.MLP([784, 512, 256, 10], "gelu", dropout=0.3), x),
        held(theirs, x),
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--save", action="store_true", help="write benchmarks/results/memory_layers.json"
    )
    arguments = parser.parse_args()
    table = []
    print(f"{'':24}{'ours KiB':>10}{'torch KiB':>11}{'ratio':>8}")
    for name, ours, theirs in rows():
        print(f"{name:24}{ours / KIB:10.0f}{theirs / KIB:11.0f}{ours / theirs:8.2f}")
        table.append({"module": name, "ours": ours, "torch": theirs})
    if arguments.save:
        save("memory_layers", table)


if __name__ == "__main__":
    main()
