"""Activations with options that are learned: a = g(z, α), dα = Σ da ∗ ∂a/∂α."""

import torch

from manualnn.autograd.blockwise import TimesSlope, WithTensors, evaluate
from manualnn.autograd.faces import static


def state_methods(cls):
    """States the activation ``cls`` as any op is stated: forward, save, gradients, ...

    dz = da ∗ g′(z, α);  dα = da ∗ ∂a/∂α summed over the dimensions along which α is broadcast.
    α () or any shape that broadcasts to z. Caches z and α.
    """
    names = [p.name for p in cls.options()]

    def forward(z, *options):
        return along(cls.g, [z], options)

    def save(needs, a, z, *options):
        tensors = [o if isinstance(o, torch.Tensor) else None for o in options]
        plain = [None if isinstance(o, torch.Tensor) else o for o in options]
        return (z, *tensors), plain

    def all_options(saved):
        """Half of what was saved are the tensors, or None; the other the plain values, or None."""
        half = len(saved) // 2
        pairs = zip(saved[:half], saved[half:], strict=True)
        return [o if t is None else t for t, o in pairs]

    def slope_of(name):
        formula = getattr(cls, f"d_{name}", None)
        if formula is None:
            raise RuntimeError(
                f"{cls.__name__} is not differentiable with respect to {name!r}: it is not among those "
                "that are learned"
            )
        return formula

    def da_times(slope, da, z, options):
        return along(TimesSlope(slope), [da, z], options)

    def gradients(needs, da, z, *saved):
        options = all_options(saved)
        grads = [da_times(cls.g_prime, da, z, options) if needs.z else None]
        for name, option, need in zip(names, options, needs.options, strict=False):
            d = da_times(slope_of(name), da, z, options) if need else None
            grads.append(d if d is None else d.sum_to_size(option.shape).to(option.dtype))
        return tuple(grads)

    def tangent(step, z, *saved):
        options, a_dot = all_options(saved), torch.zeros_like(z)
        if step.z is not None:
            a_dot = a_dot + da_times(cls.g_prime, step.z, z, options)
        for name, dot in zip(names, step.options, strict=False):
            if dot is not None:
                a_dot = a_dot + da_times(slope_of(name), dot.expand(z.shape), z, options)
        return a_dot

    def recompute(inputs, a):
        z, *options = inputs
        copies = [o.detach().clone() for o in options if isinstance(o, torch.Tensor)]
        plain = [None if isinstance(o, torch.Tensor) else o for o in options]

        def make(z, *copies):
            tensors = iter(copies)
            return forward(z, *(next(tensors) if o is None else o for o in plain))

        return make, (z, *copies)

    methods = {"forward": forward, "save": save, "gradients": gradients, "tangent": tangent}
    methods["recompute"] = recompute
    for name, method in methods.items():
        setattr(cls, name, static(method))


def along(formula, tensors, options):
    """``formula(*tensors, *options)`` element by element; tensors among the options are broadcast."""
    shape = tensors[0].shape
    are_tensors = tuple(isinstance(o, torch.Tensor) for o in options)
    given = [o.expand(shape) for o in options if isinstance(o, torch.Tensor)]
    plain = tuple(o for o in options if not isinstance(o, torch.Tensor))
    bound = WithTensors(formula, len(tensors), are_tensors)
    return evaluate(bound, *tensors, *given, options=plain)
