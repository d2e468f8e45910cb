"""Who raises: PyTorch of its own accord, or code that somebody has written by hand?"""

import traceback
from pathlib import Path

import torch

from manualnn.tools.checks.graph import own_nodes

_FUNCTIONS = Path(torch.__file__).parent / "_functorch" / "autograd_function.py"
_OTHERS = (Path(torch.__file__).parent, Path(__file__).parent)  # torch, and check


def of_pytorch(error, outputs):
    """Whether backward was refused by PyTorch: no code of anybody else's ran where it was, and what is refused
    does not come from a hand-written Function, which the message would name."""
    if any(_is_elsewhere(code) for code in _codes(error)):
        return False
    return not any(node.name() in str(error) for node in own_nodes(outputs))


def in_a_function(error):
    """Whether it was raised under torch.func while a Function ran: its forward, or its rule for vmap."""
    return any(Path(code.co_filename) == _FUNCTIONS for code in _codes(error))


def _codes(error):
    return [frame.f_code for frame, _ in traceback.walk_tb(error.__traceback__)]


def _is_elsewhere(code):
    path = Path(code.co_filename)
    return not any(path.is_relative_to(folder) for folder in _OTHERS)
