"""Pooling: the largest or the average of each window, of one, two and three dimensions."""

from typing import Any, Literal, overload

import torch
from torch import Tensor
from torch.nn import functional as TF

from manualnn.autograd.autocast import autocast
from manualnn.autograd.moment import eager, forward_mode
from manualnn.functional.convolutions import numbers
from manualnn.functional.names import OutputSize, Size
from manualnn.ops.pooling import AdaptiveAvgPool, AdaptiveMaxPool, AvgPool, MaxPool, indices


@overload
def max_pool1d(
    input: Tensor,
    kernel_size: Size,
    stride: Size | None = ...,
    padding: Size = ...,
    dilation: Size = ...,
    ceil_mode: bool = ...,
    return_indices: Literal[False] = ...,
) -> Tensor: ...
@overload
def max_pool1d(
    input: Tensor,
    kernel_size: Size,
    stride: Size | None = ...,
    padding: Size = ...,
    dilation: Size = ...,
    ceil_mode: bool = ...,
    return_indices: bool = ...,
) -> Any: ...
def max_pool1d(
    input: Tensor,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    dilation: Size = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """The largest of each window. input (N, C, L) or (C, L); stride: kernel_size if None.

    With return_indices also the place of each in its row of the input, int64.
    """
    options = kernel_size, stride, padding, dilation, ceil_mode
    return _max_pool("max_pool1d", 1, input, options, return_indices)


@overload
def max_pool2d(
    input: Tensor,
    kernel_size: Size,
    stride: Size | None = ...,
    padding: Size = ...,
    dilation: Size = ...,
    ceil_mode: bool = ...,
    return_indices: Literal[False] = ...,
) -> Tensor: ...
@overload
def max_pool2d(
    input: Tensor,
    kernel_size: Size,
    stride: Size | None = ...,
    padding: Size = ...,
    dilation: Size = ...,
    ceil_mode: bool = ...,
    return_indices: bool = ...,
) -> Any: ...
def max_pool2d(
    input: Tensor,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    dilation: Size = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """As max_pool1d, over images: input (N, C, H, W) or (C, H, W)."""
    options = kernel_size, stride, padding, dilation, ceil_mode
    return _max_pool("max_pool2d", 2, input, options, return_indices)


@overload
def max_pool3d(
    input: Tensor,
    kernel_size: Size,
    stride: Size | None = ...,
    padding: Size = ...,
    dilation: Size = ...,
    ceil_mode: bool = ...,
    return_indices: Literal[False] = ...,
) -> Tensor: ...
@overload
def max_pool3d(
    input: Tensor,
    kernel_size: Size,
    stride: Size | None = ...,
    padding: Size = ...,
    dilation: Size = ...,
    ceil_mode: bool = ...,
    return_indices: bool = ...,
) -> Any: ...
def max_pool3d(
    input: Tensor,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    dilation: Size = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """As max_pool1d, over volumes: input (N, C, D, H, W) or (C, D, H, W)."""
    options = kernel_size, stride, padding, dilation, ceil_mode
    return _max_pool("max_pool3d", 3, input, options, return_indices)


def avg_pool1d(
    input: Tensor,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> Tensor:
    """The average of each window. input (N, C, L) or (C, L); stride: kernel_size if None."""
    options = kernel_size, stride, padding, ceil_mode, count_include_pad
    return _avg_pool("avg_pool1d", 1, input, options)


def avg_pool2d(
    input: Tensor,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    """As avg_pool1d, over images: input (N, C, H, W) or (C, H, W)."""
    options = kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override
    return _avg_pool("avg_pool2d", 2, input, options)


def avg_pool3d(
    input: Tensor,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    """As avg_pool1d, over volumes: input (N, C, D, H, W) or (C, D, H, W)."""
    options = kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override
    return _avg_pool("avg_pool3d", 3, input, options)


@overload
def adaptive_max_pool1d(
    input: Tensor, output_size: Size, return_indices: Literal[False] = ...
) -> Tensor: ...
@overload
def adaptive_max_pool1d(input: Tensor, output_size: Size, return_indices: bool = ...) -> Any: ...
def adaptive_max_pool1d(
    input: Tensor, output_size: Size, return_indices: bool = False
) -> Tensor | tuple[Tensor, Tensor]:
    """The largest of each of output_size windows that divide the input among them; see max_pool1d."""
    return _adaptive_max_pool("adaptive_max_pool1d", 1, input, output_size, return_indices)


@overload
def adaptive_max_pool2d(
    input: Tensor, output_size: OutputSize, return_indices: Literal[False] = ...
) -> Tensor: ...
@overload
def adaptive_max_pool2d(
    input: Tensor, output_size: OutputSize, return_indices: bool = ...
) -> Any: ...
def adaptive_max_pool2d(
    input: Tensor, output_size: OutputSize, return_indices: bool = False
) -> Tensor | tuple[Tensor, Tensor]:
    """As adaptive_max_pool1d, over images; None in output_size: as many as the input has."""
    return _adaptive_max_pool("adaptive_max_pool2d", 2, input, output_size, return_indices)


@overload
def adaptive_max_pool3d(
    input: Tensor, output_size: OutputSize, return_indices: Literal[False] = ...
) -> Tensor: ...
@overload
def adaptive_max_pool3d(
    input: Tensor, output_size: OutputSize, return_indices: bool = ...
) -> Any: ...
def adaptive_max_pool3d(
    input: Tensor, output_size: OutputSize, return_indices: bool = False
) -> Tensor | tuple[Tensor, Tensor]:
    """As adaptive_max_pool1d, over volumes; None in output_size: as many as the input has."""
    return _adaptive_max_pool("adaptive_max_pool3d", 3, input, output_size, return_indices)


def adaptive_avg_pool1d(input: Tensor, output_size: Size) -> Tensor:
    """The average of each of output_size windows that divide the input among them."""
    return _adaptive_avg_pool("adaptive_avg_pool1d", 1, input, output_size)


def adaptive_avg_pool2d(input: Tensor, output_size: OutputSize) -> Tensor:
    """As adaptive_avg_pool1d, over images; None in output_size: as many as the input has."""
    return _adaptive_avg_pool("adaptive_avg_pool2d", 2, input, output_size)


def adaptive_avg_pool3d(input: Tensor, output_size: OutputSize) -> Tensor:
    """As adaptive_avg_pool1d, over volumes; None in output_size: as many as the input has."""
    return _adaptive_avg_pool("adaptive_avg_pool3d", 3, input, output_size)


def _max_pool(name: str, dims: int, input: Tensor, options: Any, return_indices: bool) -> Any:
    kernel, stride, padding, dilation, ceil_mode = options
    k, s = numbers(kernel, dims), numbers(kernel if _none(stride) else stride, dims)
    p, d = numbers(padding, dims), numbers(dilation, dims)
    if not (k and s and p and d and isinstance(ceil_mode, bool) and _ours(input, dims)):
        return getattr(TF, name)(input, *options, return_indices)
    # With its indices it is another function of torch's, for which autocast has no rule.
    (given,) = (input,) = autocast(f"{name}_with_indices" if return_indices else name, input)
    if dims == 1:
        input, k, s, p, d = _image(input, k, s, p, d)
    try:
        z, position = MaxPool.apply(input, ceil_mode, *k, *s, *p, *d)
    except RuntimeError:
        if dims == 1:  # torch's own refusal speaks of rows, not of images
            getattr(TF, name)(given, *options, return_indices)
        raise
    return _with_indices(z, position, input, dims, return_indices, (k, s, p, d))


def _adaptive_max_pool(
    name: str, dims: int, input: Tensor, output_size: Any, return_indices: bool
) -> Any:
    count = _count(dims, input, output_size)
    if count is None or 0 in count:  # of no window there is nothing to keep
        return getattr(TF, name)(input, output_size, return_indices)
    (input,) = autocast(name, input)
    given = input
    if dims == 1:
        input, count = input.unsqueeze(-2), (1, *count)
    try:
        z, position = AdaptiveMaxPool.apply(input, *count)
    except RuntimeError:
        if dims == 1:
            TF.adaptive_max_pool1d(given, output_size)
        raise
    return _with_indices(z, position, input, dims, return_indices)


def _with_indices(
    z: Tensor,
    position: Tensor,
    input: Tensor,
    dims: int,
    return_indices: bool,
    geometry: Any = None,
) -> Any:
    index = None
    if return_indices:
        index = indices(position, input.shape[-max(dims, 2) :], geometry)
    if dims == 1:
        z, index = z.squeeze(-2), None if index is None else index.squeeze(-2)
    return (z, index) if return_indices else z


def _avg_pool(name: str, dims: int, input: Tensor, options: Any) -> Tensor:
    kernel, stride, padding, *rest = options
    k, s = numbers(kernel, dims), numbers(kernel if _none(stride) else stride, dims)
    p, plain = numbers(padding, dims), all(isinstance(v, bool) for v in rest[:2])
    if not (k and s and p and plain and _ours(input, dims)):
        return getattr(TF, name)(input, *options)
    (input,) = autocast(name, input)
    if dims == 1:
        image, k, s, p = _image(input, k, s, p)
        return AvgPool.apply(image, *rest, None, *k, *s, *p).squeeze(-2)
    return AvgPool.apply(input, *rest, *k, *s, *p)


def _adaptive_avg_pool(name: str, dims: int, input: Tensor, output_size: Any) -> Tensor:
    count = _count(dims, input, output_size)
    if count is None:
        return getattr(TF, name)(input, output_size)
    (input,) = autocast(name, input)
    if dims == 1:
        return AdaptiveAvgPool.apply(input.unsqueeze(-2), 1, *count).squeeze(-2)
    return AdaptiveAvgPool.apply(input, *count)


def _image(
    input: Tensor,
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...] | None = None,
) -> tuple[Any, ...]:
    """A row as an image of height 1, as torch does it."""
    made = input.unsqueeze(-2), (1, *kernel), (1, *stride), (0, *padding)
    return made if dilation is None else (*made, (1, *dilation))


def _count(dims: int, input: Tensor, output_size: Any) -> Any:
    """output_size as numbers, its Nones filled in; None where the call is torch's."""
    if not _ours(input, dims):
        return None
    if dims > 1 and isinstance(output_size, (tuple, list)) and len(output_size) == dims:
        sizes = zip(output_size, input.shape[-dims:], strict=True)
        output_size = [size if given is None else given for given, size in sizes]
    return numbers(output_size, dims)


def _none(stride: object) -> bool:
    return stride is None or (isinstance(stride, (tuple, list)) and not stride)


def _ours(input: object, dims: int) -> bool:
    """Whether a derivative may be asked for; if not, or if torch refuses the input, the call is torch's."""
    if not isinstance(input, torch.Tensor) or input.dim() not in (dims + 1, dims + 2):
        return False
    if torch.jit.is_tracing():
        return False
    recorded = torch.is_grad_enabled() and input.requires_grad
    return recorded or not eager() or forward_mode()
