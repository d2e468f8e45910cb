"""A program as a script of its own."""

import inspect
import re

from fuzzing import helpers

HEAD = """\
import concurrent.futures, contextlib, copy, gc, sys, warnings

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from manualnn import convert
"""
FOOT = """\
def flat(seen):
    for s in seen:
        if isinstance(s, (list, tuple)):
            yield from flat(s)
        elif s is not None:
            yield s.detach().clone()


warnings.simplefilter("ignore")
torch.set_num_threads(1)
torch.set_default_dtype(torch.{dtype})
results = []
for keep in (None, "{keep}"):
    torch.manual_seed(0)
    net = Net()
    if keep:
        convert(net, keep=keep)
    seen = []
    torch.manual_seed(0)
    try:
        script(net, seen)
        seen.append([p.grad for p in net.parameters()])
        seen.append(list(net.buffers()))
    except Exception as error:
        print(f"keep={{keep}} raises {{type(error).__name__}}: {{error}}")
        if keep:
            sys.exit(1)
    results.append(list(flat(seen)))
off = [float((a - b).abs().max()) if a.numel() else 0.0 for a, b in zip(*results)]
print("largest differences from torch:", off)
"""


def printed(program, verdict=None):
    """The text of a script that shows the difference."""
    source = program.source()
    needed = _needed(source)
    said = "" if verdict is None else f"# {verdict.kind}: {' '.join(verdict.text.split())}\n"
    return "\n\n".join(
        (
            f"# seed {program.seed}, keep={program.keep!r}, {program.dtype}\n{said}{HEAD}",
            *(inspect.getsource(helpers.NAMES[name]).rstrip() + "\n" for name in needed),
            source,
            FOOT.format(dtype=program.dtype, keep=program.keep),
        )
    )


def _needed(source):
    """The helpers that a text mentions, and those that these mention, in the order of the file."""
    found, texts = set(), [source]
    while texts:
        text = texts.pop()
        for name, value in helpers.NAMES.items():
            if name not in found and re.search(rf"\b{name}\b", text):
                found.add(name)
                texts.append(inspect.getsource(value))
    return [name for name in helpers.NAMES if name in found]
