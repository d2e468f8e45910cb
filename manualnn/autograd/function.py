"""The base of every hand-written ``autograd.Function``: an op states its mathematics, once.

``faces`` derives from it what PyTorch calls in each of its regimes.
"""

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

import torch
from torch.autograd.function import FunctionMeta

from manualnn.autograd import faces
from manualnn.autograd.faces import OFFICIAL, static

STATED = {  # what the methods are derived from
    *("forward", "save", "gradients", "tangent", "recompute"),
    *("kernel_forward", "kernel_gradients", "layout", "seen"),
    *("outputs", "gives_intermediates", "kernel_has_derivatives"),
}
Formula: TypeAlias = Callable[..., Any] | None  # a function of the class body, if it states one
# What `check=True` calls: manualnn.tools.checks says so when it is imported.
_on_check: list[Callable[..., Any]] = []


def set_checker(check: Callable[..., Any]) -> None:
    """``class X(Function, check=True)`` calls ``check(X)`` and raises what its report says is wrong."""
    _on_check[:] = [check]


class FunctionType(FunctionMeta):
    """The class of Function classes: ``class X(Function, check=True)`` checks X where it is defined."""

    def __init__(
        cls, name: str, bases: Any, namespace: Any, check: bool = False, **kwargs: Any
    ) -> None:
        super().__init__(name, bases, namespace)
        if check:
            _on_check[0](cls).raise_for_failures()


class Function(torch.autograd.Function, metaclass=FunctionType):
    """A layer's mathematics: what it computes, how the error flows back, what is saved in between.

    Subclasses state, as static methods; x, W, ... stand for the inputs of ``forward``::

        forward(x, W, ...)                        -> z, or (z, ...)
        save(needs, z, x, W, ...)                 -> tensors, options
        gradients(needs, dz, *tensors, *options)  -> dx, or (dx, dW, ...)
        tangent(step, *tensors, *options)         -> the step of z               (optional)
        recompute(inputs, output)                 -> make, sources               (optional)
        example_inputs()                          -> what to check it with       (optional)

    ``gradients`` is the formula of the backward. It may be differentiated again: where it uses an intermediate
    result, that must be an output of forward that is given out, or be computed again from the inputs.
    ``needs.x`` says whether the gradient of x is asked for, ``step.x`` is the step (the tangent) of x, or None.
    ``save`` is given what forward returned, a tuple where that is one, and the inputs under forward's names.
    What it returns is what ``gradients`` and ``tangent`` are given: the tensors, or None, that a needed
    gradient reads and no more, then plain values. Gradients of the inputs that follow may be left out.

    ``outputs = 1``: what forward returns after the first exists for backward alone; it has no gradient and is
    not given out. A gradient arrives as None where nothing flows back to one of several outputs.

    ``kernel_forward`` and ``kernel_gradients``, of the same arguments, are one-pass operations for exactly
    these formulas. They serve in eager mode while nothing differentiates the result again. ``layout(needs, z,
    x, W, ...)`` tells ``kernel_gradients`` more about how tensors lie in memory, after the options. A
    ``kernel_gradients(..., over=None)`` is given dz once more as ``over`` where nothing else holds it: the
    gradient of an input may be written there.

    ``recompute`` says how the output can be made once more instead of being saved: ``make(*sources)`` is the
    first output bit for bit, by the same kernels, of tensors that are saved anyway (the input, statistics,
    a mask) and at the price of a pass or two over memory, never of a matrix product. A third element, if
    given, computes the same and may write over the first source. None where a call cannot be repeated.

    ``twin`` and ``examples`` say what of torch's an op stands for, and what it is tried with
    (``manualnn.autograd.examples``); ours all do, yours may.

    PyTorch's official form is as good: ``forward``, ``setup_context(ctx, inputs, output)``,
    ``backward(ctx, dz)`` and ``jvp(ctx, *steps)``; then ``ctx.save_for_backward`` holds what backward reads,
    ``ctx.save_for_forward`` what jvp reads, and tensors are never put on ``ctx`` as attributes.

    A gradient that is deliberately not the true derivative is declared: ``surrogate = "why"``, or a dict
    of input name to reason; ``manualnn.check`` then says where it departs, without calling it broken.

    ``class X(Function, check=True)`` checks X with its ``example_inputs()`` and raises
    ``manualnn.CheckError``, with the whole report, if something is wrong.

    >>> class Scale(Function, check=True):
    ...     @staticmethod
    ...     def forward(x, w):
    ...         return x * w
    ...
    ...     @staticmethod
    ...     def save(needs, z, x, w):
    ...         return (x if needs.w else None, w if needs.x else None), ()
    ...
    ...     @staticmethod
    ...     def gradients(needs, dz, x, w):
    ...         dx = dz * w if needs.x else None
    ...         dw = (dz * x).sum(0) if needs.w else None
    ...         return dx, dw
    ...
    ...     @staticmethod
    ...     def tangent(step, x, w):
    ...         terms = [] if step.x is None else [step.x * w]
    ...         return sum(terms if step.w is None else [*terms, x * step.w])
    ...
    ...     @staticmethod
    ...     def example_inputs():
    ...         return torch.randn(2, 3), torch.randn(3)
    >>> x = torch.ones(1, 3, requires_grad=True)
    >>> torch.autograd.grad(Scale.apply(x, 2 * torch.ones(3)).sum(), x)
    (tensor([[2., 2., 2.]]),)
    """

    generate_vmap_rule = True
    twin: ClassVar[Any] = None
    examples: ClassVar[tuple[Any, ...]] = ()
    save: Formula = None
    gradients: Formula = None
    tangent: Formula = None
    recompute: Formula = None
    kernel_forward: Formula = None
    kernel_gradients: Formula = None
    layout: Formula = None
    seen: Formula = None
    outputs: int | None = None
    gives_intermediates = kernel_has_derivatives = False
    _tangent: Any

    if TYPE_CHECKING:  # torch's own hints allow no names for what flows back

        @staticmethod
        def setup_context(*args: Any, **kwargs: Any) -> Any: ...
        @staticmethod
        def backward(*args: Any, **kwargs: Any) -> Any: ...
        @staticmethod
        def jvp(*args: Any, **kwargs: Any) -> Any: ...

    def __init_subclass__(cls, check: bool = False, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        own = {*cls.__dict__}
        if "again" in own:
            message = f"{cls.__name__}.again is called recompute now"
            warnings.warn(message, DeprecationWarning, stacklevel=2)
            cls.recompute = static(cls.__dict__["again"])
        if "jvp" in own:
            cls._tangent = cls.__dict__["jvp"]
            del cls.jvp
        official = OFFICIAL & own
        if "gradients" in own and official and not {"setup_context", "backward"} <= own:
            raise TypeError(
                f"{cls.__name__} states gradients, from which {min(official)} follows: state one of the two"
            )
        if cls.gradients is not None and STATED & own and not official:
            faces.derive(cls)
        elif cls.forward is not torch.autograd.Function.forward and official | ({"forward"} & own):
            faces.adopt(cls)

    apply = classmethod(faces.apply)
