"""Lines of source of the hand-written ops: how much there is to read.

python benchmarks/lines.py

A line counts if something stands in it: formulas in docstrings count, empty lines do not.
"""

import importlib
import inspect
import pkgutil
import statistics

from manualnn import Activation, Function, ops


def hand_written():
    """Name -> (class, lines) of each Function that is defined in manualnn.ops."""
    found = {}
    for info in pkgutil.walk_packages(ops.__path__, "manualnn.ops."):
        module = importlib.import_module(info.name)
        for name, cls in vars(module).items():
            if inspect.isclass(cls) and issubclass(cls, Function) and cls.__module__ == info.name:
                lines = [line for line in inspect.getsource(cls).splitlines() if line.strip()]
                found[name] = cls, len(lines)
    return found


def main():
    found = hand_written()
    activations = [lines for cls, lines in found.values() if issubclass(cls, Activation)]
    for title, lines in (("activations", activations), ("all ops", [n for _, n in found.values()])):
        print(
            f"{title}: {len(lines)}; lines, median {statistics.median(lines):g}, most {max(lines)}"
        )
    print(f"SiLU: {found['SiLU'][1]}")


if __name__ == "__main__":
    main()
