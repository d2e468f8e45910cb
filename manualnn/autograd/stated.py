"""From what an op states to the methods that PyTorch calls.

An op states its mathematics: ``forward``, what to ``save``, the ``gradients``, the ``tangent``; and, where
PyTorch has a one-pass operation for one of these formulas, that, as ``kernel_forward`` and
``kernel_gradients``. What follows from it stands here, once: when the kernel serves, what is saved for forward
mode, which gradient is of which input, what is not given out, and that backward sees the dtypes that forward
saw.
"""

import inspect
from collections import namedtuple

import torch
from torch.autograd import forward_ad

from manualnn.autograd.transforms import forward_mode, transforms_active

any_autocast = torch._C._is_any_autocast_enabled
_SEVERAL = (tuple, list)


def first_order(_grad_enabled=torch.is_grad_enabled, _transforms=transforms_active):
    """True while nothing differentiates what is being computed now.

    Inside ``backward`` that means: no ``create_graph=True``, no torch.func transform, no forward-mode
    level. Only then may a backward use an intermediate that was saved without its history, or let a
    one-pass kernel stand in for its formula.
    """
    return not (_grad_enabled() or forward_ad._current_level >= 0 or _transforms())


def derive(cls):
    """The methods of PyTorch's official form, for torch.func and torch.compile, by name."""
    save, gradients, outputs = cls.save or nothing, cls.gradients, cls.outputs
    named, kernel = by_input(cls.forward), cls.kernel_gradients
    if cls.layout is not None:
        kernel = None  # it reads how tensors lie in memory, which there nobody knows

    def setup_context(ctx, inputs, output):
        ctx.beside = 0
        if outputs is not None:
            if not isinstance(output, tuple):
                raise TypeError(no_tuple(cls))
            ctx.beside = len(output) - len(output[:outputs])
            ctx.mark_non_differentiable(*output[outputs:])
        ctx.set_materialize_grads(False)
        forward = forward_mode()
        needs = named((True,) * len(inputs)) if forward else named(ctx.needs_input_grad)
        tensors, ctx.options = save(needs, output, *inputs)
        if not (isinstance(tensors, _SEVERAL) and isinstance(ctx.options, _SEVERAL)):
            raise TypeError(no_pair(cls))
        ctx.save_for_backward(*tensors)
        if forward:
            ctx.save_for_forward(*tensors)

    def backward(ctx, *grads):
        grads, needs = grads[:outputs], ctx.needs_input_grad
        if all(d is None for d in grads):
            return (None,) * len(needs)
        if outputs is not None and len(grads) < outputs:
            grads = (*grads, *(None,) * (outputs - len(grads)))
        by_kernel = kernel is not None and (cls.kernel_has_derivatives or first_order())
        back = kernel if by_kernel else gradients
        found = back(named(needs), *grads, *ctx.saved_tensors, *ctx.options)
        return an_input_each(found, len(needs))

    methods = {"setup_context": setup_context, "backward": backward}
    if cls.tangent is not None:
        methods["jvp"] = derived_jvp(cls, named)
    return methods


def derived_jvp(cls, named):
    tangent = cls.tangent

    def jvp(ctx, *steps):
        found = tangent(named(steps), *ctx.saved_tensors, *ctx.options)
        if not ctx.beside:
            return found
        found = found if isinstance(found, tuple) else (found,)
        return *found, *(None for _ in range(ctx.beside))

    return jvp


def eager_face(cls, whole=False):
    """``forward`` and ``backward`` in the older style, for eager mode, with as few calls as can be.

    whole: with the outputs that exist for backward alone.
    """
    run = cls.kernel_forward or cls.forward
    save, gradients, layout, seen = cls.save or nothing, cls.gradients, cls.layout, cls.seen
    kernel = cls.kernel_gradients or gradients
    outputs = None if whole else cls.outputs
    marked, several = cls.outputs if whole else None, cls.outputs is not None
    needs_of = _ByNeeds(by_input(cls.forward))
    enabled, transforms, level = torch.is_grad_enabled, transforms_active, forward_ad
    always = cls.kernel_has_derivatives and cls.kernel_gradients is not None

    def forward(ctx, *inputs):
        ctx.set_materialize_grads(False)
        output = run(*inputs)
        if several and not isinstance(output, tuple):
            raise TypeError(no_tuple(cls))
        needs = ctx.needs_input_grad
        in_forward_mode = level._current_level >= 0
        needs = needs_of[(True,) * len(needs) if in_forward_mode else needs]
        tensors, ctx.options = save(needs, output, *inputs)
        if not (isinstance(tensors, _SEVERAL) and isinstance(ctx.options, _SEVERAL)):
            raise TypeError(no_pair(cls))
        if layout is not None:
            ctx.layout = layout(needs, output, *inputs)
        if seen is not None:
            ctx.save_for_backward(*tensors, *seen(needs, *inputs))
        else:
            ctx.save_for_backward(*tensors)
        if in_forward_mode:
            ctx.save_for_forward(*tensors)
            ctx.beside = 0 if marked is None else len(output[marked:])
        if marked is not None:
            ctx.mark_non_differentiable(*output[marked:])
        return output if outputs is None else output[:outputs]

    def compute(ctx, *grads):
        needs, saved = ctx.needs_input_grad, ctx.saved_tensors
        formula = enabled() or level._current_level >= 0 or transforms()
        if seen is not None:
            saved = as_seen(saved, formula)
        if formula and not always:
            found = gradients(needs_of[needs], *grads, *saved, *ctx.options)
        elif layout is None:
            found = kernel(needs_of[needs], *grads, *saved, *ctx.options)
        else:
            found = kernel(needs_of[needs], *grads, *saved, *ctx.options, *ctx.layout)
        return found if len(needs) == 1 else an_input_each(found, len(needs))

    carefully = answering(compute, cls.outputs)
    single = cls.outputs in (None, 1)

    def backward(ctx, d, *more):
        """The same, for what is nearly always the case, with few calls: a small op costs no more than they."""
        if more or d is None or not single or d._is_zerotensor() or any_autocast():
            return carefully(ctx, d, *more)
        if enabled() or level._current_level >= 0 or transforms():
            return compute(ctx, d)
        needs, saved = ctx.needs_input_grad, ctx.saved_tensors
        if seen is not None:
            saved = as_seen(saved, False)
        if layout is None:
            found = kernel(needs_of[needs], d, *saved, *ctx.options)
        else:
            found = kernel(needs_of[needs], d, *saved, *ctx.options, *ctx.layout)
        return found if len(needs) == 1 else an_input_each(found, len(needs))

    return forward, backward


def no_tuple(cls):
    return (
        f"{cls.__name__} states outputs = {cls.outputs}, but its forward returns no tuple: the output, then "
        "what exists for backward alone"
    )


def no_pair(cls):
    return f"{cls.__name__}.save should return two tuples: of tensors, then of plain values, (x, w), ()"


def nothing(needs, output, *inputs):
    """What an op saves that does not say what it saves."""
    return (), ()


def answering(compute, outputs=None):
    """``compute``, as the backward that PyTorch calls.

    Where nothing flows back it answers None, as torch's own nodes do: an optimizer leaves a parameter alone
    that has no gradient, and decays one whose gradient is zero. Gradients have memory, so that what is computed
    from one may be written over: a zero without comes from PyTorch's second derivative of abs, say.

    outputs: how many of the op's outputs are given out, at most; gradients of others are passed over.
    """

    def backward(ctx, *grads):
        if outputs is not None and len(grads) != outputs:
            grads = (*grads[:outputs], *(None,) * (outputs - len(grads)))
        missing = 0
        for d in grads:
            if d is None:
                missing += 1
            elif d._is_zerotensor():
                grads = tuple(d if d is None else d.clone() for d in grads)
        if missing == len(grads):
            return (None,) * len(ctx.needs_input_grad)
        if any_autocast():
            return outside_autocast(compute, ctx, grads)
        return compute(ctx, *grads)

    return backward


def an_input_each(found, count):
    """The gradients of the first inputs, and None for each of the others."""
    if not isinstance(found, tuple):
        return (found, *(None,) * (count - 1))
    return found if len(found) == count else (*found, *(None,) * (count - len(found)))


def by_input(forward):
    """A function of a tuple with a value an input, to one in which each bears the name of its input.

    What ``*rest`` takes is a tuple under that name.
    """
    try:
        parameters = inspect.signature(forward).parameters.values()
    except ValueError:  # a built-in function, which does not say what its inputs are called
        return lambda values: values
    rest = [p.name for p in parameters if p.kind is p.VAR_POSITIONAL]
    names = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    plain, names = len(names), names + rest
    ByInput = namedtuple("ByInput", names, rename=True, defaults=[None] * len(names))
    if not rest:
        return lambda values: ByInput(*values)
    return lambda values: ByInput(*values[:plain], *(None,) * (plain - len(values)), values[plain:])


def options_of(node):
    """The options with which the op of a node was called, by the names that its ``gradients`` gives them."""
    names = [*inspect.signature(type(node)._forward_cls.op.gradients).parameters]
    return dict(zip(names[len(names) - len(node.options) :], node.options, strict=True))


class _ByNeeds(dict):
    """What ``named`` makes of ``ctx.needs_input_grad``, made once for each."""

    def __init__(self, named):
        super().__init__()
        self.named = named

    def __missing__(self, needs):
        found = self[needs] = self.named(needs)
        return found


def outside_autocast(compute, ctx, grads):
    """``compute`` in the dtypes that forward saw, even when backward is called inside an autocast region.

    A backward called under autocast would otherwise multiply float32 tensors in bfloat16.
    """
    device = next((g.device.type for g in grads if g is not None), "cpu")
    with torch.autocast(device, enabled=False):
        return compute(ctx, *grads)


def as_seen(saved, formula):
    """What was saved, with the numbers that forward saw where these were saved beside it: ``Function.seen``.

    Where it is differentiated again, its history is that of the tensor.
    """
    half = len(saved) // 2
    if not formula:
        return [t if n is None else n for t, n in zip(saved[:half], saved[half:], strict=True)]
    found = []
    for t, numbers in zip(saved[:half], saved[half:], strict=True):
        same = numbers is None or torch._C._is_alias_of(t, numbers)
        found.append(t if same else _Seen.apply(t, numbers))
    return found


class _Seen(torch.autograd.Function):
    """The numbers of the second, differentiated as the first."""

    @staticmethod
    def forward(ctx, t, numbers):
        return numbers.view_as(numbers)

    @staticmethod
    def backward(ctx, dt):
        return dt, None
