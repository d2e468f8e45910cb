"""Convolution and transposed convolution, of one, two and three dimensions."""

import operator
import warnings
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as TF

from manualnn.autograd.autocast import autocast
from manualnn.autograd.moment import bypass_function_mode
from manualnn.functional.names import Size
from manualnn.ops.convolutions import Convolution

_ZEROS = {dims: (0,) * dims for dims in (1, 2, 3)}  # the output padding


def conv1d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Size = 1,
    padding: str | Size = 0,
    dilation: Size = 1,
    groups: int = 1,
) -> Tensor:
    """z = W · unfold(x) + b. input (N, C, L) or (C, L), weight (O, C/groups, K), bias (O) or None.

    padding: zeros at both ends, or "valid" (none), or "same" (the output is as long as the input).
    """
    return _conv("conv1d", 1, input, weight, bias, stride, padding, dilation, groups)


def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Size = 1,
    padding: str | Size = 0,
    dilation: Size = 1,
    groups: int = 1,
) -> Tensor:
    """As conv1d, over images: input (N, C, H, W) or (C, H, W), weight (O, C/groups, K, K)."""
    return _conv("conv2d", 2, input, weight, bias, stride, padding, dilation, groups)


def conv3d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Size = 1,
    padding: str | Size = 0,
    dilation: Size = 1,
    groups: int = 1,
) -> Tensor:
    """As conv1d, over volumes: input (N, C, D, H, W) or (C, D, H, W), weight (O, C/groups, K, K, K)."""
    return _conv("conv3d", 3, input, weight, bias, stride, padding, dilation, groups)


def conv_transpose1d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Size = 1,
    padding: Size = 0,
    output_padding: Size = 0,
    groups: int = 1,
    dilation: Size = 1,
) -> Tensor:
    """z = fold(Wᵀ x) + b. input (N, C, L) or (C, L), weight (C, O/groups, K), bias (O) or None."""
    where = stride, padding, output_padding, groups, dilation
    return _conv_transpose("conv_transpose1d", 1, input, weight, bias, *where)


def conv_transpose2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Size = 1,
    padding: Size = 0,
    output_padding: Size = 0,
    groups: int = 1,
    dilation: Size = 1,
) -> Tensor:
    """As conv_transpose1d, over images."""
    where = stride, padding, output_padding, groups, dilation
    return _conv_transpose("conv_transpose2d", 2, input, weight, bias, *where)


def conv_transpose3d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Size = 1,
    padding: Size = 0,
    output_padding: Size = 0,
    groups: int = 1,
    dilation: Size = 1,
) -> Tensor:
    """As conv_transpose1d, over volumes."""
    where = stride, padding, output_padding, groups, dilation
    return _conv_transpose("conv_transpose3d", 3, input, weight, bias, *where)


def _conv(
    name: str,
    dims: int,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Size,
    padding: str | Size,
    dilation: Size,
    groups: int,
) -> Tensor:
    input, weight, bias = autocast(name, input, weight, bias)
    s, d = numbers(stride, dims), numbers(dilation, dims)
    is_real = _is_real_batch(dims, input, weight, bias) if s and d else None
    fits = is_real is not None
    if fits and isinstance(padding, str):
        input, p = _named_padding(padding, input, weight, s, d)
    else:
        p = numbers(padding, dims)
    if not (fits and p):
        return getattr(TF, name)(input, weight, bias, stride, padding, dilation, groups)  # raises
    where = False, groups, *s, *p, *d, *_ZEROS[dims]
    if is_real:
        return Convolution.apply(input, weight, bias, *where)
    return _applied(dims, input, weight, bias, where)


def _conv_transpose(
    name: str,
    dims: int,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Size,
    padding: Size,
    output_padding: Size,
    groups: int,
    dilation: Size,
) -> Tensor:
    input, weight, bias = autocast(name, input, weight, bias)
    s, p = numbers(stride, dims), numbers(padding, dims)
    o, d = numbers(output_padding, dims), numbers(dilation, dims)
    is_real = _is_real_batch(dims, input, weight, bias) if s and p and o and d else None
    if is_real is None:
        return getattr(TF, name)(  # raises
            input, weight, bias, stride, padding, output_padding, groups, dilation
        )
    where = True, groups, *s, *p, *d, *o
    if is_real:
        return Convolution.apply(input, weight, bias, *where)
    return _applied(dims, input, weight, bias, where)


def _applied(
    dims: int, input: Tensor, weight: Tensor, bias: Tensor | None, geometry: Any
) -> Tensor:
    """Of what is no batch, or of complex numbers."""
    batch = input if input.dim() == dims + 2 else input.unsqueeze(0)
    convolve = _complex if input.is_complex() else Convolution.apply
    z = convolve(batch, weight, bias, *geometry)
    return z if batch is input else z.squeeze(0)


def _complex(x: Tensor, W: Tensor, b: Tensor | None, *geometry: Any) -> Tensor:
    """Three real convolutions, as torch: W x = Wr xr − Wi xi + i ((Wr + Wi)(xr + xi) − Wr xr − Wi xi)."""
    parts = (None, None) if b is None else (b.real, b.imag)
    both = None if b is None else b.real + b.imag
    real = Convolution.apply(x.real, W.real, parts[0], *geometry)
    imag = Convolution.apply(x.imag, W.imag, None, *geometry)
    mixed = Convolution.apply(x.real + x.imag, W.real + W.imag, both, *geometry)
    return torch.complex(real - imag, mixed - real - imag)


def _named_padding(
    padding: str, input: Tensor, weight: Tensor, stride: tuple[int, ...], dilation: tuple[int, ...]
) -> tuple[Tensor, tuple[int, ...] | None]:
    """The input, and the zeros that are to stand at both ends of each dimension; None for torch to refuse."""
    if padding == "valid":
        return input, (0,) * len(stride)
    if padding != "same" or any(s != 1 for s in stride):
        return input, None
    total = [d * (k - 1) for k, d in zip(weight.shape[2:], dilation, strict=True)]
    if any(n % 2 for n in total):
        if not torch.compiler.is_compiling():
            warnings.warn(
                "Using padding='same' with even kernel lengths and odd dilation may require a "
                "zero-padded copy of the input be created",
                stacklevel=4,
            )
        input = TF.pad(input, [side for n in reversed(total) for side in (0, n % 2)])
    return input, tuple(n // 2 for n in total)


def numbers(given: Any, dims: int) -> Any:
    """A number, or one for each dimension, as a tuple; None for what torch does not take."""
    if type(given) is tuple and len(given) == dims:  # those of a layer, nearly always
        for v in given:
            if type(v) is not int:
                break
        else:
            return given
    try:
        given = tuple(given) if isinstance(given, (tuple, list)) else (given,)
        given = tuple(v if isinstance(v, (int, torch.SymInt)) else operator.index(v) for v in given)
    except TypeError:
        return None
    given = given * dims if len(given) == 1 else given
    return given if len(given) == dims else None


@bypass_function_mode
def _is_real_batch(dims: int, input: Tensor, weight: Tensor, bias: Tensor | None) -> bool | None:
    """Whether the input is a batch of real numbers; None unless the rest is for the kernel to judge."""
    if not (isinstance(input, torch.Tensor) and isinstance(weight, torch.Tensor)):
        return None
    dtype, size = input.dtype, input.dim()
    if weight.dtype is not dtype or weight.dim() != dims + 2:
        return None
    if bias is not None and not (isinstance(bias, torch.Tensor) and bias.dtype is dtype):
        return None
    if size == dims + 2:
        return not input.is_complex()
    return False if size == dims + 1 else None
