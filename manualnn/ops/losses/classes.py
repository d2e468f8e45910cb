"""Losses of a row of scores and its class: cross-entropy, and the negative log-likelihood inside it."""

import torch

from manualnn.elementwise import wide
from manualnn.function import Function, first_order
from manualnn.ops.losses import steps
from manualnn.ops.losses.steps import REDUCTION, class_dim
from manualnn.torchs import F
from manualnn.transforms import forward_mode

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
    def setup_context(ctx, inputs, output):
        z, y, w, ctx.reduction, ctx.ignore_index, ctx.smoothing = inputs
        _, logp, D = output
        ctx.y_dtype, ctx.w_dtype = y.dtype, None if w is None else w.dtype
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(D)
        need_z, need_y, need_w = ctx.needs_input_grad[:3]
        if need_z or need_y or need_w:
            known = rows_with_a_class(logp, y, ctx.smoothing)
            ctx.save_for_backward(logp, y if need_z or need_w else None, w, D if known else None)
        if forward_mode():
            ctx.save_for_forward(logp, y, w)

    @staticmethod
    def backward(ctx, dL, dlogp, _):
        logp, y, w, D = ctx.saved_tensors
        need_z, need_y, need_w = ctx.needs_input_grad[:3]
        kernels = dL is not None and dlogp is None and not (need_y or need_w) and first_order()
        if kernels and rows_with_a_class(logp, y, ctx.smoothing):
            reduction = REDUCTION[ctx.reduction]
            d = aten.nll_loss_backward.default(dL, logp, y, w, reduction, ctx.ignore_index, D)
            dz = torch._log_softmax_backward_data(d, logp, 1, logp.dtype)
            return dz, None, None, None, None, None

        dtype, dim = logp.dtype, class_dim(logp)
        logp, w = widened(logp), w if w is None else widened(w)
        dz = dy = dw = None
        if dL is not None:
            dl = over_classes(widened(dL), logp, ctx.reduction)
            if need_z:
                t, D = targets(ctx, logp, y, w)
                p = logp.exp()
                dz = (p * t.sum(dim, keepdim=True) - t) * (dl / D)
            if need_y:  # probabilities: the mean is over the rows
                D = logp.numel() // max(logp.shape[dim], 1) if ctx.reduction == "mean" else 1
                dy = ((ctx.smoothing - 1) * logp * by_class(w, logp) * (dl / D)).to(ctx.y_dtype)
            if need_w:
                dw = d_weights(ctx, dl, logp, y, w).to(ctx.w_dtype)
        if dlogp is not None and need_z:
            through = dlogp - logp.exp() * dlogp.sum(dim, keepdim=True)
            dz = through if dz is None else dz + through
        return dz if dz is None else dz.to(dtype), dy, dw, None, None, None

    @staticmethod
    def jvp(ctx, z_dot, y_dot, w_dot, *_):
        logp, y, w = ctx.saved_tensors
        t, D = targets(ctx, logp, y, w)
        dim, p = class_dim(logp), logp.exp()
        dl, logp_dot = torch.zeros_like(logp), torch.zeros_like(logp)
        if z_dot is not None:
            logp_dot = z_dot - (p * z_dot).sum(dim, keepdim=True)
            dl = dl - t * logp_dot
        if y_dot is not None:
            dl = dl - (1 - ctx.smoothing) * logp * by_class(w, logp) * y_dot
        if w_dot is not None:
            dl = dl - weights_moved(ctx, logp, y, w_dot, t, D)
        return per_row(dl / D, dim, ctx.reduction), logp_dot, None


class NLL(Function):
    """L = −Σ t ∗ logp / D
    dlogp = −t dL / D
    logp (C), (N, C) or (N, C, d…) log-probabilities; y the classes () (N) (N, d…)
    -> L, and D where the kernel knows it
    t, D and dw as in CrossEntropy, without smoothing.
    Caches y, and of logp the shape alone, unless the weights need a gradient.
    Source: torch.nn.functional.nll_loss
    """

    @staticmethod
    def forward(logp, y, w, reduction, ignore_index):
        if rows_with_a_class(logp, y, 0.0):
            return aten.nll_loss_forward.default(logp, y, w, REDUCTION[reduction], ignore_index)
        L = F.nll_loss(logp, y, w, reduction=reduction, ignore_index=ignore_index)
        return unviewed(L, logp, reduction), logp.new_empty(())

    @staticmethod
    def setup_context(ctx, inputs, output):
        logp, y, w, ctx.reduction, ctx.ignore_index = inputs
        _, D = output
        ctx.smoothing = 0.0
        ctx.mark_non_differentiable(D)
        known = rows_with_a_class(logp, y, 0.0)
        kept = logp if ctx.needs_input_grad[2] else like(logp)
        ctx.save_for_backward(kept, y, w, D if known else None)
        if forward_mode():
            ctx.save_for_forward(logp, y, w)

    @staticmethod
    def backward(ctx, dL, _):
        like, y, w, D = ctx.saved_tensors
        need_logp, _, need_w = ctx.needs_input_grad[:3]
        if rows_with_a_class(like, y, 0.0) and not need_w and first_order():
            reduction = REDUCTION[ctx.reduction]
            dlogp = aten.nll_loss_backward.default(dL, like, y, w, reduction, ctx.ignore_index, D)
            return dlogp, None, None, None, None
        dw = None
        if need_w:
            dw = d_weights(ctx, over_classes(dL, like, ctx.reduction), like, y, w)
        if not need_logp:
            return None, None, dw, None, None
        t, D = targets(ctx, like, y, w)
        # 0 but at the true class, also where the weights have no sum and D is 0.
        true = targets(ctx, like, y, None)[0] != 0
        dlogp = torch.where(true, -t * (over_classes(dL, like, ctx.reduction) / D), 0)
        return dlogp, None, dw, None, None

    @staticmethod
    def jvp(ctx, logp_dot, _, w_dot, *more):
        logp, y, w = ctx.saved_tensors
        t, D = targets(ctx, logp, y, w)
        dl = torch.zeros_like(logp)
        if logp_dot is not None:
            dl = dl - t * logp_dot
        if w_dot is not None:
            dl = dl - weights_moved(ctx, logp, y, w_dot, t, D)
        return per_row(dl / D, class_dim(logp), ctx.reduction), None


def _cross_entropy_forward(ctx, z, y, w, reduction, ignore_index, smoothing):
    """Eager: with D beside the cache, not among the outputs."""
    options = reduction, ignore_index, smoothing
    if forward_mode() or not steps.fit(z, y, w, ignore_index, smoothing):
        output = CrossEntropy.forward(z, y, w, *options)
        CrossEntropy.setup_context(ctx, (z, y, w, *options), output)
        ctx.kernels = False
        return output
    logp = torch.log_softmax(z, class_dim(z))
    L, D = steps.loss(logp, y, w, *options)
    need_z, _, need_w = ctx.needs_input_grad[:3]
    ctx.save_for_backward(logp, y if need_z or need_w else None, w, D)
    ctx.set_materialize_grads(False)
    ctx.kernels = True
    ctx.reduction, ctx.ignore_index, ctx.smoothing = options
    ctx.y_dtype, ctx.w_dtype = y.dtype, None if w is None else w.dtype
    return L, logp


def _cross_entropy_backward(ctx, dL, dlogp, _=None):
    if not ctx.kernels or dL is None or dlogp is not None or not first_order():
        return CrossEntropy._general_backward(ctx, dL, dlogp, _)
    logp, y, w, D = ctx.saved_tensors
    need_z, need_y, need_w = ctx.needs_input_grad[:3]
    options = ctx.reduction, ctx.ignore_index, ctx.smoothing
    dz = dy = dw = None
    if need_z:
        d = steps.d_logp(dL, logp, y, w, *options, D).to(logp.dtype)  # y may be more precise
        dz = torch._log_softmax_backward_data(d, logp, class_dim(logp), logp.dtype)
    if need_y:
        dy = steps.d_probabilities(dL, logp, w, ctx.reduction, ctx.smoothing)
    if need_w:
        dw = steps.d_weight(dL, logp, y, w, ctx.reduction, ctx.smoothing)
    return dz, dy, dw, None, None, None


def _nll_forward(ctx, logp, y, w, reduction, ignore_index):
    if forward_mode() or not steps.fit(logp, y, w) or y.is_floating_point():
        output = NLL.forward(logp, y, w, reduction, ignore_index)
        NLL.setup_context(ctx, (logp, y, w, reduction, ignore_index), output)
        ctx.kernels = False
        return output
    L, D = steps.nll(logp, y, w, reduction, ignore_index)
    ctx.save_for_backward(like(logp), y, w, D)
    ctx.kernels, ctx.reduction, ctx.ignore_index, ctx.smoothing = True, reduction, ignore_index, 0.0
    return (L,)


def _nll_backward(ctx, dL, _=None):
    if not ctx.kernels or not first_order():
        return NLL._general_backward(ctx, dL, _)
    like, y, w, D = ctx.saved_tensors
    d = steps.nll_backward(dL, like, y, w, ctx.reduction, ctx.ignore_index, D)
    return d, None, None, None, None


CrossEntropy._set_eager_face(_cross_entropy_forward, _cross_entropy_backward)
NLL._set_eager_face(_nll_forward, _nll_backward)


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


def targets(ctx, z, y, w):
    """The weighted, smoothed target t of z's shape, and the divisor D."""
    dim, ε = class_dim(z), ctx.smoothing
    if y.shape == z.shape and y.is_floating_point():
        t = steps.smoothed(widened(y), ε, dim) * by_class(w, z)
        D = z.numel() // max(z.shape[dim], 1)
    else:
        counted = (y != ctx.ignore_index).unsqueeze(dim)
        one_hot = true_classes(ctx, z, y)
        t = (one_hot * (1 - ε) + ε / z.shape[dim]) * counted if ε else one_hot
        t = t * by_class(w, z)
        D = row_weights(y, w, ctx.ignore_index, z.dtype).sum()
        D = torch.where(counted, D, 1)  # a row that is ignored has the gradient 0, whatever D is
    return t, D if ctx.reduction == "mean" else 1


def true_classes(ctx, z, y):
    """1 for the true class of a row that is not ignored, of z's shape"""
    dim = class_dim(z)
    counted = (y != ctx.ignore_index).unsqueeze(dim)
    index = torch.where(counted, y.long().unsqueeze(dim), 0)
    return torch.zeros_like(z).scatter(dim, index, 1) * counted


def weights_moved(ctx, logp, y, w_dot, t, D):
    """How t log p moves with the weights, and with D, of which it is then divided: (ṫ − t Ḋ / D) log p"""
    t_dot, D_dot = targets(ctx, logp, y, w_dot)
    logp = where_counted(logp, targets(ctx, logp, y, None)[0], y)
    if ctx.reduction != "mean" or y.is_floating_point():  # of probabilities D is a count
        return t_dot * logp
    return (t_dot - t * D_dot / D) * logp


def d_weights(ctx, dl, logp, y, w):
    """dw = −Σ (t/w) log p dL / D, over all but the classes; D moves with the weights of classes, not of
    probabilities. dl: dL, with one class in place of all"""
    t, D = targets(ctx, logp, y, w)
    of_one = targets(ctx, logp, y, None)[0]
    logp = where_counted(logp, of_one, y)
    terms = -of_one * logp * (dl / D)
    if ctx.reduction == "mean" and not y.is_floating_point():
        L = -(t * logp).sum() / D
        terms = terms - true_classes(ctx, logp, y) * (L * dl / D)
    return over_all_but_classes(terms, class_dim(logp))


def where_counted(logp, t, y):
    """log p, and 0 where classes y do not read it: there it may be −∞, of a score that is masked."""
    return logp if y.is_floating_point() else logp.masked_fill(t == 0, 0)


def over_all_but_classes(t, dim):
    return t.sum([d for d in range(t.dim()) if d != dim]) if t.dim() > 1 else t


def over_classes(dL, z, reduction):
    return dL.unsqueeze(class_dim(z)) if reduction == "none" else dL


def per_row(terms, dim, reduction):
    return terms.sum(dim) if reduction == "none" else terms.sum()
