"""A Function under torch.func: the methods that its transforms call.

What PyTorch's own rule for vmap gets wrong is mended here, for every Function: torch.autograd.Function has the
same faults.
"""

from typing import Any

import torch
from torch.autograd import forward_ad

from manualnn._torch import (
    add_batch_dim,
    batch_dim,
    batch_level,
    forward_mode_enabled,
    is_alias_of,
    is_batchedtensor,
    is_functorch_tensor,
    tree_leaves,
    unsafe_view,
    unwrapped,
)
from manualnn.autograd.moment import forward_mode


class _Ctx:
    """PyTorch's ctx, with some of its methods in other words."""

    def __init__(self, ctx, **own):
        self.__dict__.update(own, _ctx=ctx)

    def __getattr__(self, name):
        return getattr(self._ctx, name)

    def __setattr__(self, name, value):
        setattr(self._ctx, name, value)

    def __delattr__(self, name):
        delattr(self._ctx, name)


class _Setup(_Ctx):
    """The ctx that ``setup_context`` is given.

    Under vmap PyTorch remembers one list of batch dimensions for what is saved for backward and for forward,
    that of the later call; and marks a batched tensor as not differentiable, which is no output. So there both
    save the same tensors, and what is marked is the tensor within.
    """

    _for_backward = _for_forward = ()

    def save_for_backward(self, *tensors):
        self.__dict__["_for_backward"] = tensors

    def save_for_forward(self, *tensors):
        self.__dict__["_for_forward"] = tensors

    def mark_non_differentiable(self, *outputs):
        self._ctx.mark_non_differentiable(*(_within(self._ctx, t) for t in outputs))

    def save(self):
        ctx, backward, forward = self._ctx, self._for_backward, self._for_forward
        ctx.of_backward = ctx.of_forward = slice(None)
        if hasattr(ctx, "_pt_inner_ctx"):  # PyTorch's, under vmap
            forward = forward if forward_mode() else ()
            if forward:
                ctx.of_backward = slice(None, len(backward))
                ctx.of_forward = slice(len(backward), None)
                backward = forward = (*backward, *forward)
        ctx.save_for_backward(*backward)
        if forward:
            ctx.save_for_forward(*forward)


class _Saved(_Ctx):
    """The ctx that ``backward`` is given, or ``jvp``: with what it has saved, as ``seen`` shows it."""

    @property
    def saved_tensors(self):
        saved = self._ctx.saved_tensors[self._part]
        return tuple(t if t is None else self._seen(t) for t in saved)


def functional_forward(forward):
    def run(*inputs):
        # Of its own: torch.func asks for a signature, which a built-in function has not.
        return _owned(forward(*map(_bare, inputs)), inputs)

    return run


def functional_setup(setup_context):
    def run(ctx, inputs, output):
        ctx = _Setup(ctx)
        setup_context(ctx, tuple(map(_bare, inputs)), output)
        ctx.save()

    return run


def functional_backward(backward):
    def run(ctx, *grads):
        return backward(_Saved(ctx, _part=ctx.of_backward, _seen=lambda t: t), *grads)

    return run


def functional_jvp(jvp):
    """``jvp`` of tensors without a tangent at the current level, so that a level outside it sees through it.

    PyTorch calls a Function's jvp with forward mode switched off altogether: the second of two nested
    forward-mode derivatives would silently be 0.
    """

    def run(ctx, *tangents):
        with forward_mode_enabled(True):
            return jvp(_Saved(ctx, _part=ctx.of_forward, _seen=_primal), *tangents)

    return run


def _primal(t):
    """t without its tangent. vmap inside jvp has no rule for that: it is done to the tensor within."""
    if is_batchedtensor(t):
        within = _primal(unwrapped(t))
        return add_batch_dim(within, batch_dim(t), batch_level(t))
    return forward_ad.unpack_dual(t, level=0).primal


def _within(ctx, t):
    """The output itself, of which PyTorch's rule for vmap shows a batched tensor to ``setup_context``."""
    levels = set()
    while hasattr(ctx, "_pt_inner_ctx"):
        levels.add(ctx._pt_current_level)
        ctx = ctx._pt_inner_ctx
    while is_batchedtensor(t) and batch_level(t) in levels:
        t = unwrapped(t)
    return t


def _owned(output, inputs):
    """The outputs of forward under vmap as no views: its rules for convolution, pooling and norms make some of
    a tensor that only they know, and nobody could write over a Function's output that is one."""
    if isinstance(output, tuple):
        return tuple(_owned(o, inputs) for o in output)
    if not isinstance(output, torch.Tensor) or not is_batchedtensor(output):
        return output
    made = _innermost(output)
    if not made._is_view():
        return output
    for i in inputs:
        if isinstance(i, torch.Tensor) and is_alias_of(made, _innermost(i)):
            return output
    return unsafe_view(output, output.shape)


def _innermost(t):
    while is_functorch_tensor(t):
        t = unwrapped(t)
    return t


class _Tuple(tuple):
    """An option to PyTorch's rule for vmap, which counts the numbers in a plain tuple as inputs."""


class _List(list):
    """As _Tuple."""


_WHOLE: dict[Any, Any] = {tuple: _Tuple, list: _List}
_BARE: dict[Any, Any] = {_Tuple: tuple, _List: list}


def whole(option):
    kind: Any = _WHOLE.get(type(option))
    if kind is None or any(isinstance(o, torch.Tensor) for o in tree_leaves(option)):
        return option
    return kind(option)


def _bare(option):
    kind: Any = _BARE.get(type(option))
    return option if kind is None else kind(option)
