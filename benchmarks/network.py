"""784-512-256-10 with ReLU, forward + loss + backward, ours over torch.nn: layers one by one, and MLP.

python benchmarks/network.py [--save]
"""

import argparse

import torch
from timing import machine, ratio, save

import manualnn
from manualnn import nn

SIZES = [784, 512, 256, 10]


def network(module):
    layers = []
    for n_prev, n in zip(SIZES[:-2], SIZES[1:-1], strict=True):
        layers += [module.Linear(n_prev, n), module.ReLU()]
    return module.Sequential(*layers, module.Linear(*SIZES[-2:]))


def step(model, loss, x, y):
    def run():
        for p in model.parameters():
            p.grad = None
        loss(model(x), y).backward()

    return run


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/network.json")
    arguments = parser.parse_args()
    theirs = network(torch.nn)
    contestants = {
        "layers": manualnn.convert(network(torch.nn)),
        "MLP": nn.MLP(SIZES, "relu"),
    }
    print(*(f"{k}: {v}" for k, v in machine().items()), sep="\n")
    rows = []
    for batch in (1, 128):
        x, y = torch.randn(batch, 784), torch.randint(0, 10, (batch,))
        reference = step(theirs, torch.nn.CrossEntropyLoss(), x, y)
        for name, model in contestants.items():
            model.load_state_dict(theirs.state_dict())
            ours = step(model, nn.CrossEntropyLoss(), x, y)
            median, a, b = ratio(ours, reference, seconds=6, rounds=41)
            print(f"batch {batch:4}  {name:8}{median:6.2f}   {a:8.0f} µs, torch {b:8.0f} µs")
            rows.append({"batch": batch, "model": name, "ratio": round(median, 3)})
    if arguments.save:
        save("network", rows)


if __name__ == "__main__":
    main()
