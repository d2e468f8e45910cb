"""An epoch of MNIST through ``train.py``, over a bare torch.nn loop and over the usual DataLoader.

python benchmarks/epoch.py [--data ../shared/data] [--rounds 5] [--save]

All train 784-512-256-10 with dropout on the same 55,000 images in batches of 128 and look at the
other 5,000 after the epoch. ``train.py`` draws its progress bar and writes TensorBoard's curves and the
checkpoints. A round runs all contestants, each in a process of its own; the first epoch of a process,
which pays for warming up, is left out.
"""

import argparse
import pathlib
import statistics
import subprocess
import sys
import time

import torch
from timing import machine, save
from torch.utils.data import DataLoader, Subset
from training import train

EPOCHS = 4


def network():
    layers = [torch.nn.Flatten()]
    for n_prev, n in ((784, 512), (512, 256)):
        layers += [torch.nn.Linear(n_prev, n), torch.nn.ReLU(), torch.nn.Dropout(0.3)]
    return torch.nn.Sequential(*layers, torch.nn.Linear(256, 10))


def in_memory(dataset, batch):
    """Batches of tensors, shuffled if for training: the least that a loop can do."""
    images, labels = dataset.data.unsqueeze(1), dataset.targets
    mean, std = images[:55_000].float().mean() / 255, images[:55_000].float().std() / 255

    def batches(part, shuffle):
        order = part[torch.randperm(len(part))] if shuffle else part
        for index in order.split(batch):
            yield (images[index].float() / 255 - mean) / std, labels[index]

    everything = torch.arange(60_000)
    return (lambda: batches(everything[:55_000], True)), lambda: batches(everything[55_000:], False)


def usual(dataset, batch):
    """torchvision's transforms on one PIL image at a time."""
    train_part, val_part = Subset(dataset, range(55_000)), Subset(dataset, range(55_000, 60_000))
    loaders = (
        DataLoader(train_part, batch, shuffle=True),
        DataLoader(val_part, batch),
    )
    return (lambda: iter(loaders[0])), (lambda: iter(loaders[1]))


def loop(data, kind):
    """Seconds of each epoch of a hand-made loop over torch.nn; printed, for the process above."""
    from torchvision import transforms
    from torchvision.datasets import MNIST

    as_usual = transforms.Compose(
        [transforms.ToTensor(), transforms.Normalize((0.1307,), (0.3081,))]
    )
    dataset = MNIST(data, transform=as_usual)
    training, validation = (usual if kind == "usual" else in_memory)(dataset, 128)
    torch.manual_seed(0)
    model, loss_function = network(), torch.nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=1e-5)
    for _ in range(EPOCHS):
        start = time.perf_counter()
        model.train()
        for x, y in training():
            optimizer.zero_grad()
            loss_function(model(x), y).backward()
            optimizer.step()
        model.eval()
        with torch.no_grad():
            right = sum((model(x).argmax(1) == y).sum().item() for x, y in validation())
        print(time.perf_counter() - start, right / 5_000)


def loop_in_a_process(data, kind):
    command = [sys.executable, __file__, "--data", data, "--loop", kind]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    return [float(line.split()[0]) for line in run.stdout.splitlines()][1:]


def through_train(data, *options):
    split = 1 / 12  # 5,000 of 60,000
    curves = train(
        "mnist",
        *("--data.root", data, "--data.val_fraction", str(split)),
        *("--trainer.max_epochs", str(EPOCHS), *options),
    )
    return [value for _, value in curves["time/epoch"]][1:]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="../shared/data", help="folder that holds MNIST/raw")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--loop", choices=("bare", "usual"), help=argparse.SUPPRESS)
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/epoch.json")
    arguments = parser.parse_args()
    data = str(pathlib.Path(arguments.data).resolve())
    if arguments.loop:
        loop(data, arguments.loop)
        return
    contestants = {
        "train.py": lambda: through_train(data),
        "train.py, bf16-mixed": lambda: through_train(data, "--trainer.precision", "bf16-mixed"),
        "bare torch.nn loop, images in memory": lambda: loop_in_a_process(data, "bare"),
        "DataLoader, a PIL image at a time": lambda: loop_in_a_process(data, "usual"),
    }
    print(*(f"{k}: {v}" for k, v in machine().items()), sep="\n")
    rounds = [
        {name: statistics.median(run()) for name, run in contestants.items()}
        for _ in range(arguments.rounds)
    ]
    rows = []
    for name in contestants:
        seconds = statistics.median(r[name] for r in rounds)
        ratio = statistics.median(r["train.py"] / r[name] for r in rounds)
        print(f"{name:40}{seconds:6.2f} s    train.py / this {ratio:5.2f}")
        rows.append({"loop": name, "seconds": round(seconds, 3), "ratio": round(ratio, 3)})
    if arguments.save:
        save("epoch", rows)


if __name__ == "__main__":
    main()
