"""What the suite runs on, in one line: the first thing to know of a failure that another machine has not."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

PACKAGES = ("manualnn", "torchvision", "lightning", "numpy", "onnx", "onnxruntime", "pytest")


def versions() -> str:
    """Python, the packages, the processor and what torch uses of it, the GPU if there is one."""
    parts = [
        f"Python {platform.python_version()}",
        f"torch {torch.__version__}",
        *map(package, PACKAGES),
    ]
    parts.append(
        f"{processor()}, {os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}"
    )
    if torch.cuda.is_available():
        parts.append(torch.cuda.get_device_name())
    return "; ".join(parts)


def package(name: str) -> str:
    try:
        return f"{name} {version(name)}"
    except PackageNotFoundError:
        return f"no {name}"


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


if __name__ == "__main__":
    print(versions())
