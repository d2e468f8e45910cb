"""What ``import manualnn`` costs over ``import torch``: processes in pairs, medians.

python benchmarks/importing.py [--rounds 15] [--save]
"""

import argparse
import statistics
import subprocess
import sys
import time

from timing import machine, save


def seconds(module):
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", f"import {module}"], check=True)
    return time.perf_counter() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--save", action="store_true", help="write results/importing.json")
    arguments = parser.parse_args()
    seconds("torch"), seconds("manualnn")
    pairs = []
    for i in range(arguments.rounds):
        order = ("torch", "manualnn") if i % 2 else ("manualnn", "torch")
        pairs.append({module: seconds(module) for module in order})
    ratio = statistics.median(p["manualnn"] / p["torch"] for p in pairs)
    torchs = statistics.median(p["torch"] for p in pairs)
    print(*(f"{k}: {v}" for k, v in machine().items()), sep="\n")
    print(f"import torch {torchs:.2f} s; import manualnn / import torch {ratio:.3f}")
    if arguments.save:
        save("importing", [{"import torch, s": round(torchs, 3), "ratio": round(ratio, 3)}])


if __name__ == "__main__":
    main()
