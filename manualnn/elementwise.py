"""Formulas applied element by element, and the base of every activation made of two of them.

A formula made of several tensor operations walks through memory once for each. ``evaluate`` walks a
large tensor block by block instead, so that the temporaries stay in the processor's cache, and
computes in float32 where the dtype is narrower, so that a result is rounded once.
"""

import torch
from torch.autograd import forward_ad

from manualnn.function import (
    Function,
    eager,
    first_order,
    forward_mode,
    static,
    transforms_active,
)

# In elements: a few float32 temporaries of this size fit in a core's second-level cache.
BLOCK = 1 << 16
_NARROW = (torch.bfloat16, torch.float16)


def evaluate(formula, *tensors, options=()):
    """``formula(*tensors, *options)``, element by element, in the dtype of the first tensor.

    Args:
        formula: takes tensors of one shape and the options; returns a tensor of that shape.
        tensors: of one shape. Narrow dtypes (bfloat16, float16) are computed in float32.
        options: handed to the formula after the tensors.
    """
    first = tensors[0]
    if first.numel() < 4 * BLOCK or first.device.type != "cpu" or not (first_order() and eager()):
        return _once(formula, tensors, options)
    if first.dim() == 0 or all(t.is_contiguous() for t in tensors):
        return _in_blocks(formula, [t.view(-1) for t in tensors], options, BLOCK).view(first.shape)
    rows = max(1, BLOCK * first.shape[0] // first.numel())
    return _in_blocks(formula, tensors, options, rows)


def wide(dtype):
    """The dtype in which a formula is computed."""
    return torch.float32 if dtype in _NARROW else dtype


def _once(formula, tensors, options):
    if not any(t.dtype in _NARROW for t in tensors):
        return formula(*tensors, *options)
    return formula(*(t.to(wide(t.dtype)) for t in tensors), *options).to(tensors[0].dtype)


def _in_blocks(formula, tensors, options, size):
    out = torch.empty_like(tensors[0])
    for into, *blocks in zip(*(t.split(size) for t in (out, *tensors)), strict=True):
        into.copy_(_once(formula, blocks, options))
    return out


class Activation(Function):
    """An activation function: a = g(z), dz = da ∗ g′(z), element by element.

    A subclass states its formulas as plain functions in the class body::

        g(z, *options)           the activation
        g_prime(z, *options)     its derivative, from the input, or
        g_prime_a(a, *options)   its derivative, from the output

    and everything else follows. A derivative that is only ever 0 or 1 may be a truth value: then it
    selects (``where(g′, da, 0)``) instead of multiplying, so that 0 · inf is 0.

    What is cached: the output where ``g_prime_a`` is given, because the layer that follows keeps it
    anyway; the input otherwise. With both, ``output_suffices(dtype, *options)`` decides.

    Optional: ``kernel(z, *options)`` and ``kernel_prime(da, z, *options)`` (or ``kernel_prime_a(da, a,
    *options)``), one-pass operations that compute exactly the formulas. They do the work when nothing
    differentiates it again; the formulas do otherwise.

    ``apply(z, *options)``; ``apply_(z, *options)`` writes a over z.
    """

    g = g_prime = g_prime_a = kernel = kernel_prime = kernel_prime_a = None

    def output_suffices(dtype, *options):
        return True

    def __init_subclass__(cls, **kwargs):
        formulas = ("g", "g_prime", "g_prime_a", "kernel", "kernel_prime", "kernel_prime_a")
        for name in (*formulas, "output_suffices"):
            if cls.__dict__.get(name) is not None:
                setattr(cls, name, static(cls.__dict__[name]))
        _state_methods(cls)
        super().__init_subclass__(**kwargs)
        _hasten(cls)
        cls._inplace = cls._face(forward=_inplace_forward(cls), backward=cls._eager.backward)

    @classmethod
    def defaults(cls):
        """The default values of the options, as g's signature states them."""
        import inspect

        _, *options = inspect.signature(cls.g).parameters.values()
        missing = [p.name for p in options if p.default is p.empty]
        if missing:
            raise TypeError(f"{cls.__name__} has no default for {', '.join(missing)}")
        return tuple(p.default for p in options)

    @classmethod
    def apply_(cls, z, *options):
        """a over z, in place: what is cached is the output, or a copy of z where that is not enough."""
        if not (torch.is_grad_enabled() and z.requires_grad) and eager() and not forward_mode():
            return z.copy_(cls.forward(z, *options))
        if eager():
            _refuse_leaf(z)
        if eager() and not forward_mode() and cls._keeps_output(z, options):
            return cls._inplace.apply(z, *options)
        # The copy is autograd's, so that the z that is kept has its history.
        return z.copy_(cls.apply(z.clone(), *options))

    @classmethod
    def da_times_slope(cls, kept, options, da):
        """da ∗ g′, from what was kept: z or a."""
        from_output = cls._keeps_output(kept, options)
        kernel = cls.kernel_prime_a if from_output else cls.kernel_prime
        if kernel is not None and first_order():
            return kernel(da, kept, *options)
        slope = cls.g_prime_a if from_output else cls.g_prime

        def formula(da, kept, *options):
            s = slope(kept, *options)
            return torch.where(s, da, 0) if s.dtype is torch.bool else da * s

        dz = evaluate(formula, da, kept, options=options)
        return _linked(dz, kept) if torch.is_grad_enabled() and not first_order() else dz

    @classmethod
    def _keeps_output(cls, z, options):
        if cls.g_prime is None or cls.g_prime_a is None:
            return cls.g_prime is None
        return cls.output_suffices(z.dtype, *options)


def _linked(dz, kept):
    """dz as a function of what was kept even where g′ is piecewise constant, with derivative 0.

    torch's second derivative of a rectifier is zeros, not missing: an optimizer treats them differently.
    """
    if transforms_active() or not kept.requires_grad:
        return dz
    here = torch.ones((), dtype=torch.bool, device=dz.device)
    return torch.where(here, dz, kept.to(dz.dtype))


def _refuse_leaf(z):
    """As torch, before anything is overwritten: autograd itself would only say so afterwards."""
    view = z._is_view() and z._base is not None and z._base.is_leaf and z._base.requires_grad
    if z.requires_grad and (z.is_leaf or view):
        what = "a view of a leaf Variable" if view and not z.is_leaf else "a leaf Variable"
        raise RuntimeError(f"{what} that requires grad is being used in an in-place operation.")


def _state_methods(cls):
    """Gives the activation ``cls`` its forward, setup_context, backward and jvp.

    They are closures over ``cls``: torch.func and Dynamo lose a class that is looked up through ctx.
    """
    forward = cls.kernel or (lambda z, *options: evaluate(cls.g, z, options=options))
    always = None if cls.g_prime and cls.g_prime_a else cls.g_prime is None  # keeps the output

    def setup_context(ctx, inputs, a):
        z, *options = inputs
        keeps_output = cls.output_suffices(z.dtype, *options) if always is None else always
        kept = a if keeps_output else z
        ctx.save_for_backward(kept)
        if forward_ad._current_level >= 0:
            ctx.save_for_forward(kept)
        ctx.options = options

    def backward(ctx, da):
        (kept,) = ctx.saved_tensors
        options = ctx.options
        dz = cls.da_times_slope(kept, options, da)
        return (dz, *(None for _ in options)) if options else dz

    def jvp(ctx, dz, *_):
        (kept,) = ctx.saved_tensors
        return cls.da_times_slope(kept, ctx.options, dz)

    methods = {"forward": forward, "setup_context": setup_context, "backward": backward, "jvp": jvp}
    for name, method in methods.items():
        if name not in cls.__dict__:
            setattr(cls, name, static(method))


def _hasten(cls):
    """An eager face with fewer steps, for an activation that has kernels.

    On a small tensor a Python call costs as much as the arithmetic.
    """
    kernel, from_z, from_a = cls.kernel, cls.kernel_prime, cls.kernel_prime_a
    if kernel is None or (from_z is None and cls.g_prime) or (from_a is None and cls.g_prime_a):
        return
    suffices, slow = cls.output_suffices if from_z and from_a else None, cls._eager.backward
    enabled, transforms, level = torch.is_grad_enabled, transforms_active, forward_ad
    always, kernel_prime = from_z is None, from_a or from_z

    def forward(ctx, z):
        a = kernel(z)
        kept = a if always else z
        ctx.save_for_backward(kept)
        if level._current_level >= 0:
            ctx.save_for_forward(kept)
            ctx.options = ()
        return a

    def backward(ctx, da):
        if enabled() or level._current_level >= 0 or transforms():
            ctx.options = ()
            return slow(ctx, da)
        return kernel_prime(da, *ctx.saved_tensors)

    def forward_with_options(ctx, z, *options):
        a = kernel(z, *options)
        kept = a if always or (suffices and suffices(z.dtype, *options)) else z
        ctx.save_for_backward(kept)
        if level._current_level >= 0:
            ctx.save_for_forward(kept)
        ctx.options = options
        return a

    def backward_with_options(ctx, da):
        if enabled() or level._current_level >= 0 or transforms():
            return slow(ctx, da)
        (kept,) = ctx.saved_tensors
        options = ctx.options
        if suffices and not suffices(kept.dtype, *options):
            return (from_z(da, kept, *options), *no_gradients)
        return (kernel_prime(da, kept, *options), *no_gradients)

    formula = cls.g_prime or cls.g_prime_a
    no_gradients = (None,) * (formula.__code__.co_argcount - 1)
    if formula.__code__.co_argcount == 1 and suffices is None:
        cls._set_eager_face(forward, backward)
    else:
        cls._set_eager_face(forward_with_options, backward_with_options)


def _inplace_forward(cls):
    def forward(ctx, z, *options):
        a = z.copy_(cls.forward(z, *options))
        ctx.mark_dirty(a)
        cls.setup_context(ctx, (z, *options), a)
        return a

    return forward
