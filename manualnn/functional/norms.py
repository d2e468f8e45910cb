"""Normalisation."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as TF

from manualnn._torch import transforms_active
from manualnn.autograd.autocast import autocast
from manualnn.autograd.moment import bypass_function_mode
from manualnn.functional.names import number, require_tensor
from manualnn.ops.norms import BatchNorm, GroupNorm, InstanceNorm, LayerNorm, RMSNorm, RunningNorm


def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """gamma (x − mu) rstd + beta by channel: mu and rstd of the batch if training, else those given.

    input (N, C, *), all others (C). While training the running statistics, where given, are moved by
    momentum towards the batch's.
    """
    require_tensor("batch_norm", 1, "input", input)
    eps = number("batch_norm", "eps", eps)
    momentum = number("batch_norm", "momentum", momentum)
    places = _values_per_channel(input, running_mean, running_var)
    if not (places and isinstance(training, bool)) or torch.jit.is_tracing():
        # Nothing to normalise, whatever the parameters' sizes are; or a refusal, in its words. Or a trace,
        # which cannot hold what our kernel returns, and has a word for torch's.
        return TF.batch_norm(
            input, running_mean, running_var, weight, bias, training, momentum, eps
        )
    if training:
        _check_more_than_one(places, "value per channel", input)
        if eps <= 0.0:
            raise ValueError(f"batch_norm eps must be positive during training, but got {eps}")
        return BatchNorm.apply(input, weight, bias, running_mean, running_var, momentum, eps)[0]
    if eps < 0.0:
        raise ValueError(f"batch_norm eps must be non-negative, but got {eps}")
    return RunningNorm.apply(input, weight, bias, running_mean, running_var, eps)


def instance_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """gamma (x − mu) rstd + beta by channel and example. input (N, C, *), all others (C)."""
    require_tensor("instance_norm", 1, "input", input)
    eps = number("instance_norm", "eps", eps)
    momentum = number("instance_norm", "momentum", momentum)
    if (
        input.dim() < 2
        or not input.numel()
        or not (use_input_stats or running_mean is not None is not running_var)
        or _any_needs_gradient(running_mean, running_var)
        or torch.jit.is_tracing()
        or (running_mean is not None and transforms_active())
    ):
        # Nothing to normalise, or a refusal, in its words; a trace, as of batch_norm; or a transform, inside
        # of which the running statistics outside of it cannot be written to.
        return TF.instance_norm(
            input, running_mean, running_var, weight, bias, use_input_stats, momentum, eps
        )
    if use_input_stats:
        _check_more_than_one(math.prod(input.shape[2:]), "spatial element", input)
    N, C = input.shape[:2]
    # By example, too: the kernel moves N C of them, and theirs are the means.
    dtype = (input if weight is None else weight).dtype
    running: list[Any] = [
        s if s is None else s.detach().to(dtype).repeat(N) for s in (running_mean, running_var)
    ]
    if not use_input_stats:
        weight, bias = (p if p is None else p.repeat(N) for p in (weight, bias))
        channels = input.contiguous().view(1, N * C, *input.shape[2:])
        output = RunningNorm.apply(channels, weight, bias, *running, eps)
        return output.view(input.shape)
    # Gathered as torch does, before the kernel: it is this copy that backward reads.
    gathered = input if input.is_contiguous() else input.contiguous()
    output = InstanceNorm.apply(gathered, weight, bias, *running, momentum, eps)[0]
    for statistic, by_example in zip((running_mean, running_var), running, strict=True):
        if statistic is not None:
            statistic.detach().copy_(by_example.view(N, C).mean(0))
    return output


def layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """gamma (x − mu) rstd + beta, mu and rstd over the last dimensions. input (*, normalized_shape)."""
    require_tensor("layer_norm", 1, "input", input)
    eps = number("layer_norm", "eps", eps)
    input, weight, bias = autocast("layer_norm", input, weight, bias)
    if torch.jit.is_tracing() or not _fits(normalized_shape, input, weight, bias):
        # A trace; or a refusal, in its words.
        return TF.layer_norm(input, normalized_shape, weight, bias, eps)
    return LayerNorm.apply(input, weight, bias, len(normalized_shape), eps)[0]


def group_norm(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """gamma (x − mu) rstd + beta, mu and rstd over a group of channels of one example.

    input (N, C, *), C a multiple of num_groups; weight, bias (C).
    """
    require_tensor("group_norm", 1, "input", input)
    eps = number("group_norm", "eps", eps)
    input, weight, bias = autocast("group_norm", input, weight, bias)
    if torch.jit.is_tracing():
        return TF.group_norm(input, num_groups, weight, bias, eps)
    if input.dim() < 2:
        raise RuntimeError(
            f"Expected at least 2 dimensions for input tensor but received {input.dim()}"
        )
    N, C, *places = input.shape
    size = [N * C // num_groups, num_groups, *places]
    _check_more_than_one(math.prod(places, start=size[0]), "value per channel", input, size)
    weight, bias = (p if p is None else p.contiguous() for p in (weight, bias))
    return GroupNorm.apply(input, weight, bias, num_groups, eps)[0]


def rms_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
) -> Tensor:
    """gamma x rstd, rstd = 1 / √(mean(x²) + ε) over the last dimensions. input (*, normalized_shape).

    eps: of None, the smallest number that can be seen beside 1.
    """
    require_tensor("rms_norm", 1, "input", input)
    eps = number("rms_norm", "eps", eps)
    input, weight = autocast("rms_norm", input, weight)
    if torch.jit.is_tracing() or not _fits(normalized_shape, input, weight) or input.is_complex():
        # A trace; a refusal, in its words; or the square, not of the modulus, of complex numbers.
        return TF.rms_norm(input, normalized_shape, weight, eps)
    return RMSNorm.apply(input, weight, len(normalized_shape), eps)[0]


def _check_more_than_one(
    number: int, what: str, input: Tensor, size: Sequence[int] | None = None
) -> None:
    if number == 1:
        size = input.shape if size is None else size
        raise ValueError(f"Expected more than 1 {what} when training, got input size {size}")


@bypass_function_mode
def _values_per_channel(
    input: Tensor, running_mean: Tensor | None, running_var: Tensor | None
) -> int:
    """How many share a mean and a variance; 0 where there are none at all, or given ones are learned."""
    if torch.is_grad_enabled():
        for statistic in (running_mean, running_var):
            if statistic is not None and statistic.requires_grad:
                return 0
    shape = input.shape
    return input.numel() and math.prod(shape[2:], start=shape[0] if shape else 1)


@bypass_function_mode
def _any_needs_gradient(*statistics: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(s is not None and s.requires_grad for s in statistics)


@bypass_function_mode
def _fits(normalized_shape: Sequence[int], input: Tensor, *parameters: Tensor | None) -> bool:
    """Whether the input ends in that shape and the parameters are of it."""
    if not isinstance(normalized_shape, tuple | list) or len(normalized_shape) == 0:
        return False
    shape = tuple(normalized_shape)
    return input.shape[-len(shape) :] == shape and all(
        p is None or p.shape == shape for p in parameters
    )
