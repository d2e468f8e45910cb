"""What a step frees is kept for the next one: counted in page faults, in processes of their own."""

import ctypes
import os
import platform
import subprocess
import sys

import pytest

from manualnn.memory.allocator import keep_freed_memory

pytestmark = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="there is no glibc, whose allocator is told"
)
SCRIPT = """
import resource
import sys
import torch
import manualnn

layers = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.ReLU())
if sys.argv[1] != "torch":
    manualnn.convert(layers, keep=sys.argv[1])


def fill():  # 160 MB, in blocks that glibc by itself maps anew each time, as all of more than 32 MB
    blocks = [torch.empty(10 << 20) for _ in range(4)]
    for block in blocks:
        block.zero_()


def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


for _ in range(3):
    fill()
before = faults()
fill()
print(faults() - before)
"""


def faults(keep, **more):
    environment = {k: v for k, v in os.environ.items() if "MALLOC" not in k} | more
    run = [sys.executable, "-c", SCRIPT, keep]
    return int(subprocess.run(run, check=True, capture_output=True, env=environment).stdout)


def test_a_converted_models_process_keeps_what_it_frees():
    assert faults("less") < 1000 < faults("torch")


@pytest.mark.parametrize(
    "name, value",
    [
        ("MALLOC_TRIM_THRESHOLD_", "1000000"),
        ("MALLOC_MMAP_THRESHOLD_", "1000000"),
        ("GLIBC_TUNABLES", "glibc.rtld.nns=4:glibc.malloc.trim_threshold=1000000"),
    ],
)
def test_who_has_set_the_allocator_is_not_overruled(name, value, monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", None)  # nothing is called
    monkeypatch.setenv(name, value)
    assert keep_freed_memory.__wrapped__() is False
