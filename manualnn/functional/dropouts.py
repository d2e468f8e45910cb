"""Dropout."""

import warnings

from torch import Tensor

from manualnn.autograd.function import Function
from manualnn.functional.names import number, require_tensor, scalar_type
from manualnn.ops.dropouts import AlphaDropout, Dropout
from manualnn.ops.stochastic_depth import StochasticDepth


def dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """z ∗ mask / (1 − p), each element of the mask 1 with probability 1 − p; z if not training."""
    return _drop(Dropout, input, p, training, inplace)


def alpha_dropout(
    input: Tensor, p: float = 0.5, training: bool = False, inplace: bool = False
) -> Tensor:
    """Dropout that keeps mean 0 and variance 1, for SELU; z if not training."""
    return _drop(AlphaDropout, input, p, training, inplace, name="alpha_dropout")


def dropout1d(
    input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
) -> Tensor:
    """Dropout of whole channels: input (N, C, L) or (C, L)."""
    require_tensor("dropout1d", 1, "input", input)
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


def dropout2d(
    input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
) -> Tensor:
    """Dropout of whole channels: input (N, C, H, W); of (N, C, L), for torch's sake, too."""
    require_tensor("dropout2d", 1, "input", input)
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


def stochastic_depth(input: Tensor, p: float, mode: str, training: bool = True) -> Tensor:
    """x ∗ r / (1 − p), r 1 with probability 1 − p for each row (mode "row") or for all ("batch").

    torchvision.ops.stochastic_depth; x if not training.
    """
    if p < 0.0 or p > 1.0:
        raise ValueError(f"drop probability has to be between 0 and 1, but got {p}")
    if mode not in ("batch", "row"):
        raise ValueError(f"mode has to be either 'batch' or 'row', but got {mode}")
    if not training or p == 0.0:
        return input
    return StochasticDepth.apply(input, float(p), mode == "row")[0]


def _drop_features(
    op: type[Function], input: Tensor, p: float, training: bool, inplace: bool
) -> Tensor:
    if training and 0 < p < 1 and input.dim() < 2 and input.numel():
        raise RuntimeError("Feature dropout requires at least 2 dimensions in the input")
    shape = (*input.shape[:2], *(1 for _ in input.shape[2:]))
    return _drop(op, input, p, training, inplace, shape)


def _check_probability(p: float) -> None:
    if not 0.0 <= p <= 1.0:
        refusal = RuntimeError if p != p else ValueError  # as torch, of NaN
        raise refusal(f"dropout probability has to be between 0 and 1, but got {p}")


def _drop(
    op: type[Function],
    input: Tensor,
    p: float,
    training: bool,
    inplace: bool,
    shape: tuple[int, ...] | None = None,
    name: str = "dropout",
) -> Tensor:
    require_tensor(name, 1, "input", input)
    _check_probability(p)
    p = number(name, "p", p)
    if p == 0 or not training or input.numel() == 0:
        return input
    if p == 1:  # everything is switched off and nothing is drawn
        zero = input.new_zeros(())
        return input.mul_(zero) if inplace else input * zero
    if not (input.is_floating_point() or input.is_complex()):
        raise RuntimeError(
            f"result type Float can't be cast to the desired output type {scalar_type(input)}"
        )
    a = op.apply(input, float(p), shape)[0]
    return input.copy_(a) if inplace else a
