"""Losses of a row of scores and its class: cross-entropy, and the negative log-likelihood inside it."""

from typing import NamedTuple

import torch

from manualnn._torch import F, log_softmax_backward
from manualnn.autograd.blockwise import wide
from manualnn.autograd.examples import Example, Twin, classes, inputs, normal, probabilities
from manualnn.autograd.function import Function
from manualnn.ops.losses import steps
from manualnn.ops.losses.steps import REDUCTION, class_dim

aten = torch.ops.aten


class CrossEntropy(Function):
    """L = −Σ t ∗ log p / D,  p = softmax(z)
    dz = (p Σ_c t − t) dL / D;  of one-hot targets t = y: softmax(z) − y
    z (C), (N, C) or (N, C, d…); y the classes () (N) (N, d…), or probabilities of z's shape
    -> L, log p of z's shape, and the sum D of the weights where the kernel knows it
    t the target: one-hot or y itself, smoothed (1 − ε) t + ε/C, times the class weights w (C), and 0
    where the class is to be ignored. D: 1 for "sum" and "none"; for "mean", the weights of the true
    classes summed, or the number of rows if y are probabilities.
    Caches log p, not z. It is an output, with a derivative of its own, so that a second derivative
    finds its way through it. The weights and probabilities y may need a gradient, too:
    dy = −w (1 − ε) log p dL / D;  dw = −Σ (t/w) log p dL / D, over all but the classes, and of the mean
    over classes y, whose weights D adds up, −(L/D) ΣdL for each time that the class is the true one.
    Source: torch.nn.functional.cross_entropy; Szegedy et al. 2016, section 7 (smoothing)
    """

    twin = Twin("cross_entropy", "CrossEntropyLoss")
    examples = (
        Example(inputs(normal(4, 6), classes(4, high=6)), batch=(0, 1)),
        Example(inputs(normal(4, 6), probabilities(4, 6)), label="probabilities", batch=(0, 1)),
    )

    outputs = 2

    @staticmethod
    def forward(z, y, w, reduction, ignore_index, smoothing):
        logp = torch.log_softmax(z, class_dim(z))
        if rows_with_a_class(z, y, smoothing):
            L, D = aten.nll_loss_forward.default(logp, y, w, REDUCTION[reduction], ignore_index)
            return L, logp, D
        L = F.cross_entropy(
            z,
            y,
            w,
            reduction=reduction,
            ignore_index=ignore_index,
            label_smoothing=smoothing,
        )
        return unviewed(L, z, reduction), logp, logp.new_empty(())

    @staticmethod
    def save(needs, output, z, y, w, *options):
        _, logp, D = output
        how = How(*options, y.dtype, None if w is None else w.dtype)
        if not (needs.z or needs.y or needs.w):
            return (None, None, None, None), (how,)
        return (logp, y if needs.z or needs.w else None, w, D), (how,)

    @staticmethod
    def gradients(needs, dL, dlogp, logp, y, w, D, how):
        dtype, dim = logp.dtype, class_dim(logp)
        logp, w = widened(logp), w if w is None else widened(w)
        dz = dy = dw = None
        if dL is not None:
            dl = over_classes(widened(dL), logp, how)
            if needs.z:
                t, D = targets(logp, y, w, how)
                p = logp.exp()
                dz = (p * t.sum(dim, keepdim=True) - t) * (dl / D)
            if needs.y:  # probabilities: the mean is over the rows
                D = logp.numel() // max(logp.shape[dim], 1) if how.reduction == "mean" else 1
                dy = ((how.smoothing - 1) * logp * by_class(w, logp) * (dl / D)).to(how.y_dtype)
            if needs.w:
                dw = d_weights(dl, logp, y, w, how).to(how.w_dtype)
        if dlogp is not None and needs.z:
            through = dlogp - logp.exp() * dlogp.sum(dim, keepdim=True)
            dz = through if dz is None else dz + through
        return dz if dz is None else dz.to(dtype), dy, dw

    @staticmethod
    def tangent(step, logp, y, w, D, how):
        t, D = targets(logp, y, w, how)
        dim, p = class_dim(logp), logp.exp()
        dl, logp_dot = torch.zeros_like(logp), torch.zeros_like(logp)
        if step.z is not None:
            logp_dot = step.z - (p * step.z).sum(dim, keepdim=True)
            dl = dl - t * logp_dot
        if step.y is not None:
            dl = dl - (1 - how.smoothing) * logp * by_class(w, logp) * step.y
        if step.w is not None:
            dl = dl - weights_moved(logp, y, step.w, t, D, how)
        return per_row(dl / D, dim, how), logp_dot

    @staticmethod
    def kernel_forward(z, y, w, reduction, ignore_index, smoothing):
        options = reduction, ignore_index, smoothing
        if not steps.fit(z, y, w, ignore_index, smoothing):
            return CrossEntropy.forward(z, y, w, *options)
        logp = torch.log_softmax(z, class_dim(z))
        L, D = steps.loss(logp, y, w, *options)
        return L, logp, D

    @staticmethod
    def layout(needs, output, z, y, w, reduction, ignore_index, smoothing):
        return (steps.fit(z, y, w, ignore_index, smoothing),)

    @staticmethod
    def kernel_gradients(needs, dL, dlogp, logp, y, w, D, how, fits):
        if not fits or dL is None or dlogp is not None:
            return CrossEntropy.gradients(needs, dL, dlogp, logp, y, w, D, how)
        options = how.reduction, how.ignore_index, how.smoothing
        dz = dy = dw = None
        if needs.z:
            d = steps.d_logp(dL, logp, y, w, *options, D).to(logp.dtype)  # y may be more precise
            dz = log_softmax_backward(d, logp, class_dim(logp), logp.dtype)
        if needs.y:
            dy = steps.d_probabilities(dL, logp, w, how.reduction, how.smoothing)
        if needs.w:
            dw = steps.d_weight(dL, logp, y, w, how.reduction, how.smoothing)
        return dz, dy, dw


class NLL(Function):
    """L = −Σ t ∗ logp / D
    dlogp = −t dL / D
    logp (C), (N, C) or (N, C, d…) log-probabilities; y the classes () (N) (N, d…)
    -> L, and D where the kernel knows it
    t, D and dw as in CrossEntropy, without smoothing.
    Caches y, and of logp the shape alone, unless the weights need a gradient.
    Source: torch.nn.functional.nll_loss
    """

    twin = Twin("nll_loss", "NLLLoss")
    examples = (Example(inputs(normal(4, 6), classes(4, high=6)), batch=(0, 1)),)

    outputs = 1

    @staticmethod
    def forward(logp, y, w, reduction, ignore_index):
        if rows_with_a_class(logp, y, 0.0):
            return aten.nll_loss_forward.default(logp, y, w, REDUCTION[reduction], ignore_index)
        L = F.nll_loss(logp, y, w, reduction=reduction, ignore_index=ignore_index)
        return unviewed(L, logp, reduction), logp.new_empty(())

    @staticmethod
    def save(needs, output, logp, y, w, reduction, ignore_index):
        _, D = output
        how = How(reduction, ignore_index, 0.0, y.dtype, None if w is None else w.dtype)
        return (logp if needs.w else like(logp), y, w, D), (how,)

    @staticmethod
    def gradients(needs, dL, logp, y, w, D, how):
        dlogp = dw = None
        dl = over_classes(dL, logp, how)
        if needs.w:
            dw = d_weights(dl, logp, y, w, how)
        if needs.logp:
            t, D = targets(logp, y, w, how)
            # 0 but at the true class, also where the weights have no sum and D is 0.
            true = targets(logp, y, None, how)[0] != 0
            dlogp = torch.where(true, -t * (dl / D), 0)
        return dlogp, None, dw

    @staticmethod
    def tangent(step, logp, y, w, D, how):
        t, D = targets(logp, y, w, how)
        dl = torch.zeros_like(logp)
        if step.logp is not None:
            dl = dl - t * step.logp
        if step.w is not None:
            dl = dl - weights_moved(logp, y, step.w, t, D, how)
        return per_row(dl / D, class_dim(logp), how)

    @staticmethod
    def kernel_forward(logp, y, w, reduction, ignore_index):
        if NLL.layout(None, None, logp, y, w)[0]:
            return steps.nll(logp, y, w, reduction, ignore_index)
        return NLL.forward(logp, y, w, reduction, ignore_index)

    @staticmethod
    def layout(needs, output, logp, y, w, *options):
        return (steps.fit(logp, y, w) and not y.is_floating_point(),)

    @staticmethod
    def kernel_gradients(needs, dL, logp, y, w, D, how, fits):
        if not fits or needs.w:
            return NLL.gradients(needs, dL, logp, y, w, D, how)
        return steps.nll_backward(dL, logp, y, w, how.reduction, how.ignore_index, D)


class How(NamedTuple):
    """The options of a loss of classes, and the dtypes in which its gradients are to arrive."""

    reduction: str
    ignore_index: int
    smoothing: float
    y_dtype: torch.dtype
    w_dtype: torch.dtype | None


def like(t):
    """One element that bears t's shape and dtype."""
    return t.new_empty(()).expand(t.shape)


def rows_with_a_class(z, y, smoothing):
    """Rows of scores with a class each, not smoothed: what nearly every classifier trains with."""
    return not smoothing and z.dim() == 2 and y.dim() == 1 and y.shape[0] == z.shape[0]


def widened(t):
    return t.to(wide(t.dtype))


def unviewed(L, z, reduction):
    """L as a tensor of its own: of volumes and signals torch returns a view, which autograd forbids
    to change in place when it comes out of a Function."""
    return L.clone() if reduction == "none" and z.dim() not in (1, 2, 4) else L


def by_class(w, z):
    """The class weights (C) laid along z's class dimension; 1 without weights."""
    return 1 if w is None else steps.along(w, z)


def row_weights(y, w, ignore_index, dtype):
    """The weight of each row's true class; 0 where it is to be ignored."""
    counted, y = y != ignore_index, y.long()
    if w is None:
        return counted.to(dtype)
    return torch.where(counted, w[torch.where(counted, y, 0)], 0)


def targets(z, y, w, how):
    """The weighted, smoothed target t of z's shape, and the divisor D."""
    dim, ε = class_dim(z), how.smoothing
    if y.shape == z.shape and y.is_floating_point():
        t = steps.smoothed(widened(y), ε, dim) * by_class(w, z)
        D = z.numel() // max(z.shape[dim], 1)
    else:
        counted = (y != how.ignore_index).unsqueeze(dim)
        one_hot = true_classes(z, y, how)
        t = (one_hot * (1 - ε) + ε / z.shape[dim]) * counted if ε else one_hot
        t = t * by_class(w, z)
        D = row_weights(y, w, how.ignore_index, z.dtype).sum()
        D = torch.where(counted, D, 1)  # a row that is ignored has the gradient 0, whatever D is
    return t, D if how.reduction == "mean" else 1


def true_classes(z, y, how):
    """1 for the true class of a row that is not ignored, of z's shape"""
    dim = class_dim(z)
    counted = (y != how.ignore_index).unsqueeze(dim)
    index = torch.where(counted, y.long().unsqueeze(dim), 0)
    return torch.zeros_like(z).scatter(dim, index, 1) * counted


def weights_moved(logp, y, w_dot, t, D, how):
    """How t log p moves with the weights, and with D, of which it is then divided: (ṫ − t Ḋ / D) log p"""
    t_dot, D_dot = targets(logp, y, w_dot, how)
    logp = where_counted(logp, targets(logp, y, None, how)[0], y)
    if how.reduction != "mean" or y.is_floating_point():  # of probabilities D is a count
        return t_dot * logp
    return (t_dot - t * D_dot / D) * logp


def d_weights(dl, logp, y, w, how):
    """dw = −Σ (t/w) log p dL / D, over all but the classes; D moves with the weights of classes, not of
    probabilities. dl: dL, with one class in place of all"""
    t, D = targets(logp, y, w, how)
    of_one = targets(logp, y, None, how)[0]
    logp = where_counted(logp, of_one, y)
    terms = -of_one * logp * (dl / D)
    if how.reduction == "mean" and not y.is_floating_point():
        L = -(t * logp).sum() / D
        terms = terms - true_classes(logp, y, how) * (L * dl / D)
    return over_all_but_classes(terms, class_dim(logp))


def where_counted(logp, t, y):
    """log p, and 0 where classes y do not read it: there it may be −∞, of a score that is masked."""
    return logp if y.is_floating_point() else logp.masked_fill(t == 0, 0)


def over_all_but_classes(t, dim):
    return t.sum([d for d in range(t.dim()) if d != dim]) if t.dim() > 1 else t


def over_classes(dL, z, how):
    return dL.unsqueeze(class_dim(z)) if how.reduction == "none" else dL


def per_row(terms, dim, how):
    return terms.sum(dim) if how.reduction == "none" else terms.sum()
