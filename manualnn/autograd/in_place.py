"""An activation that writes its output over its input: a over z."""

from typing import Any

import torch

from manualnn._torch import forward_level, is_written_at_own_risk, without_torch_function
from manualnn.autograd.blockwise import Elementwise
from manualnn.autograd.faces import answering, eager_face
from manualnn.autograd.function import Function
from manualnn.autograd.interceptor import active
from manualnn.autograd.moment import bypass_function_mode, eager, forward_mode
from manualnn.autograd.options import any_requires_grad, numbers


def apply_(cls: Any, z: torch.Tensor, *options: Any) -> torch.Tensor:
    """a over z, in place: what is cached is the output, or a copy of z where that is not enough."""
    if not isinstance(z, torch.Tensor):
        raise TypeError(
            f"{cls.__name__}: what is written over must be Tensor, not {type(z).__name__}"
        )
    if torch.jit.is_tracing() and cls.kernel_ is not None:
        return cls.kernel_(z, *options)  # a trace has no place for a Function that writes
    options = options if cls.learned else numbers(options)
    if eager() and forward_level() < 0:
        if not _needs_graph(cls, z, options):
            return z.copy_(cls.forward(z, *options))
        if not cls.learned:
            recorder, saves_output = active(), cls._saves_output(z, options)
            if recorder is not None:
                return _written_over(cls, recorder, z, options, saves_output)
            if saves_output:
                return cls._inplace.apply(z, *options)
            return cls._inplace_from_input.apply(z, _copied(z), *options)
    # The copy is autograd's, so that the z that is saved has its history.
    return z.copy_(cls.apply(z.clone(), *options))


@bypass_function_mode
def _needs_graph(cls, z, options):
    """Whether the call is part of a graph; then an error, as torch's, where z may not be written over."""
    if not torch.is_grad_enabled():
        return False
    if not z.requires_grad and not (cls.learned and any_requires_grad(*options)):
        return False
    _refuse_in_place(z)
    return True


def _refuse_in_place(z):
    """As torch, before anything is overwritten: autograd itself would only say so afterwards."""
    is_view = z._is_view()
    if is_view and is_written_at_own_risk(z):
        # One of several views (of chunk, split, unbind), or made where no gradients were: PyTorch's own
        # operation says so in its words, and looks before it writes.
        z.mul_(1)
    view = is_view and z._base is not None and z._base.is_leaf and z._base.requires_grad
    if z.requires_grad and (z.is_leaf or view):
        what = "a view of a leaf Variable" if view and not z.is_leaf else "a leaf Variable"
        raise RuntimeError(f"{what} that requires grad is being used in an in-place operation.")


def output_face(cls):
    """The in-place face of an activation whose output suffices: z is gone, a is what there is to cache."""

    def forward(ctx, z, *options):
        ctx.set_materialize_grads(False)
        a = _write_over(cls, z, options)
        ctx.mark_dirty(a)
        ctx.save_for_backward(a)
        if forward_mode():
            ctx.save_for_forward(a)
        ctx.options, ctx.beside = options, 0
        return a

    def compute(ctx, da, over=None):
        (a,) = ctx.saved_tensors
        dz = cls.da_times_slope(a, ctx.options, da, True, over)
        return (dz, *[None] * len(ctx.options))

    return eager_face(cls, forward, answering(compute))


def input_face(cls):
    """The in-place face of an activation that caches z, given a copy of the z that is overwritten."""

    def forward(ctx, z, copy, *options):
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(copy)
        ctx.options = options
        a = _write_over(cls, z, options)
        ctx.mark_dirty(a)
        return a

    def compute(ctx, da, over=None):
        (z,) = ctx.saved_tensors
        dz = cls.da_times_slope(z, ctx.options, da, over=over)
        return (dz, None, *[None] * len(ctx.options))

    return eager_face(cls, forward, answering(compute))


def _write_over(cls, z, options):
    if cls.kernel_ is not None:
        return cls.kernel_(z, *options)
    return z.copy_(cls.forward(z, *options))


def _written_over(cls, recorder, z, options, saves_output):
    """a over z, while a forward pass is recorded: z need not be copied where it can be recomputed."""
    saved: tuple[Any, ...] = ()
    if not saves_output:
        with without_torch_function():
            has_recipe = recorder.pin_recipe(z)
        # A copy of a part of something larger is laid out without gaps, and its kernels round otherwise.
        if not has_recipe or not _is_dense(z):
            saved = (_copied(z),)
        else:
            with without_torch_function():
                # Saved in place of z, with z's shape and history and no memory of its own.
                saved = (Placeholder.apply(z),)
                recorder.set_placeholder(saved[0], recorder.value_of(z))

    def recompute(inputs, a):
        return recompute_of(cls, z, options)

    apply = cls._inplace.apply if saves_output else cls._inplace_from_input.apply
    return recorder.run_function(apply, (z, *saved, *options), recompute, cls.__name__, written=z)


def _is_dense(z):
    """Whether z lies in memory without gaps, in whatever order."""
    return 1 + sum((n - 1) * s for n, s in zip(z.shape, z.stride(), strict=True)) == z.numel()


class Placeholder(Function):
    """A tensor of z's shape and history that holds one number: dz = da

    Nothing flows back this way. Of a view it is zeros that flow: a hook on a view that is written over sees
    what comes this way, and expects a tensor.
    """

    @staticmethod
    def forward(z):
        return z.new_empty(()).expand(z.shape)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.set_materialize_grads(inputs[0]._is_view())

    @staticmethod
    def backward(ctx, da):
        return da


class Copy(Placeholder):
    """A copy of z: dz = da, as of Placeholder."""

    @staticmethod
    def forward(z):
        return z.clone()


def _copied(z):
    """z as it is, with its history, before it is written over."""
    return Copy.apply(z) if z._is_view() else z.clone()


def recompute_of(cls, z, options):
    options = numbers(options)  # as they are now
    over = None if cls.kernel_ is None else lambda z: cls.kernel_(z, *options)
    if cls.__module__.startswith("manualnn.ops."):  # what a user's formula reads may change
        return Elementwise(cls.forward, options), (z,), over
    return (lambda z: cls.forward(z, *options)), (z,), over
