"""Losses of a row of scores and its class: cross-entropy, and the negative log-likelihood inside it."""

import torch
from torch.nn import functional as F

from manualnn.elementwise import wide
from manualnn.function import Function, first_order, forward_mode


class CrossEntropy(Function):
    """L = −Σ t ∗ log softmax(z) / D
    dz = (softmax(z) Σ_c t − t) dL / D;  of one-hot targets t = y: softmax(z) − y
    z (C), (N, C) or (N, C, d…); y the classes () (N) (N, d…), or probabilities of z's shape -> L
    t the target: one-hot or y itself, smoothed (1 − ε) t + ε/C, times the class weights w (C), and 0
    where the class is to be ignored. D: 1 for "sum" and "none"; for "mean", the weights of the true
    classes summed, or the number of rows if y are probabilities.
    Caches z and y. Probabilities y may need a gradient: dy = −w (1 − ε) log softmax(z) dL / D.
    Source: torch.nn.functional.cross_entropy; Szegedy et al. 2016, section 7 (smoothing)
    """

    @staticmethod
    def forward(z, y, w, reduction, ignore_index, smoothing):
        L = F.cross_entropy(
            z,
            y,
            w,
            reduction=reduction,
            ignore_index=ignore_index,
            label_smoothing=smoothing,
        )
        return unviewed(L, z, reduction)

    @staticmethod
    def setup_context(ctx, inputs, L):
        z, y, w, ctx.reduction, ctx.ignore_index, ctx.smoothing = inputs
        ctx.y_dtype = y.dtype
        need_z, need_y = ctx.needs_input_grad[:2]
        if need_z or need_y:
            ctx.save_for_backward(z, y if need_z else None, w)
        if forward_mode():
            ctx.save_for_forward(z, y, w)

    @staticmethod
    def backward(ctx, dL):
        z, y, w = ctx.saved_tensors
        need_z, need_y = ctx.needs_input_grad[:2]
        dz = dy = None
        dtype, dL = z.dtype, dL.to(wide(dL.dtype))
        z, w = z.to(wide(dtype)), w if w is None else w.to(wide(w.dtype))
        if need_z and plain(ctx, z, y) and first_order():
            # Row by row softmax(z) − y, times what the row's loss weighs: 0 where it is ignored.
            weights = row_weights(y, w, ctx.ignore_index, z.dtype)
            scale = dL / weights.sum() if ctx.reduction == "mean" else dL
            weights = (weights * scale).unsqueeze(1)
            dz = torch.softmax(z, 1) * weights
            dz.scatter_add_(1, y.clamp(min=0).unsqueeze(1), -weights)
            return dz.to(dtype), None, None, None, None, None
        dim = class_dim(z)
        dl = over_classes(dL, z, ctx.reduction)
        if need_z:
            t, D = targets(ctx, z, y, w)
            dz = (torch.softmax(z, dim) * t.sum(dim, keepdim=True) - t) * (dl / D)
            dz = dz.to(dtype)
        if need_y:
            # Probabilities: the mean is over the rows.
            D = z.numel() // z.shape[dim] if ctx.reduction == "mean" else 1
            dy = (ctx.smoothing - 1) * torch.log_softmax(z, dim) * by_class(w, z) * (dl / D)
            dy = dy.to(ctx.y_dtype)
        return dz, dy, None, None, None, None

    @staticmethod
    def jvp(ctx, z_dot, y_dot, *_):
        z, y, w = ctx.saved_tensors
        t, D = targets(ctx, z, y, w)
        dim = class_dim(z)
        dl = torch.zeros_like(z)
        if z_dot is not None:
            dl = dl + (torch.softmax(z, dim) * t.sum(dim, keepdim=True) - t) * z_dot
        if y_dot is not None:
            dl = dl - (1 - ctx.smoothing) * torch.log_softmax(z, dim) * by_class(w, z) * y_dot
        return per_row(dl / D, dim, ctx.reduction)


class NLL(Function):
    """L = −Σ t ∗ logp / D
    dlogp = −t dL / D
    logp (C), (N, C) or (N, C, d…) log-probabilities; y the classes () (N) (N, d…) -> L
    t and D as in CrossEntropy, without smoothing.
    Caches y, and of logp the shape alone.
    Source: torch.nn.functional.nll_loss
    """

    @staticmethod
    def forward(logp, y, w, reduction, ignore_index):
        L = F.nll_loss(logp, y, w, reduction=reduction, ignore_index=ignore_index)
        return unviewed(L, logp, reduction)

    @staticmethod
    def setup_context(ctx, inputs, L):
        logp, y, w, ctx.reduction, ctx.ignore_index = inputs
        ctx.smoothing = 0.0
        # expand: an element that bears the shape and the dtype
        like = logp.new_empty(()).expand(logp.shape)
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(like, y, w)
        if forward_mode():
            ctx.save_for_forward(like, y, w)

    @staticmethod
    def backward(ctx, dL):
        logp, y, w = ctx.saved_tensors
        t, D = targets(ctx, logp, y, w)
        return -t * (over_classes(dL, logp, ctx.reduction) / D), None, None, None, None

    @staticmethod
    def jvp(ctx, logp_dot, *_):
        logp, y, w = ctx.saved_tensors
        t, D = targets(ctx, logp, y, w)
        return per_row(-t * logp_dot / D, class_dim(logp), ctx.reduction)


def unviewed(L, z, reduction):
    """L as a tensor of its own: of volumes and signals torch returns a view, which autograd forbids
    to change in place when it comes out of a Function."""
    return L.clone() if reduction == "none" and z.dim() not in (1, 2, 4) else L


def class_dim(z):
    return 0 if z.dim() == 1 else 1


def plain(ctx, z, y):
    """Rows of scores with a class each, not smoothed: what nearly every classifier trains with."""
    return z.dim() == 2 and y.dim() == 1 and not ctx.smoothing


def by_class(w, z):
    """The class weights (C) laid along z's class dimension; 1 without weights."""
    return 1 if w is None else w.view(-1, *(1 for _ in z.shape[class_dim(z) + 1 :]))


def row_weights(y, w, ignore_index, dtype):
    """The weight of each row's true class; 0 where it is to be ignored."""
    counted = y != ignore_index
    if w is None:
        return counted.to(dtype)
    return torch.where(counted, w[torch.where(counted, y, 0)], 0)


def targets(ctx, z, y, w):
    """The weighted, smoothed target t of z's shape, and the divisor D."""
    dim, ε = class_dim(z), ctx.smoothing
    if y.shape == z.shape and y.is_floating_point():
        t, D = (y * (1 - ε) + ε / z.shape[dim]) * by_class(w, z), z.numel() // z.shape[dim]
    else:
        counted = (y != ctx.ignore_index).unsqueeze(dim)
        index = torch.where(counted, y.unsqueeze(dim), 0)
        one_hot = torch.zeros_like(z).scatter(dim, index, 1)
        t = one_hot * (1 - ε) + ε / z.shape[dim] if ε else one_hot
        t = t * by_class(w, z) * counted
        D = row_weights(y, w, ctx.ignore_index, z.dtype).sum()
    return t, D if ctx.reduction == "mean" else 1


def over_classes(dL, z, reduction):
    return dL.unsqueeze(class_dim(z)) if reduction == "none" else dL


def per_row(terms, dim, reduction):
    return terms.sum(dim) if reduction == "none" else terms.sum()
