"""Cross-entropy in the steps in which PyTorch takes it, so that it rounds as PyTorch's own does.

y are the classes, smoothed or not, or probabilities; ``CrossEntropy`` states the formulas. What is here
computes them from log p with PyTorch's kernels, forward and backward, and cannot be differentiated again.
"""

import math

import torch

from manualnn._torch import unsafe_view

aten = torch.ops.aten
REDUCTION = {"none": 0, "mean": 1, "sum": 2}  # aten's numbers for them


def fit(z, y, w, ignore_index=-100, smoothing=0.0):
    """Whether y holds a class, or probabilities, for each row of z, and the options are PyTorch's."""
    if smoothing > 1 or (y.is_floating_point() and ignore_index >= 0):
        return False
    if not z.numel() or (w is not None and w.shape != (z.shape[class_dim(z)],)):
        return False
    if y.is_floating_point():
        return y.shape == z.shape
    return y.shape == (z.shape[:1] + z.shape[2:] if z.dim() > 1 else ())


def loss(logp, y, w, reduction, ignore_index, smoothing):
    """L, and the sum D of the true classes' weights; of probabilities None."""
    dim, ε = class_dim(logp), smoothing
    if y.is_floating_point():
        L = total(-(weighted(logp * smoothed(y, ε, dim), w)), reduction, dim)
        return L / (logp.numel() // logp.shape[dim]) if reduction == "mean" else L, None
    L, D = nll(logp, y, w, reduction, ignore_index)
    if not ε:
        return L, D
    by_row = -weighted(logp, w).sum(dim)
    by_row = by_row.masked_fill_(y == ignore_index, 0)
    uniform = by_row if reduction == "none" else by_row.sum()
    if reduction == "mean":
        uniform = uniform / counted(y, w, ignore_index)
    return L.mul(1 - ε) + uniform * (ε / logp.shape[dim]), D


def d_logp(dL, logp, y, w, reduction, ignore_index, smoothing, D):
    """∂L/∂log p ∗ dL"""
    dim, ε = class_dim(logp), smoothing
    if y.is_floating_point():
        return by_row(dL, logp, w, reduction) * smoothed(y, ε, dim)
    if not ε:
        return nll_backward(dL, logp, y, w, reduction, ignore_index, D)
    d = nll_backward(dL * (1 - ε), logp, y, w, reduction, ignore_index, D)
    dl = dL * (ε / logp.shape[dim])
    if reduction == "mean":
        dl = dl / counted(y, w, ignore_index)
    dl = dl.expand(y.shape).masked_fill(y == ignore_index, 0).neg_().unsqueeze(dim)
    return d.add_(dl if w is None else dl * along(w, logp))


def d_probabilities(dL, logp, w, reduction, smoothing):
    """∂L/∂y ∗ dL"""
    dy = by_row(dL, logp, w, reduction) * logp
    return dy * (1 - smoothing) if smoothing else dy


def d_weight(dL, logp, y, w, reduction, smoothing):
    """∂L/∂w ∗ dL, of probabilities y"""
    dim = class_dim(logp)
    dw = by_row(dL, logp, None, reduction) * (logp * smoothed(y, smoothing, dim))
    return dw.sum_to_size(along(w, logp).shape).view(w.shape)


def nll(logp, y, w, reduction, ignore_index):
    """−w log p of the true class, reduced, and the sum of the weights"""
    options = REDUCTION[reduction], ignore_index
    if logp.dim() <= 2:
        return aten.nll_loss_forward.default(logp, y, w, *options)
    L, D = aten.nll_loss2d_forward.default(image(logp), image(y, 1), w, *options)
    # Of its own: what a Function gives out may not be a view, which nobody could write over.
    return (unsafe_view(L, y.shape) if reduction == "none" else L), D


def nll_backward(dL, logp, y, w, reduction, ignore_index, D):
    options = REDUCTION[reduction], ignore_index, D
    if logp.dim() <= 2:
        return aten.nll_loss_backward.default(dL, logp, y, w, *options)
    dL = image(dL, 1) if reduction == "none" else dL
    d = aten.nll_loss2d_backward.default(dL, image(logp), image(y, 1), w, *options)
    return d.view(logp.shape)


def image(t, lead=2):
    """What follows (N, C), or (N), as the two dimensions of an image."""
    if t.dim() == lead + 2:
        return t
    places = math.prod(t.shape[lead:])
    return t.reshape(*t.shape[:lead], 1, places)


def by_row(dL, logp, w, reduction):
    """−dL for every element, over the number of rows for the mean, times the weight of its class"""
    dim = class_dim(logp)
    dl = -(dL / (logp.numel() // logp.shape[dim])) if reduction == "mean" else -dL
    dl = dl.unsqueeze(dim) if reduction == "none" else dl
    return dl.expand(logp.shape) if w is None else dl * along(w, logp)


def smoothed(y, ε, dim):
    return y * (1 - ε) + ε / y.shape[dim] if ε else y


def counted(y, w, ignore_index):
    """How many rows are not ignored, or the sum of their classes' weights."""
    counts = y != ignore_index
    if w is None:
        return counts.sum()
    if y.is_meta or type(y) is not torch.Tensor:  # how many are chosen nobody can know there
        weights = w.gather(0, y.masked_fill(~counts, 0).flatten())
        return weights.masked_fill(~counts.flatten(), 0).sum()
    return w.gather(0, y.masked_select(counts)).sum()


def weighted(terms, w):
    return terms if w is None else terms * along(w, terms)


def along(w, z):
    """The class weights (C) laid along z's class dimension."""
    return w.view(-1, *(1 for _ in z.shape[class_dim(z) + 1 :]))


def total(terms, reduction, dim):
    return terms.sum(dim) if reduction == "none" else terms.sum()


def class_dim(z):
    return 0 if z.dim() == 1 else 1
