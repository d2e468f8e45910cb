"""Losses of a number x and its target y, element by element, then reduced.

L = Σ ℓ(x, y) or its mean over all elements; dx = dL ∂ℓ/∂x (divided by their number for the mean).
``kernel`` names PyTorch's one-pass operation for the same formula; a test holds the two together.
"""

from typing import Any

import torch

from manualnn._torch import F, is_batched
from manualnn.autograd.blockwise import evaluate, wide
from manualnn.autograd.examples import Example, Twin, inputs, normal, probabilities
from manualnn.autograd.faces import static
from manualnn.autograd.function import Formula, Function
from manualnn.ops.losses.steps import REDUCTION

aten = torch.ops.aten


class PointwiseLoss(Function):
    """A loss ℓ(x, y), element by element.

    A subclass states, as static methods or plain functions of the class body::

        loss(x, y, *options)      ℓ
        d_x(x, y, *options)       ∂ℓ/∂x
        d_y(x, y, *options)       ∂ℓ/∂y      (−∂ℓ/∂x unless stated)
        d_options(x, y, *options) ∂ℓ/∂option of each option that is a tensor: weights

    and ``kernel(x, y, *options, reduction)``, ``kernel_d_x(dL, x, y, *options, reduction)`` and
    ``kernel_d_y``, operations for them that round as torch's own backward does (``kernel_d_x`` with x and
    y exchanged, unless stated). ``apply(x, y, reduction, *options)``; x, y and tensor options of one shape.
    Caches x and y. Gradients flow back to x, y and the options that are tensors; torch refuses those of the
    options but within torch.func, and so do the functions.
    """

    loss: Formula = None
    d_x: Formula = None
    d_y: Formula = None
    d_options: Formula = None
    kernel: Formula = None
    kernel_d_x: Formula = None
    kernel_d_y: Formula = None

    def __init_subclass__(cls, **kwargs):
        for name in ("loss", "d_x", "d_y", "d_options", "kernel", "kernel_d_x", "kernel_d_y"):
            if cls.__dict__.get(name) is not None:
                setattr(cls, name, static(cls.__dict__[name]))
        _state_methods(cls)
        super().__init_subclass__(**kwargs)


def _state_methods(cls: Any) -> None:
    """Closures over ``cls``: torch.func and Dynamo lose a class that is looked up through ctx."""

    def forward(x, y, reduction, *options):
        if cls.kernel is not None:
            return cls.kernel(x, y, *options, REDUCTION[reduction])
        return reduce(evaluate(cls.loss, x, y, options=options), reduction)

    def save(needs, L, x, y, reduction, *options):
        tensors = [o if isinstance(o, torch.Tensor) else None for o in options]
        plain = [None if isinstance(o, torch.Tensor) else o for o in options]
        if not (needs.x or needs.y or any(needs.options)):
            return (None, None, *(None for _ in tensors)), (reduction, plain)
        return (x, y, *tensors), (reduction, plain)

    def all_options(tensors, plain):
        return [o if t is None else t for t, o in zip(tensors, plain, strict=True)]

    def times(slope, dl, x, y, options):
        """dl ∗ slope(x, y, *options), block by block; tensors among the options, too."""
        given = [o.expand(x.shape) for o in options if isinstance(o, torch.Tensor)]

        def formula(dl, x, y, *given):
            values = iter(given)
            opts = [next(values) if isinstance(o, torch.Tensor) else o for o in options]
            return dl * slope(x, y, *opts)

        return evaluate(formula, dl, x, y, *given)

    def d_y(x, y, *options):
        return -cls.d_x(x, y, *options) if cls.d_y is None else cls.d_y(x, y, *options)

    def d_option(i, dl, x, y, options):
        slope = times(lambda *given: cls.d_options(*given)[i], dl, x, y, options)
        return slope.sum_to_size(options[i].shape).to(options[i].dtype)

    def spread(dL, x, reduction):
        """dL for each element, over their number for the mean"""
        dl = dL.to(wide(dL.dtype)) / (x.numel() if reduction == "mean" else 1)
        return dl.expand(x.shape)

    def gradients(needs, dL, x, y, *rest):
        *tensors, reduction, plain = rest
        options, dl = all_options(tensors, plain), spread(dL, x, reduction)
        dx = times(cls.d_x, dl, x, y, options).to(x.dtype) if needs.x else None
        dy = times(d_y, dl, x, y, options).to(y.dtype) if needs.y else None
        return dx, dy, None, *through_options(needs, dl, x, y, options)

    def through_options(needs, dl, x, y, options):
        found = (
            d_option(i, dl, x, y, options) if need else None for i, need in enumerate(needs.options)
        )
        return tuple(found)

    def kernel_gradients(needs, dL, x, y, *rest):
        *tensors, reduction, plain = rest
        options, number, dx, dy = all_options(tensors, plain), REDUCTION[reduction], None, None
        if needs.x:
            dx = cls.kernel_d_x(dL, x, y, *options, number)
        if needs.y and cls.kernel_d_y is not None:
            dy = cls.kernel_d_y(dL, x, y, *options, number)
        elif needs.y:  # ℓ(x, y) = ℓ(y, x)
            dy = cls.kernel_d_x(dL, y, x, *options, number)
        if not any(needs.options):
            return dx, dy
        return dx, dy, None, *through_options(needs, spread(dL, x, reduction), x, y, options)

    def tangent(step, x, y, *rest):
        *tensors, reduction, plain = rest
        options, dl = all_options(tensors, plain), torch.zeros_like(x)
        if step.x is not None:
            dl = dl + step.x * cls.d_x(x, y, *options)
        if step.y is not None:
            dl = dl + step.y * d_y(x, y, *options)
        if any(d is not None for d in step.options):
            for d, slope in zip(step.options, cls.d_options(x, y, *options), strict=True):
                dl = dl if d is None else dl + d * slope
        return reduce(dl, reduction)

    methods = {"forward": forward, "save": save, "gradients": gradients, "tangent": tangent}
    if cls.kernel_d_x is not None:
        methods["kernel_gradients"] = kernel_gradients
    for name, method in methods.items():
        setattr(cls, name, static(method))


def reduce(losses, reduction):
    ways: dict[str, Any] = {"none": lambda t: t, "mean": torch.mean, "sum": torch.sum}
    return ways[reduction](losses)


class MSE(PointwiseLoss):
    """ℓ = (x − y)²
    ∂ℓ/∂x = 2 (x − y)
    Source: torch.nn.functional.mse_loss
    """

    twin = Twin("mse_loss", "MSELoss")
    examples = (Example(inputs(normal(4, 6), normal(4, 6)), batch=(0, 1)),)

    @staticmethod
    def loss(x, y):
        return (x - y) ** 2

    @staticmethod
    def d_x(x, y):
        return 2 * (x - y)

    kernel = aten.mse_loss.default
    kernel_d_x = aten.mse_loss_backward.default


class L1(Function):
    """ℓ = |x − y|
    dx = dL sign(x − y), divided by their number for the mean; 0 at the kink;  dy = −dx
    -> L, and e = x − y
    Caches e, of which only the sign is read: that has no derivative to lose.
    Source: torch.nn.functional.l1_loss
    """

    twin = Twin("l1_loss", "L1Loss")
    examples = (Example(inputs(normal(4, 6), normal(4, 6)), batch=(0, 1)),)

    outputs = 1

    @staticmethod
    def forward(x, y, reduction):
        e = x - y
        return reduce(e.abs(), reduction), e

    @staticmethod
    def save(needs, output, x, y, reduction):
        _, e = output
        return (e,), (reduction, x.dtype, y.dtype)

    @staticmethod
    def gradients(needs, dL, e, reduction, x_dtype, y_dtype):
        dl = dL / e.numel() if reduction == "mean" else dL
        dx = dl * torch.sgn(e)
        return dx.to(x_dtype) if needs.x else None, -dx.to(y_dtype) if needs.y else None

    @staticmethod
    def tangent(step, e, reduction, *_):
        e_dot = (0 if step.x is None else step.x) - (0 if step.y is None else step.y)
        return reduce(e_dot * torch.sgn(e), reduction)


class SmoothL1(PointwiseLoss):
    """ℓ = (x − y)² / (2 β) if |x − y| < β else |x − y| − β/2,  β > 0
    ∂ℓ/∂x = (x − y) / β if |x − y| < β else sign(x − y), which of NaN is NaN
    Source: Girshick 2015, eq. 3; torch.nn.functional.smooth_l1_loss
    """

    twin = Twin("smooth_l1_loss", "SmoothL1Loss")
    examples = (Example(inputs(normal(4, 6), normal(4, 6)), batch=(0, 1)),)

    @staticmethod
    def loss(x, y, beta):
        e = (x - y).abs()
        return torch.where(e < beta, e * e / (2 * beta), e - beta / 2)

    @staticmethod
    def d_x(x, y, beta):
        e = x - y
        slope = torch.where(e.abs() < beta, e / beta, torch.sign(e))
        return torch.where(e.isnan(), e, slope)  # torch.sign says 0 of it

    @staticmethod
    def kernel(x, y, beta, reduction):
        return aten.smooth_l1_loss.default(x, y, reduction, beta)

    @staticmethod
    def kernel_d_x(dL, x, y, beta, reduction):
        return aten.smooth_l1_loss_backward.default(dL, x, y, reduction, beta)


class Huber(PointwiseLoss):
    """ℓ = (x − y)² / 2 if |x − y| ≤ δ else δ (|x − y| − δ/2),  δ > 0
    ∂ℓ/∂x = min(max(x − y, −δ), δ)
    Source: Huber 1964; torch.nn.functional.huber_loss
    """

    twin = Twin("huber_loss", "HuberLoss")
    examples = (Example(inputs(normal(4, 6), normal(4, 6)), batch=(0, 1)),)

    @staticmethod
    def loss(x, y, delta):
        e = (x - y).abs()
        return torch.where(e <= delta, e * e / 2, delta * (e - delta / 2))

    @staticmethod
    def d_x(x, y, delta):
        return (x - y).clamp(-delta, delta)

    @staticmethod
    def kernel(x, y, delta, reduction):
        return aten.huber_loss.default(x, y, reduction, delta)

    @staticmethod
    def kernel_d_x(dL, x, y, delta, reduction):
        return aten.huber_loss_backward.default(dL, x, y, reduction, delta)


class BCE(PointwiseLoss):
    """ℓ = −w (y log x + (1 − y) log(1 − x)),  x a probability; the logarithms are at least −100
    ∂ℓ/∂x = w (x − y) / (x (1 − x)),  the denominator at least 1e−12
    ∂ℓ/∂y = w (log(1 − x) − log x)
    w: a weight of x's shape, or None for 1.
    Source: torch.nn.functional.binary_cross_entropy
    """

    twin = Twin("binary_cross_entropy", "BCELoss")
    _both = inputs(probabilities(4, 6), probabilities(4, 6))
    examples = (
        Example(_both, batch=(0, 1)),
        Example(_both, label="of x", not_variables=("target",), has_twin=False, batch=(0, 1)),
    )

    @staticmethod
    def loss(x, y, w):
        log_x, log_1_x = torch.log(x).clamp(min=-100), torch.log1p(-x).clamp(min=-100)
        return weighted(-(y * log_x + (1 - y) * log_1_x), w)

    @staticmethod
    def d_x(x, y, w):
        return weighted((x - y) / (x * (1 - x)).clamp(min=1e-12), w)

    @staticmethod
    def d_y(x, y, w):
        return weighted(torch.log1p(-x) - torch.log(x), w)  # not clamped, as torch's is not

    @staticmethod
    def d_options(x, y, w):
        return (BCE.loss(x, y, None),)

    kernel = aten.binary_cross_entropy.default
    kernel_d_x = aten.binary_cross_entropy_backward.default

    @staticmethod
    def kernel_d_y(dL, x, y, w, reduction):
        return reduced(torch.logit(x).neg_(), dL, w, reduction)


class BCEWithLogits(PointwiseLoss):
    """ℓ = −w (p y log σ(z) + (1 − y) log(1 − σ(z))),  z = x the score before the sigmoid
    ∂ℓ/∂z = w ((p y + 1 − y) σ(z) − p y);  without weights: σ(z) − y
    ∂ℓ/∂y = w (log(1 − σ(z)) − p log σ(z))
    w: a weight of z's shape; p: the weight of positive answers, of z's shape; None for 1.
    Source: torch.nn.functional.binary_cross_entropy_with_logits
    """

    twin = Twin("binary_cross_entropy_with_logits", "BCEWithLogitsLoss")
    examples = (Example(inputs(normal(4, 6), probabilities(4, 6)), batch=(0, 1)),)

    @staticmethod
    def loss(z, y, w, p):
        return weighted(-(weighted(y * F.logsigmoid(z), p) + (1 - y) * F.logsigmoid(-z)), w)

    @staticmethod
    def d_x(z, y, w, p):
        s, py = torch.sigmoid(z), weighted(y, p)
        return weighted(s - y if p is None else (py + 1 - y) * s - py, w)

    @staticmethod
    def d_y(z, y, w, p):
        return weighted(-z if p is None else F.logsigmoid(-z) - p * F.logsigmoid(z), w)

    @staticmethod
    def d_options(z, y, w, p):
        return BCEWithLogits.loss(z, y, None, p), weighted(-y * F.logsigmoid(z), w)

    kernel = aten.binary_cross_entropy_with_logits.default

    @staticmethod
    def kernel_d_x(dL, z, y, w, p, reduction):
        if p is None:
            return reduced(torch.sigmoid(z).sub_(y), dL, w, reduction)
        py = p * y
        return reduced((py + 1).sub_(y).mul_(torch.sigmoid(z)).sub_(py), dL, w, reduction)

    @staticmethod
    def kernel_d_y(dL, z, y, w, p, reduction):
        slope = -z if p is None else F.logsigmoid(-z).sub_(F.logsigmoid(z) * p)
        return reduced(slope, dL, w, reduction)


def reduced(slope, dL, w, reduction):
    """slope ∗ dL ∗ w, over the number of elements for the mean, rounded in torch's order; into the slope."""
    apart = is_batched(dL) or (dL.dim() and dL.dtype is not slope.dtype)  # y may be more precise
    slope = slope * dL if apart else slope.mul_(dL)
    if w is not None:
        slope = slope.mul_(w)
    return slope.div_(slope.numel()) if reduction == REDUCTION["mean"] else slope


def weighted(t, w):
    return t if w is None else t * w
