"""torch.nn.functional's names, arguments, defaults and exceptions, over hand-written Functions.

Each function differs from torch's of the same name in one thing: its backward is ours. The formulas,
what is cached and the values at kinks stand with the Functions in ``manualnn.ops``. Every function
casts once, here, by the rule that autocast has for torch's.
"""

import warnings

import torch
from torch.nn import functional as F

from manualnn.function import autocast
from manualnn.ops import activations as g
from manualnn.ops import losses
from manualnn.ops.dropout import AlphaDropout, Dropout
from manualnn.ops.linear import Linear


def linear(input, weight, bias=None):
    """z = x Wᵀ + b. input (*, i), weight (o, i) or (i), bias (o) or () -> (*, o) or (*)."""
    input, weight, bias = autocast("linear", input, weight, bias)
    if weight.dim() == 1:
        if bias is not None and input.dim() == 2:
            raise RuntimeError("addmm: mat2 must be a matrix, got 1-D tensor")
        return Linear.apply(input, weight.unsqueeze(0), bias).squeeze(-1)
    return Linear.apply(input, weight, bias)


# --- activations ------------------------------------------------------------------------------


def relu(input, inplace=False):
    """max(0, z)"""
    return (g.ReLU.apply_ if inplace else g.ReLU.apply)(input)


def relu6(input, inplace=False):
    """min(max(0, z), 6)"""
    return (g.ReLU6.apply_ if inplace else g.ReLU6.apply)(input, 0.0, 6.0)


def hardtanh(input, min_val=-1.0, max_val=1.0, inplace=False):
    """min(max(z, min_val), max_val). Raises ValueError if min_val > max_val."""
    if min_val > max_val:
        raise ValueError("min_val cannot be greater than max_val")
    return (g.Hardtanh.apply_ if inplace else g.Hardtanh.apply)(input, min_val, max_val)


def leaky_relu(input, negative_slope=0.01, inplace=False):
    """z if z > 0 else negative_slope · z"""
    return (g.LeakyReLU.apply_ if inplace else g.LeakyReLU.apply)(input, negative_slope)


def elu(input, alpha=1.0, inplace=False):
    """z if z > 0 else α (exp(z) − 1)"""
    return (g.ELU.apply_ if inplace else g.ELU.apply)(input, alpha)


def celu(input, alpha=1.0, inplace=False):
    """z if z > 0 else α (exp(z/α) − 1). Raises RuntimeError if α = 0."""
    if alpha == 0:
        raise RuntimeError("ZeroDivisionError: alpha cannot be 0 for CELU")
    return (g.CELU.apply_ if inplace else g.CELU.apply)(input, alpha)


def selu(input, inplace=False):
    """λ z if z > 0 else λ α (exp(z) − 1)"""
    return (g.SELU.apply_ if inplace else g.SELU.apply)(input)


def gelu(input, approximate="none"):
    """z Φ(z), or its tanh approximation. approximate: "none" or "tanh", else RuntimeError."""
    if approximate == "none":
        return g.GELU.apply(input)
    if approximate == "tanh":
        return g.GELUTanh.apply(input)
    raise RuntimeError("approximate argument must be either none or tanh.")


def silu(input, inplace=False):
    """z σ(z). Of complex numbers there is no gradient: NotImplementedError."""
    if not inplace:
        _refuse_complex("silu", input)
    return (g.SiLU.apply_ if inplace else g.SiLU.apply)(input)


def mish(input, inplace=False):
    """z tanh(log(1 + exp z))"""
    return (g.Mish.apply_ if inplace else g.Mish.apply)(input)


def sigmoid(input):
    """1 / (1 + exp(−z))"""
    return g.Sigmoid.apply(input)


def logsigmoid(input):
    """log σ(z)"""
    return g.LogSigmoid.apply(input)


def tanh(input):
    """tanh z"""
    return g.Tanh.apply(input)


def hardsigmoid(input, inplace=False):
    """min(max(z + 3, 0), 6) / 6"""
    return (g.Hardsigmoid.apply_ if inplace else g.Hardsigmoid.apply)(input)


def hardswish(input, inplace=False):
    """z min(max(z + 3, 0), 6) / 6"""
    return (g.Hardswish.apply_ if inplace else g.Hardswish.apply)(input)


def hardshrink(input, lambd=0.5):
    """z if |z| > λ else 0"""
    return g.Hardshrink.apply(input, lambd)


def softshrink(input, lambd=0.5):
    """z − λ if z > λ, z + λ if z < −λ, else 0. Raises RuntimeError if λ < 0."""
    return g.Softshrink.apply(input, lambd)


def tanhshrink(input):
    """z − tanh z"""
    return g.Tanhshrink.apply(input)


def softplus(input, beta=1, threshold=20):
    """log(1 + exp(β z)) / β, and z where β z > threshold"""
    (input,) = autocast("softplus", input)
    return g.Softplus.apply(input, beta, threshold)


def softsign(input):
    """z / (1 + |z|). Of complex numbers there is no gradient: NotImplementedError."""
    _refuse_complex("softsign", input)
    return g.Softsign.apply(input)


def threshold(input, threshold, value, inplace=False):
    """z if z > threshold else value"""
    return (g.Threshold.apply_ if inplace else g.Threshold.apply)(input, threshold, value)


def prelu(input, weight):
    """z if z > 0 else w z. weight: (1) or () for one slope, (C) for one a channel (dimension 1)."""
    input, weight = autocast("prelu", input, weight)
    plain = weight.dim() == 1 and input.dtype is weight.dtype and input.device == weight.device
    if not plain or weight.shape[0] not in (1, input.shape[1] if input.dim() > 1 else 1):
        # Anything but one slope, or one a channel: torch's own checks, on no data.
        F.prelu(input.detach()[:0] if input.dim() else input.detach(), weight.detach())
    if weight.dim() and weight.shape[0] > 1:
        weight = weight.view(-1, *(1 for _ in input.shape[2:]))
    elif weight.dim() and not input.dim():
        weight = weight.squeeze()
    return g.PReLU.apply(input, weight)


def rrelu(input, lower=1.0 / 8, upper=1.0 / 3, training=False, inplace=False):
    """z if z > 0 else s z, s uniform in [lower, upper] while training, else their mean."""
    if lower > upper:
        raise RuntimeError("Lower bound should be less than or equal to the upper bound")
    if not training:
        return leaky_relu(input, (lower + upper) / 2, inplace)
    a, _ = g.RReLU.apply(input, lower, upper)
    return input.copy_(a) if inplace else a


def glu(input, dim=-1):
    """u σ(v), (u, v) the halves of z along dim"""
    if input.dim() == 0:
        raise RuntimeError("glu does not support scalars because halving size must be even")
    return g.GLU.apply(input, dim)


def softmax(input, dim=None, _stacklevel=3, dtype=None):
    """exp(z_i) / Σ_j exp(z_j) along dim"""
    return _normalise(g.Softmax, "softmax", input, dim, _stacklevel, dtype)


def softmin(input, dim=None, _stacklevel=3, dtype=None):
    """softmax of −z along dim"""
    return _normalise(g.Softmax, "softmin", -input, dim, _stacklevel, dtype)


def log_softmax(input, dim=None, _stacklevel=3, dtype=None):
    """log softmax(z) along dim"""
    return _normalise(g.LogSoftmax, "log_softmax", input, dim, _stacklevel, dtype)


def _normalise(op, name, input, dim, stacklevel, dtype):
    if dim is None:
        warnings.warn(
            f"Implicit dimension choice for {name} has been deprecated. "
            "Change the call to include dim=X as an argument.",
            stacklevel=stacklevel,
        )
        dim = 0 if input.dim() in (0, 1, 3) else 1
    if dtype is not None:
        input = input.to(dtype)
    else:
        (input,) = autocast("log_softmax" if name == "log_softmax" else "softmax", input)
    return op.apply(input, dim)


def _refuse_complex(name, input):
    """g is not holomorphic, or torch has no derivative of it: a product with g′ would be wrong."""
    if input.is_complex() and input.requires_grad and torch.is_grad_enabled():
        raise NotImplementedError(
            f"{name} does not support automatic differentiation for outputs with complex dtype."
        )


# The trailing underscore: in place.


def relu_(input):
    return relu(input, inplace=True)


def leaky_relu_(input, negative_slope=0.01):
    return leaky_relu(input, negative_slope, inplace=True)


def hardtanh_(input, min_val=-1.0, max_val=1.0):
    return hardtanh(input, min_val, max_val, inplace=True)


def elu_(input, alpha=1.0):
    return elu(input, alpha, inplace=True)


def celu_(input, alpha=1.0):
    return celu(input, alpha, inplace=True)


def selu_(input):
    return selu(input, inplace=True)


def threshold_(input, threshold, value):
    return g.Threshold.apply_(input, threshold, value)


def rrelu_(input, lower=1.0 / 8, upper=1.0 / 3, training=False):
    return rrelu(input, lower, upper, training, inplace=True)


# --- dropout ----------------------------------------------------------------------------------


def dropout(input, p=0.5, training=True, inplace=False):
    """z ∗ mask / (1 − p), each element of the mask 1 with probability 1 − p; z if not training."""
    return _drop(Dropout, input, p, training, inplace)


def alpha_dropout(input, p=0.5, training=False, inplace=False):
    """Dropout that keeps mean 0 and variance 1, for SELU; z if not training."""
    return _drop(AlphaDropout, input, p, training, inplace)


def dropout1d(input, p=0.5, training=True, inplace=False):
    """Dropout of whole channels: input (N, C, L) or (C, L)."""
    _check_probability(p)
    if input.dim() not in (2, 3):
        raise RuntimeError(
            f"dropout1d: Expected 2D or 3D input, but received a {input.dim()}D input. "
            "Note that dropout1d exists to provide channel-wise dropout on inputs with 1 spatial "
            "dimension, a channel dimension, and an optional batch dimension (i.e. 2D or 3D inputs)."
        )
    channels = input.dim() - 1
    shape = (*input.shape[:channels], 1)
    return _drop(Dropout, input, p, training, inplace, shape)


def dropout2d(input, p=0.5, training=True, inplace=False):
    """Dropout of whole channels: input (N, C, H, W); of (N, C, L), for torch's sake, too."""
    _check_probability(p)
    if input.dim() not in (3, 4):
        warnings.warn(
            f"dropout2d: Received a {input.dim()}-D input to dropout2d, which is deprecated and will "
            "result in an error in a future release. To retain the behavior and silence this warning, "
            "please use dropout instead. Note that dropout2d exists to provide channel-wise dropout on "
            "inputs with 2 spatial dimensions, a channel dimension, and an optional batch dimension "
            "(i.e. 3D or 4D inputs).",
            stacklevel=2,
        )
    if input.dim() == 3:
        warnings.warn(
            "dropout2d: Received a 3D input to dropout2d and assuming that channel-wise 1D dropout "
            "behavior is desired - input is interpreted as shape (N, C, L), where C is the channel dim. "
            "This behavior will change in a future release to interpret the input as one without a "
            "batch dimension, i.e. shape (C, H, W). To maintain the 1D channel-wise dropout behavior, "
            "please switch to using dropout1d instead.",
            stacklevel=2,
        )
    return _drop_features(Dropout, input, p, training, inplace)


def _drop_features(op, input, p, training, inplace):
    if training and 0 < p < 1 and input.dim() < 2 and input.numel():
        raise RuntimeError("Feature dropout requires at least 2 dimensions in the input")
    shape = (*input.shape[:2], *(1 for _ in input.shape[2:]))
    return _drop(op, input, p, training, inplace, shape)


def _check_probability(p):
    if p < 0.0 or p > 1.0:
        raise ValueError(f"dropout probability has to be between 0 and 1, but got {p}")


def _drop(op, input, p, training, inplace, shape=None):
    _check_probability(p)
    if p == 0 or not training or input.numel() == 0:
        return input
    if p == 1:  # everything is switched off and nothing is drawn
        zero = input.new_zeros(())
        return input.mul_(zero) if inplace else input * zero
    if not (input.is_floating_point() or input.is_complex()):
        raise RuntimeError(
            f"result type Float can't be cast to the desired output type {_scalar_type(input)}"
        )
    a = op.apply(input, float(p), shape)[0]
    return input.copy_(a) if inplace else a


# --- losses -----------------------------------------------------------------------------------


def _refuse_gradient(function, **weights):
    """As torch: a weight of these losses is a constant."""
    if not torch.is_grad_enabled():
        return
    for name, weight in weights.items():
        if weight is not None and weight.requires_grad:
            raise RuntimeError(
                f"The function '{function}' is not differentiable with respect to argument '{name}'. "
                "This input cannot have requires_grad True."
            )


def mse_loss(input, target, size_average=None, reduce=None, reduction="mean", weight=None):
    """(x − y)², averaged, summed or as it is"""
    reduction = _reduction(size_average, reduce, reduction)
    x, y = _pair("mse_loss", input, target)
    if weight is None:
        return losses.MSE.apply(x, y, reduction)
    return _weighted(losses.MSE.apply(x, y, "none"), weight, input, reduction, True)


def l1_loss(input, target, size_average=None, reduce=None, reduction="mean", weight=None):
    """|x − y|, averaged, summed or as it is"""
    reduction = _reduction(size_average, reduce, reduction)
    x, y = _pair("l1_loss", input, target)
    if weight is None:
        return losses.L1.apply(x, y, reduction)[0]
    return _weighted(losses.L1.apply(x, y, "none")[0], weight, input, reduction, True)


def smooth_l1_loss(input, target, size_average=None, reduce=None, reduction="mean", beta=1.0):
    """Quadratic where |x − y| < beta, linear beyond; averaged, summed or as it is"""
    reduction = _reduction(size_average, reduce, reduction)
    beta = _number("smooth_l1_loss", "beta", beta)
    x, y = _pair("smooth_l1_loss", input, target)
    if beta < 0:
        raise RuntimeError("smooth_l1_loss does not support negative values for beta.")
    if beta == 0:
        return losses.L1.apply(x, y, reduction)[0]
    return losses.SmoothL1.apply(x, y, reduction, beta)


def huber_loss(input, target, reduction="mean", delta=1.0, weight=None):
    """Quadratic where |x − y| ≤ delta, linear beyond; averaged, summed or as it is"""
    _reduction(None, None, reduction)
    delta = _number("huber_loss", "delta", delta)
    x, y = _pair("huber_loss", input, target)
    if weight is None:
        return losses.Huber.apply(x, y, reduction, delta)
    return _weighted(losses.Huber.apply(x, y, "none", delta), weight, input, reduction, False)


def binary_cross_entropy(
    input, target, weight=None, size_average=None, reduce=None, reduction="mean"
):
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
    input,
    target,
    weight=None,
    size_average=None,
    reduce=None,
    reduction="mean",
    pos_weight=None,
):
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
    input,
    target,
    weight=None,
    size_average=None,
    ignore_index=-100,
    reduce=None,
    reduction="mean",
    label_smoothing=0.0,
):
    """−log softmax(z) of the true class, or −Σ y log softmax(z); averaged, summed or as it is.

    input (C), (N, C) or (N, C, d…); target the classes () (N) (N, d…), or probabilities of input's
    shape; weight (C).
    """
    reduction = _reduction(size_average, reduce, reduction)
    if target.is_floating_point():
        z, y, w = autocast("cross_entropy", input, target, weight)
    else:
        if target.shape == input.shape and input.dim():
            raise RuntimeError(
                "Expected floating point type for target with class probabilities, got "
                f"{_scalar_type(target)}"
            )
        _refuse_gradient(_nll(input), weight=weight)
        (z, w), y = autocast("cross_entropy", input, weight), target
    return losses.CrossEntropy.apply(z, y, w, reduction, ignore_index, label_smoothing)[0]


def nll_loss(
    input,
    target,
    weight=None,
    size_average=None,
    ignore_index=-100,
    reduce=None,
    reduction="mean",
):
    """−logp of the true class; averaged, summed or as it is. Shapes as in cross_entropy."""
    reduction = _reduction(size_average, reduce, reduction)
    _refuse_gradient(_nll(input), weight=weight)
    logp, w = autocast("nll_loss", input, weight)
    return losses.NLL.apply(logp, target, w, reduction, ignore_index)[0]


def _number(function, name, value):
    """A tensor as its value; TypeError, as torch, where its gradient would be lost."""
    if not isinstance(value, torch.Tensor):
        return value
    if value.requires_grad:
        raise TypeError(f"{function}(): argument '{name}' must be float, not Tensor")
    return value.item()


def _scalar_type(t):
    """As torch calls it in its messages: Long, Byte, ComplexDouble."""
    return t.type().rpartition(".")[2].removesuffix("Tensor")


def _nll(input):
    return "nll_loss_forward" if input.dim() <= 2 else "nll_loss2d_forward"


def _reduction(size_average, reduce, reduction):
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


def _pair(name, input, target):
    if target.size() != input.size():
        warnings.warn(
            f"Using a target size ({target.size()}) that is different to the input size "
            f"({input.size()}). This will likely lead to incorrect results due to broadcasting. "
            "Please ensure they have the same size.",
            stacklevel=3,
        )
        input, target = torch.broadcast_tensors(input, target)
    return autocast(name, input, target)


def _weighted(terms, weight, input, reduction, mean_by_weight):
    """The terms times their weights, reduced; torch's mean of huber_loss alone divides by their number."""
    if weight.size() != input.size():
        raise ValueError("Weights and input must have the same size.")
    terms = terms * weight
    if reduction == "none":
        return terms
    if reduction == "mean":
        return terms.sum() / weight.sum() if mean_by_weight else terms.mean()
    return terms.sum()
