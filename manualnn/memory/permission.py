"""Whether a forward pass may be recorded now."""

import torch

from manualnn._torch import (
    all_dispatch_modes,
    all_function_modes,
    forward_level,
    saved_tensors_hooks_allowed,
    top_saved_tensors_hooks,
    transforms_active,
)
from manualnn.autograd.interceptor import here


def may_record():
    """Whether a forward pass may be recorded now: plain eager autograd, and no other code saves tensors."""
    return (
        torch.is_grad_enabled()
        and here.recorder is None
        and not torch.compiler.is_compiling()
        and not transforms_active()
        and forward_level() < 0
        and not torch.jit.is_tracing()
        and not _foreign_modes()
        and saved_tensors_hooks_allowed()
        and top_saved_tensors_hooks(True) is None
    )


def _foreign_modes():
    """Whether there are modes around the model that may change what an op does, or must see it before we do.

    Not one that chooses the device of what is created, which sees none of ours; nor one of ours, which says
    that it only looks on.
    """
    functions, dispatches = all_function_modes(), all_dispatch_modes()
    return any(type(m).__module__ != "torch.utils._device" for m in functions) or any(
        not getattr(m, "only_looks_on", False) for m in dispatches
    )
