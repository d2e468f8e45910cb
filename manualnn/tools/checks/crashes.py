"""What ends Python where it is called without rows: refused, so that a check goes on."""

import torch

from manualnn._torch import TorchDispatchMode
from manualnn.tools.checks.graph import nodes

# PyTorch divides by the number of rows there (SIGFPE).
NODES = ("PdistBackward0",)
CRASH = {"aten::_pdist_forward", "aten::_pdist_backward"}


def crashes(outputs):
    """Whether one of these is in the graph of the outputs: to watch every call has its price."""
    return any(node.name() in NODES for node in nodes(outputs))


class CrashesRefused(TorchDispatchMode):
    """Raises NotImplementedError in the place of a call that would end Python."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func._schema.name in CRASH:
            tensors = [t for t in args if isinstance(t, torch.Tensor)]
            if any(t.dim() and not len(t) for t in tensors):
                raise NotImplementedError(f"{func._schema.name} without rows ends Python")
        return func(*args, **(kwargs or {}))
