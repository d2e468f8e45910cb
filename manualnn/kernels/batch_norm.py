"""Batch normalisation by its own kernels: ``batch_norm.c``, called where they give ATen's bits.

None is the answer wherever ATen is to serve: another device, dtype or layout, a mode that wants to see each
operation, a machine whose ATen computes otherwise.
"""

import ctypes
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from manualnn._torch import suggest_memory_format, without_torch_function
from manualnn.kernels import build, trust
from manualnn.kernels.running import is_large, is_plain, may_run, pointers, shares

_SOURCE = Path(__file__).with_suffix(".c")
# Examples, channels, places: whole vectors and not, fewer places than lanes, fewer channels than a group.
_SHAPES = ((2, 8, 16), (3, 19, 9), (2, 3, 35), (1, 9, 8), (4, 5, 3), (2, 17, 1023), (3, 8, 2))
# Special values, ε and momentum: 1 − 0.9 and 1 − 1/3 round otherwise in float32 and in float64.
_TRIED: list[tuple[float | None, float, float]] = [
    *((None, 1e-5, momentum) for momentum in (0.1, 0.9, 0.6, 1 / 3, 0.0, 1.0)),
    *((special, 1e-5, 0.1) for special in (torch.inf, torch.nan, 1e-40, 3e38)),
    (None, 0.0, 0.1),
]


class Kernels(NamedTuple):
    """The functions of ``batch_norm.c``, and what keeps them loaded."""

    forward: Any
    backward: Any
    object: Any


def forward(
    x: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    momentum: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor] | None:
    """y, mu, rstd and an empty reserve, as ``torch.native_batch_norm`` gives them while training.

    x (N, C, *), by planes, float32; gamma, beta and the running statistics (C), which are moved.
    """
    parameters = (gamma, beta, running_mean, running_var)
    # What else is taken for a number is for ATen to say.
    if not {type(momentum), type(eps)} <= {float, int} or not _fit(x, parameters):
        return None
    kernels = _loaded()
    if kernels is None:
        return None
    channels = x.shape[1]
    y, mu, rstd = x.new_empty(x.shape), x.new_empty(channels), x.new_empty(channels)
    _call(kernels.forward, x, (y, mu, rstd, x, *parameters), eps, momentum)
    return y, mu, rstd, x.new_empty(0, dtype=torch.uint8)


def backward(
    needs: Sequence[bool],
    dy: Tensor,
    x: Tensor,
    gamma: Tensor | None,
    mu: Tensor,
    rstd: Tensor,
    empty_like: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Tensor | None, Tensor | None, Tensor | None] | None:
    """dx, dgamma and dbeta, as ATen's kernel gives them while training; None of what is not needed.

    empty_like: gives the memory for dx, by planes; it may be dy.
    """
    if not _fit(x, (gamma, mu, rstd)) or not _alike(dy, x):
        return None
    kernels = _loaded()
    if kernels is None:
        return None
    dx = None
    if needs[0]:
        dx = x.new_empty(x.shape) if empty_like is None else empty_like(x)
    # Each in memory of its own: whoever gets them may write over one.
    dgamma, dbeta = x.new_empty(x.shape[1]), x.new_empty(x.shape[1])
    _call(kernels.backward, x, (dx, dgamma, dbeta, x, dy, mu, rstd, gamma))
    return dx, dgamma if needs[1] else None, dbeta if needs[2] else None


def _fit(x, parameters):
    if not is_large(x) or x.dtype is not torch.float32 or x.dim() < 3 or not may_run():
        return False
    channels = x.shape[1]
    if not _plain(x) or x.numel() == x.shape[0] * channels:  # one place: ATen reads it by channels
        return False
    return all(
        p is None
        or (
            p.dtype is torch.float32
            and p.shape == (channels,)
            and is_plain(p)
            and p.is_contiguous()
        )
        for p in parameters
    )


def _alike(dy, x):
    return dy.dtype is x.dtype and dy.shape == x.shape and _plain(dy)


def _plain(t):
    """Whether it lies by planes, and ATen takes it so: of one channel it might as well lie by places."""
    return is_plain(t) and t.is_contiguous() and suggest_memory_format(t) is torch.contiguous_format


@functools.cache
def _loaded() -> Kernels | None:
    loaded = build.built_from(_SOURCE, ("batch_norm_forward", "batch_norm_backward"))
    if loaded is None:
        return None
    found = Kernels(loaded.batch_norm_forward, loaded.batch_norm_backward, loaded)
    for function in found[:2]:
        sizes = (ctypes.c_longlong,) * 3
        numbers = (ctypes.c_int, ctypes.c_double, ctypes.c_double)
        function.argtypes, function.restype = (*sizes, *numbers, ctypes.c_void_p), None
    with torch.no_grad(), without_torch_function():
        agrees = trust.passes(lambda: all(_agrees(found, shape) for shape in _SHAPES))
        return found if agrees else None


def _agrees(kernels, shape):
    """Whether forward and backward have ATen's bits on random and special values of this shape."""
    generator = torch.Generator().manual_seed(0)
    channels = shape[1]

    def drawn(*size):
        return torch.randn(size, generator=generator, dtype=torch.float32, device="cpu")

    def empty(*size):
        return torch.empty(size, dtype=torch.float32, device="cpu")

    for special, eps, momentum in _TRIED:
        x, dy, gamma, beta = 3 * drawn(*shape) + 1, drawn(*shape), drawn(channels), drawn(channels)
        if special is not None:
            x.view(-1)[::7], dy.view(-1)[::5] = special, -special
        if eps == 0:
            x[:, 0] = 0.5  # no variance at all
        mine, theirs = ((drawn(channels), drawn(channels)) for _ in range(2))
        for a, b in zip(mine, theirs, strict=True):
            a.copy_(b)
        expected = torch.native_batch_norm(x, gamma, beta, *theirs, True, momentum, eps)
        got = empty(*shape), empty(channels), empty(channels)
        _call(kernels.forward, x, (*got, x, gamma, beta, *mine), eps, momentum)
        _, mu, rstd = expected
        back = torch.ops.aten.native_batch_norm_backward(
            dy, x, gamma, mu, rstd, mu, rstd, True, eps, [True] * 3
        )
        mine_back = empty(*shape), empty(channels), empty(channels)
        _call(kernels.backward, x, (*mine_back, x, dy, mu, rstd, gamma))
        over = dy.clone(), empty(channels), empty(channels)
        _call(kernels.backward, x, (*over, x, over[0], mu, rstd, gamma))
        mine_all = (*got, *mine, *mine_back, *over)
        pairs = zip(mine_all, (*expected, *theirs, *back, *back), strict=True)
        if not all(trust.same_bits(a, b) for a, b in pairs):
            return False
    return True


def _call(function, x, tensors, eps=0.0, momentum=0.0):
    N, C = x.shape[:2]
    threads = min(torch.get_num_threads(), C, shares(x.numel()))
    function(N, C, x.numel() // (N * C), threads, eps, momentum, pointers(*tensors))
