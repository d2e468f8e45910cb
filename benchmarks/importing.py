"""What ``import manualnn`` costs over ``import torch``: processes in pairs, medians, from bytecode.

python benchmarks/importing.py [--rounds 15] [--save]
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time

from timing import machine, save


def seconds(module, bytecode):
    # As after an installation, whatever this process says: both modules are compiled once, and then read.
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    environment["PYTHONPYCACHEPREFIX"] = bytecode
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", f"import {module}"], check=True, env=environment)
    return time.perf_counter() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--save", action="store_true", help="write results/importing.json")
    arguments = parser.parse_args()
    pairs = []
    with tempfile.TemporaryDirectory() as bytecode:
        seconds("torch", bytecode), seconds("manualnn", bytecode)
        for i in range(arguments.rounds):
            order = ("torch", "manualnn") if i % 2 else ("manualnn", "torch")
            pairs.append({module: seconds(module, bytecode) for module in order})
    ratio = statistics.median(p["manualnn"] / p["torch"] for p in pairs)
    torchs = statistics.median(p["torch"] for p in pairs)
    print(*(f"{k}: {v}" for k, v in machine().items()), sep="\n")
    print(f"import torch {torchs:.2f} s; import manualnn / import torch {ratio:.3f}")
    if arguments.save:
        save("importing", [{"import torch, s": round(torchs, 3), "ratio": round(ratio, 3)}])


if __name__ == "__main__":
    main()
