"""Activations."""

import warnings

import torch
from torch import Tensor
from torch.nn import functional as F

from manualnn.autograd.autocast import autocast
from manualnn.autograd.function import Function
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


def relu(input: Tensor, inplace: bool = False) -> Tensor:
    """max(0, z)"""
    return (g.ReLU.apply_ if inplace else g.ReLU.apply)(input)


def relu6(input: Tensor, inplace: bool = False) -> Tensor:
    """min(max(0, z), 6)"""
    return (g.ReLU6.apply_ if inplace else g.ReLU6.apply)(input, 0.0, 6.0)


def hardtanh(
    input: Tensor, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False
) -> Tensor:
    """min(max(z, min_val), max_val). Raises ValueError if min_val > max_val."""
    if min_val > max_val:
        raise ValueError("min_val cannot be greater than max_val")
    return (g.Hardtanh.apply_ if inplace else g.Hardtanh.apply)(input, min_val, max_val)


def leaky_relu(input: Tensor, negative_slope: float = 0.01, inplace: bool = False) -> Tensor:
    """z if z > 0 else negative_slope · z"""
    return (g.LeakyReLU.apply_ if inplace else g.LeakyReLU.apply)(input, negative_slope)


def elu(input: Tensor, alpha: float = 1.0, inplace: bool = False) -> Tensor:
    """z if z > 0 else α (exp(z) − 1)"""
    return (g.ELU.apply_ if inplace else g.ELU.apply)(input, alpha)


def celu(input: Tensor, alpha: float = 1.0, inplace: bool = False) -> Tensor:
    """z if z > 0 else α (exp(z/α) − 1). Raises RuntimeError if α = 0."""
    (alpha,) = numbers((alpha,))
    if alpha == 0:
        raise RuntimeError("ZeroDivisionError: alpha cannot be 0 for CELU")
    return (g.CELU.apply_ if inplace else g.CELU.apply)(input, alpha)


def selu(input: Tensor, inplace: bool = False) -> Tensor:
    """λ z if z > 0 else λ α (exp(z) − 1)"""
    return (g.SELU.apply_ if inplace else g.SELU.apply)(input)


def gelu(input: Tensor, *, approximate: str = "none") -> Tensor:
    """z Φ(z), or its tanh approximation. approximate: "none" or "tanh"; another text is a RuntimeError."""
    if approximate == "none":
        return g.GELU.apply(input)
    if approximate == "tanh":
        return g.GELUTanh.apply(input)
    if not isinstance(approximate, str):
        kind = type(approximate).__name__
        raise TypeError(f"gelu(): argument 'approximate' must be str, not {kind}")
    raise RuntimeError("approximate argument must be either none or tanh.")


def silu(input: Tensor, inplace: bool = False) -> Tensor:
    """z σ(z). Of complex numbers there is no gradient: NotImplementedError."""
    require_tensor("silu", 1, "input", input)
    if not inplace:
        _refuse_complex("silu", input)
    return (g.SiLU.apply_ if inplace else g.SiLU.apply)(input)


def mish(input: Tensor, inplace: bool = False) -> Tensor:
    """z tanh(log(1 + exp z))"""
    return (g.Mish.apply_ if inplace else g.Mish.apply)(input)


def sigmoid(input: Tensor) -> Tensor:
    """1 / (1 + exp(−z))"""
    return g.Sigmoid.apply(input)


def logsigmoid(input: Tensor) -> Tensor:
    """log σ(z)"""
    return g.LogSigmoid.apply(input)


def tanh(input: Tensor) -> Tensor:
    """tanh z"""
    return g.Tanh.apply(input)


def hardsigmoid(input: Tensor, inplace: bool = False) -> Tensor:
    """min(max(z + 3, 0), 6) / 6"""
    return (g.Hardsigmoid.apply_ if inplace else g.Hardsigmoid.apply)(input)


def hardswish(input: Tensor, inplace: bool = False) -> Tensor:
    """z min(max(z + 3, 0), 6) / 6"""
    return (g.Hardswish.apply_ if inplace else g.Hardswish.apply)(input)


def hardshrink(input: Tensor, lambd: float = 0.5) -> Tensor:
    """z if |z| > λ else 0"""
    return g.Hardshrink.apply(input, lambd)


def softshrink(input: Tensor, lambd: float = 0.5) -> Tensor:
    """z − λ if z > λ, z + λ if z < −λ, else 0. Raises RuntimeError if λ < 0."""
    return g.Softshrink.apply(input, lambd)


def tanhshrink(input: Tensor) -> Tensor:
    """z − tanh z"""
    require_tensor("tanhshrink", 1, "input", input)
    return g.Tanhshrink.apply(input)


def softplus(input: Tensor, beta: float = 1, threshold: float = 20) -> Tensor:
    """log(1 + exp(β z)) / β, and z where β z > threshold"""
    (input,) = autocast("softplus", input)
    return g.Softplus.apply(input, beta, threshold)


def softsign(input: Tensor) -> Tensor:
    """z / (1 + |z|). Of complex numbers there is no gradient: NotImplementedError."""
    require_tensor("softsign", 1, "input", input)
    _refuse_complex("softsign", input)
    return g.Softsign.apply(input)


def threshold(input: Tensor, threshold: float, value: float, inplace: bool = False) -> Tensor:
    """z if z > threshold else value"""
    return (g.Threshold.apply_ if inplace else g.Threshold.apply)(input, threshold, value)


def prelu(input: Tensor, weight: Tensor) -> Tensor:
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


def rrelu(
    input: Tensor,
    lower: float = 1.0 / 8,
    upper: float = 1.0 / 3,
    training: bool = False,
    inplace: bool = False,
) -> Tensor:
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


def glu(input: Tensor, dim: int = -1) -> Tensor:
    """u σ(v), (u, v) the halves of z along dim"""
    require_tensor("glu", 1, "input", input)
    if isinstance(dim, torch.Tensor) and dim.dim():
        raise TypeError("glu(): argument 'dim' (position 2) must be int, not Tensor")
    if input.dim() == 0:
        raise RuntimeError("glu does not support scalars because halving size must be even")
    return g.GLU.apply(input, dim)


def softmax(
    input: Tensor, dim: int | None = None, _stacklevel: int = 3, dtype: torch.dtype | None = None
) -> Tensor:
    """exp(z_i) / Σ_j exp(z_j) along dim"""
    return _normalise(g.Softmax, "softmax", input, dim, _stacklevel, dtype)


def softmin(
    input: Tensor, dim: int | None = None, _stacklevel: int = 3, dtype: torch.dtype | None = None
) -> Tensor:
    """softmax of −z along dim"""
    return _normalise(g.Softmax, "softmin", -input, dim, _stacklevel, dtype)


def log_softmax(
    input: Tensor, dim: int | None = None, _stacklevel: int = 3, dtype: torch.dtype | None = None
) -> Tensor:
    """log softmax(z) along dim"""
    return _normalise(g.LogSoftmax, "log_softmax", input, dim, _stacklevel, dtype)


def _normalise(
    op: type[Function],
    name: str,
    input: Tensor,
    dim: int | None,
    stacklevel: int,
    dtype: torch.dtype | None,
) -> Tensor:
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


def _refuse_complex(name: str, input: Tensor) -> None:
    """g is not holomorphic, or torch has no derivative of it: a product with g′ would be wrong."""
    if input.is_complex() and input.requires_grad and torch.is_grad_enabled():
        raise NotImplementedError(
            f"{name} does not support automatic differentiation for outputs with complex dtype."
        )


# The trailing underscore: in place.


def relu_(input: Tensor) -> Tensor:
    return relu(input, inplace=True)


def leaky_relu_(input: Tensor, negative_slope: float = 0.01) -> Tensor:
    return leaky_relu(input, negative_slope, inplace=True)


def hardtanh_(input: Tensor, min_val: float = -1.0, max_val: float = 1.0) -> Tensor:
    return hardtanh(input, min_val, max_val, inplace=True)


def elu_(input: Tensor, alpha: float = 1.0) -> Tensor:
    return elu(input, alpha, inplace=True)


def celu_(input: Tensor, alpha: float = 1.0) -> Tensor:
    return celu(input, alpha, inplace=True)


def selu_(input: Tensor) -> Tensor:
    return selu(input, inplace=True)


def threshold_(input: Tensor, threshold: float, value: float) -> Tensor:
    return g.Threshold.apply_(input, threshold, value)


def rrelu_(
    input: Tensor, lower: float = 1.0 / 8, upper: float = 1.0 / 3, training: bool = False
) -> Tensor:
    return rrelu(input, lower, upper, training, inplace=True)
