"""Activations."""

import warnings

import torch
from torch.nn import functional as F

from manualnn.autograd.autocast import autocast
from manualnn.autograd.options import numbers
from manualnn.functional.names import require_tensor
from manualnn.ops import activations as g

__all__ = [
    "celu",
    "celu_",
    "elu",
    "elu_",
    "gelu",
    "glu",
    "hardshrink",
    "hardsigmoid",
    "hardswish",
    "hardtanh",
    "hardtanh_",
    "leaky_relu",
    "leaky_relu_",
    "log_softmax",
    "logsigmoid",
    "mish",
    "prelu",
    "relu",
    "relu6",
    "relu_",
    "rrelu",
    "rrelu_",
    "selu",
    "selu_",
    "sigmoid",
    "silu",
    "softmax",
    "softmin",
    "softplus",
    "softshrink",
    "softsign",
    "tanh",
    "tanhshrink",
    "threshold",
    "threshold_",
]


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
    (alpha,) = numbers((alpha,))
    if alpha == 0:
        raise RuntimeError("ZeroDivisionError: alpha cannot be 0 for CELU")
    return (g.CELU.apply_ if inplace else g.CELU.apply)(input, alpha)


def selu(input, inplace=False):
    """λ z if z > 0 else λ α (exp(z) − 1)"""
    return (g.SELU.apply_ if inplace else g.SELU.apply)(input)


def gelu(input, *, approximate="none"):
    """z Φ(z), or its tanh approximation. approximate: "none" or "tanh"; another text is a RuntimeError."""
    if approximate == "none":
        return g.GELU.apply(input)
    if approximate == "tanh":
        return g.GELUTanh.apply(input)
    if not isinstance(approximate, str):
        kind = type(approximate).__name__
        raise TypeError(f"gelu(): argument 'approximate' must be str, not {kind}")
    raise RuntimeError("approximate argument must be either none or tanh.")


def silu(input, inplace=False):
    """z σ(z). Of complex numbers there is no gradient: NotImplementedError."""
    require_tensor("silu", 1, "input", input)
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
    require_tensor("tanhshrink", 1, "input", input)
    return g.Tanhshrink.apply(input)


def softplus(input, beta=1, threshold=20):
    """log(1 + exp(β z)) / β, and z where β z > threshold"""
    (input,) = autocast("softplus", input)
    return g.Softplus.apply(input, beta, threshold)


def softsign(input):
    """z / (1 + |z|). Of complex numbers there is no gradient: NotImplementedError."""
    require_tensor("softsign", 1, "input", input)
    _refuse_complex("softsign", input)
    return g.Softsign.apply(input)


def threshold(input, threshold, value, inplace=False):
    """z if z > threshold else value"""
    return (g.Threshold.apply_ if inplace else g.Threshold.apply)(input, threshold, value)


def prelu(input, weight):
    """z if z > 0 else w z. weight: (1) or () for one slope, (C) for one a channel (dimension 1)."""
    require_tensor("prelu", 1, "input", input)
    require_tensor("prelu", 2, "weight", weight)
    if torch.jit.is_tracing():
        return F.prelu(input, weight)
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
    require_tensor("rrelu", 1, "input", input)
    lower, upper = numbers((lower, upper))
    if lower > upper:
        raise RuntimeError("Lower bound should be less than or equal to the upper bound")
    if not training:
        given = input if inplace else input.contiguous()  # torch lays its output so
        return leaky_relu(given, (lower + upper) / 2, inplace)
    a = g.RReLU.apply(input, lower, upper)[0]
    return input.copy_(a) if inplace else a


def glu(input, dim=-1):
    """u σ(v), (u, v) the halves of z along dim"""
    require_tensor("glu", 1, "input", input)
    if isinstance(dim, torch.Tensor) and dim.dim():
        raise TypeError("glu(): argument 'dim' (position 2) must be int, not Tensor")
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
    require_tensor(name, 1, "input", input)
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
