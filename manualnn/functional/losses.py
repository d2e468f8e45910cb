"""Losses."""

import warnings
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from torch.nn import functional as F

from manualnn._torch import any_autocast, transforms_active
from manualnn.autograd.autocast import autocast
from manualnn.functional.names import number, require_tensor, scalar_type
from manualnn.ops import losses


def _refuse_gradient(function: str, **weights: Tensor | None) -> None:
    """As torch: a weight of these losses is a constant, but within torch.func."""
    if not torch.is_grad_enabled() or transforms_active():
        return
    for name, weight in weights.items():
        if weight is not None and weight.requires_grad:
            raise RuntimeError(
                f"The function '{function}' is not differentiable with respect to argument '{name}'. "
                "This input cannot have requires_grad True."
            )


def mse_loss(
    input: Tensor,
    target: Tensor,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    weight: Tensor | None = None,
) -> Tensor:
    """(x − y)², averaged, summed or as it is"""
    reduction = _reduction(size_average, reduce, reduction)
    x, y = _pair("mse_loss", input, target, weight)
    _check_weight(weight, input)
    if weight is None:
        return losses.MSE.apply(x, y, reduction)
    if not (x.is_floating_point() or y.is_floating_point() or x.is_complex() or y.is_complex()):
        return _weighted((x - y) ** 2, weight, reduction, True)  # whole numbers, exactly
    with _no_autocast(x):  # whose kernel widens, torch's operations do not
        squares = losses.MSE.apply(x, y, "none")
    return _weighted(squares, weight, reduction, True)


def l1_loss(
    input: Tensor,
    target: Tensor,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    weight: Tensor | None = None,
) -> Tensor:
    """|x − y|, averaged, summed or as it is"""
    reduction = _reduction(size_average, reduce, reduction)
    x, y = _pair("l1_loss", input, target, weight)
    _check_weight(weight, input)
    if weight is None:
        return losses.L1.apply(x, y, reduction)[0]
    return _weighted(losses.L1.apply(x, y, "none")[0], weight, reduction, True)


def smooth_l1_loss(
    input: Tensor,
    target: Tensor,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    beta: float = 1.0,
) -> Tensor:
    """Quadratic where |x − y| < beta, linear beyond; averaged, summed or as it is"""
    reduction = _reduction(size_average, reduce, reduction)
    beta = number("smooth_l1_loss", "beta", beta)
    x, y = _pair("smooth_l1_loss", input, target)
    if beta < 0:
        raise RuntimeError("smooth_l1_loss does not support negative values for beta.")
    if beta == 0:
        return losses.L1.apply(x, y, reduction)[0]
    return losses.SmoothL1.apply(x, y, reduction, beta)


def huber_loss(
    input: Tensor,
    target: Tensor,
    reduction: str = "mean",
    delta: float = 1.0,
    weight: Tensor | None = None,
) -> Tensor:
    """Quadratic where |x − y| ≤ delta, linear beyond; averaged, summed or as it is"""
    _reduction(None, None, reduction)
    delta = number("huber_loss", "delta", delta)
    x, y = _pair("huber_loss", input, target)
    _check_weight(weight, input)
    if weight is None:
        return losses.Huber.apply(x, y, reduction, delta)
    return _weighted(losses.Huber.apply(x, y, "none", delta), weight, reduction, False)


def binary_cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    """−(y log x + (1 − y) log(1 − x)), x a probability; averaged, summed or as it is"""
    reduction = _reduction(size_average, reduce, reduction)
    if target.size() != input.size():
        raise ValueError(
            f"Using a target size ({target.size()}) that is different to the input size "
            f"({input.size()}) is deprecated. Please ensure they have the same size."
        )
    if weight is not None:
        weight = weight.expand(torch.broadcast_shapes(target.size(), weight.size()))
    _refuse_gradient("binary_cross_entropy", weight=weight)
    x, y, w = autocast("binary_cross_entropy", input, target, weight)
    return losses.BCE.apply(x, y, reduction, w)


def binary_cross_entropy_with_logits(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    pos_weight: Tensor | None = None,
) -> Tensor:
    """−(p y log σ(z) + (1 − y) log(1 − σ(z))); averaged, summed or as it is"""
    reduction = _reduction(size_average, reduce, reduction)
    if target.size() != input.size():
        raise ValueError(
            f"Target size ({target.size()}) must be the same as input size ({input.size()})"
        )
    _refuse_gradient("binary_cross_entropy_with_logits", weight=weight, pos_weight=pos_weight)
    z, y, w, p = autocast("binary_cross_entropy_with_logits", input, target, weight, pos_weight)
    return losses.BCEWithLogits.apply(z, y, reduction, w, p)


def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """−log softmax(z) of the true class, or −Σ y log softmax(z); averaged, summed or as it is.

    input (C), (N, C) or (N, C, d…); target the classes () (N) (N, d…), or probabilities of input's
    shape; weight (C).
    """
    reduction = _reduction(size_average, reduce, reduction)
    require_tensor("cross_entropy_loss", 1, "input", input)
    require_tensor("cross_entropy_loss", 2, "target", target)
    if _is_torchs(input, ignore_index):
        return F.cross_entropy(
            input,
            target,
            weight,
            ignore_index=ignore_index,
            reduction=reduction,
            label_smoothing=label_smoothing,
        )
    if target.is_floating_point():
        z, y, w = autocast("cross_entropy", input, target, weight)
    else:
        if target.shape == input.shape:
            raise RuntimeError(
                "Expected floating point type for target with class probabilities, got "
                f"{scalar_type(target)}"
            )
        _refuse_gradient(_nll(input), weight=weight)
        (z, w), y = autocast("cross_entropy", input, weight), target
    smoothing = number("cross_entropy_loss", "label_smoothing", label_smoothing)
    # As torch, which takes NaN, and what is below 0, for none.
    smoothing = smoothing if smoothing > 0 else 0.0
    return losses.CrossEntropy.apply(z, y, w, reduction, ignore_index, smoothing)[0]


def nll_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    """−logp of the true class; averaged, summed or as it is. Shapes as in cross_entropy."""
    reduction = _reduction(size_average, reduce, reduction)
    require_tensor("nll_loss_nd", 1, "input", input)
    require_tensor("nll_loss_nd", 2, "target", target)
    if _is_torchs(input, ignore_index):
        return F.nll_loss(input, target, weight, ignore_index=ignore_index, reduction=reduction)
    _refuse_gradient(_nll(input), weight=weight)
    logp, w = autocast("nll_loss", input, weight)
    return losses.NLL.apply(logp, target, w, reduction, ignore_index)[0]


def _is_torchs(input: Tensor, ignore_index: int) -> bool:
    """A trace; an option that it refuses, in its words; or scores of no class, of which all are ignored."""
    classes = input.shape[min(1, input.dim() - 1)] if input.dim() else 0
    return torch.jit.is_tracing() or not classes or not isinstance(ignore_index, int)


def _nll(input: Tensor) -> str:
    return "nll_loss_forward" if input.dim() <= 2 else "nll_loss2d_forward"


def _reduction(size_average: bool | None, reduce: bool | None, reduction: str) -> str:
    if size_average is not None or reduce is not None:
        mean = size_average is None or size_average
        reduction = "none" if reduce is False else ("mean" if mean else "sum")
        warnings.warn(
            "size_average and reduce args will be deprecated, "
            f"please use reduction='{reduction}' instead.",
            stacklevel=3,
        )
    if reduction not in ("none", "mean", "sum"):
        raise ValueError(f"{reduction} is not a valid value for reduction")
    return reduction


def _pair(
    name: str, input: Tensor, target: Tensor, weight: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    if target.size() != input.size():
        warnings.warn(
            f"Using a target size ({target.size()}) that is different to the input size "
            f"({input.size()}). This will likely lead to incorrect results due to broadcasting. "
            "Please ensure they have the same size.",
            stacklevel=3,
        )
        input, target = torch.broadcast_tensors(input, target)
    # Of weighted ones torch makes elementary operations, which autocast leaves alone.
    return autocast(name, input, target) if weight is None else (input, target)


def _no_autocast(x: Tensor) -> AbstractContextManager[object]:
    device = x.device.type
    if any_autocast() and torch.amp.is_autocast_available(device):  # not of meta tensors
        return torch.autocast(device, enabled=False)
    return nullcontext()


def _check_weight(weight: Tensor | None, input: Tensor) -> None:
    if weight is not None and weight.size() != input.size():
        raise ValueError("Weights and input must have the same size.")


def _weighted(terms: Tensor, weight: Tensor, reduction: str, mean_by_weight: bool) -> Tensor:
    """The terms times their weights, reduced; torch's mean of huber_loss alone divides by their number."""
    terms = terms * weight
    if reduction == "none":
        return terms
    if reduction == "mean":
        return terms.sum() / weight.sum() if mean_by_weight else terms.mean()
    return terms.sum()
