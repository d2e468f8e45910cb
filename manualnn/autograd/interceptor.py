"""Who listens to a thread's calls of Functions: how each output was made, and what was saved for backward.

``manualnn.memory`` registers the recorder of a forward pass here; what calls Functions asks here, and knows
nothing of it. A recorder has ``busy`` and ``dispatch_modes``, and the methods that ``Function.apply`` and
``Activation.apply_`` call: ``run_function``, ``pin_recipe``, ``set_placeholder``, ``value_of``.
"""

import threading
from typing import Any

import torch

from manualnn._torch import (
    dispatch_modes,
    forward_level,
    saved_tensors_hooks_allowed,
    top_saved_tensors_hooks,
    transforms_active,
)


class _Here(threading.local):
    recorder: Any = None  # in each thread, so that it can be asked for where none was set


here = _Here()


def current():
    """The recorder of this thread's forward pass, or None."""
    return here.recorder


def active():
    """The recorder that may record what this thread does now, or None.

    None as well where others receive what is saved (a checkpoint's hooks, an offloader's), or change what an
    op does: a transform of torch.func, forward-mode differentiation, a dispatch mode, a compiler.
    """
    recorder = here.recorder
    if recorder is None or recorder.busy or not torch.is_grad_enabled():
        return None
    others = (
        transforms_active()
        or forward_level() >= 0
        or dispatch_modes() != recorder.dispatch_modes
        or top_saved_tensors_hooks(True) is not None
        or not saved_tensors_hooks_allowed()
    )
    return None if others else recorder


def running():
    """Whether a Function is running whose output's recipe will be asked for."""
    recorder = here.recorder
    return recorder is not None and recorder.busy
