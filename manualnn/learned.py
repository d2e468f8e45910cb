"""Activations with options that are learned: a = g(z, α), dα = Σ da ∗ ∂a/∂α."""

import torch

from manualnn.elementwise import evaluate, times
from manualnn.function import static
from manualnn.transforms import forward_mode


def state_methods(cls):
    """Gives the activation ``cls`` its forward, setup_context, backward and jvp.

    dz = da ∗ g′(z, α);  dα = da ∗ ∂a/∂α summed over the dimensions along which α is broadcast.
    α () or any shape that broadcasts to z. Caches z and α.
    """
    names = [p.name for p in cls.options()]

    def forward(z, *options):
        return along(cls.g, [z], options)

    def setup_context(ctx, inputs, a):
        z, *options = inputs
        tensors = [o if isinstance(o, torch.Tensor) else None for o in options]
        ctx.options = [None if isinstance(o, torch.Tensor) else o for o in options]
        ctx.save_for_backward(z, *tensors)
        if forward_mode():
            ctx.save_for_forward(z, *tensors)

    def saved(ctx):
        z, *tensors = ctx.saved_tensors
        pairs = zip(tensors, ctx.options, strict=True)
        return z, [o if t is None else t for t, o in pairs]

    def slope_of(name):
        formula = getattr(cls, f"d_{name}", None)
        if formula is None:
            raise RuntimeError(
                f"{cls.__name__} is not differentiable with respect to {name!r}: it is not among those "
                "that are learned"
            )
        return formula

    def da_times(slope, da, z, options):
        return along(lambda da, z, *opts: times(da, slope(z, *opts)), [da, z], options)

    def backward(ctx, da):
        z, options = saved(ctx)
        grads = [None] * (1 + len(options))
        if ctx.needs_input_grad[0]:
            grads[0] = da_times(cls.g_prime, da, z, options)
        for i, (name, option) in enumerate(zip(names, options, strict=False), start=1):
            if ctx.needs_input_grad[i]:
                d = da_times(slope_of(name), da, z, options)
                grads[i] = d.sum_to_size(option.shape).to(option.dtype)
        return tuple(grads)

    def jvp(ctx, z_dot, *dots):
        z, options = saved(ctx)
        a_dot = torch.zeros_like(z)
        if z_dot is not None:
            a_dot = a_dot + da_times(cls.g_prime, z_dot, z, options)
        for name, dot in zip(names, dots, strict=False):
            if dot is not None:
                a_dot = a_dot + da_times(slope_of(name), dot.expand(z.shape), z, options)
        return a_dot

    def again(inputs, a):
        z, *options = inputs
        copies = [o.detach().clone() for o in options if isinstance(o, torch.Tensor)]
        plain = [None if isinstance(o, torch.Tensor) else o for o in options]

        def make(z, *copies):
            tensors = iter(copies)
            return forward(z, *(next(tensors) if o is None else o for o in plain))

        return make, (z, *copies)

    methods = {"forward": forward, "setup_context": setup_context, "backward": backward, "jvp": jvp}
    methods["again"] = again
    for name, method in methods.items():
        setattr(cls, name, static(method))


def along(formula, tensors, options):
    """``formula(*tensors, *options)`` element by element; tensors among the options are broadcast."""
    shape = tensors[0].shape
    given = [o.expand(shape) for o in options if isinstance(o, torch.Tensor)]
    plain = [not isinstance(o, torch.Tensor) for o in options]
    count = len(tensors)

    def bound(*everything):
        values = iter(everything[count:])
        opts = [o if is_plain else next(values) for o, is_plain in zip(options, plain, strict=True)]
        return formula(*everything[:count], *opts)

    return evaluate(bound, *tensors, *given)
