"""Accuracy on the test set of the experiments in configs/, over several seeds.

python benchmarks/accuracy.py [--data ../shared/data] [--seeds 5] [--only NAME] [--save]
"""

import argparse
import pathlib
import statistics
import time

from timing import save
from training import train

# Name of the row: the configuration, and what is changed in it.
EXPERIMENTS = {
    "digits": ("digits",),
    "mnist": ("mnist",),
    "mnist_cnn": ("mnist_cnn",),
    "mnist_sigmoid_quadratic": ("mnist_sigmoid_quadratic",),
    "mnist_sigmoid_quadratic_unscaled": (
        "mnist_sigmoid_quadratic",
        "--model.weight_init",
        "normal",
    ),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="../shared/data", help="folder that holds MNIST/raw")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--only", choices=EXPERIMENTS)
    parser.add_argument("--save", action="store_true", help="write results/accuracy[_NAME].json")
    arguments = parser.parse_args()
    rows = []
    for name in [arguments.only] if arguments.only else EXPERIMENTS:
        config, *changes = EXPERIMENTS[name]
        accuracies, seconds = [], []
        root = ("--data.root", str(pathlib.Path(arguments.data).resolve()))
        for seed in range(arguments.seeds):
            start = time.perf_counter()
            curves = train(
                config,
                *changes,
                *("--seed_everything", str(seed), "--test_best", "true"),
                *(root if name != "digits" else ()),
            )
            seconds.append(time.perf_counter() - start)
            accuracies.append(curves["test/acc"][-1][1])
            print(f"{name} seed {seed}: {accuracies[-1]:.4f} in {seconds[-1]:.0f} s", flush=True)
        mean = statistics.mean(accuracies)
        spread = statistics.stdev(accuracies) if len(accuracies) > 1 else 0.0
        print(f"{name}: {mean:.4f} ± {spread:.4f}, {min(accuracies):.4f} to {max(accuracies):.4f}")
        rows.append(
            {
                "experiment": name,
                "test/acc": [round(a, 4) for a in accuracies],
                "mean": round(mean, 4),
                "standard deviation": round(spread, 4),
                "seconds, median": round(statistics.median(seconds), 1),
            }
        )
    if arguments.save:
        save(f"accuracy_{arguments.only}" if arguments.only else "accuracy", rows)


if __name__ == "__main__":
    main()
