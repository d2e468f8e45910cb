"""Which moment it is: eager mode, a transform of torch.func, a compiler; differentiated again, or not."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch

from manualnn._torch import (
    forward_level,
    is_batched,
    transforms_active,
    within_jvp,
    without_torch_function,
)

R = TypeVar("R")


def eager() -> bool:
    """True when ``apply`` would take the eager face: no torch.func transform, no compiler."""
    return not (transforms_active() or torch.compiler.is_compiling())


def plain(tensor: torch.Tensor) -> bool:
    """True of a tensor that lies in memory as it says: no transform's, no compiler's, no batch of gradients."""
    return eager() and not is_batched(tensor)


def first_order(
    _grad_enabled: Any = torch.is_grad_enabled, _transforms: Any = transforms_active
) -> bool:
    """True while nothing differentiates what is being computed now.

    Inside ``backward`` that means: no ``create_graph=True``, no torch.func transform, no forward-mode
    level. Only then may a backward use an intermediate that was saved without its history, or let a
    one-pass kernel compute in place of its formula.
    """
    return not (_grad_enabled() or forward_level() >= 0 or _transforms())


def forward_mode() -> bool:
    """True inside a forward-mode AD level: what ``jvp`` needs must be saved.

    A graph of torch.compile enters the level without telling Python's side; torch.func knows of it.
    """
    return forward_level() >= 0 or (transforms_active() and within_jvp())


def bypass_function_mode(ask: Callable[..., R]) -> Callable[..., R]:
    """``ask``, which only asks what tensors are like, without telling a torch function mode of each question.

    A converted model has such a mode while it runs, and a question costs microseconds there.
    """

    @functools.wraps(ask)
    def run(*args):
        with without_torch_function():
            return ask(*args)

    return run
