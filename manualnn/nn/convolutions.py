"""Convolutions, and transposed ones."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from manualnn import functional as F


class Conv1d(torch.nn.Conv1d):
    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return _convolve(F.conv1d, self, input, weight, bias)


class Conv2d(torch.nn.Conv2d):
    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return _convolve(F.conv2d, self, input, weight, bias)


class Conv3d(torch.nn.Conv3d):
    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return _convolve(F.conv3d, self, input, weight, bias)


class ConvTranspose1d(torch.nn.ConvTranspose1d):
    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        return _convolve_transposed(F.conv_transpose1d, 1, self, input, output_size)


class ConvTranspose2d(torch.nn.ConvTranspose2d):
    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        return _convolve_transposed(F.conv_transpose2d, 2, self, input, output_size)


class ConvTranspose3d(torch.nn.ConvTranspose3d):
    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        return _convolve_transposed(F.conv_transpose3d, 3, self, input, output_size)


def _convolve(
    conv: Callable[..., Tensor], layer: Any, input: Tensor, weight: Tensor, bias: Tensor | None
) -> Tensor:
    padding = layer.padding
    if layer.padding_mode != "zeros":
        ends = layer._reversed_padding_repeated_twice
        input, padding = torch.nn.functional.pad(input, ends, mode=layer.padding_mode), 0
    return conv(input, weight, bias, layer.stride, padding, layer.dilation, layer.groups)


def _convolve_transposed(
    conv: Callable[..., Tensor], dims: int, layer: Any, input: Tensor, output_size: list[int] | None
) -> Tensor:
    if layer.padding_mode != "zeros":
        raise ValueError(f"Only `zeros` padding mode is supported for ConvTranspose{dims}d")
    output_padding = layer._output_padding(
        input,
        output_size,
        layer.stride,
        layer.padding,
        layer.kernel_size,
        dims,
        layer.dilation,
    )
    return conv(
        input,
        layer.weight,
        layer.bias,
        layer.stride,
        layer.padding,
        output_padding,
        layer.groups,
        layer.dilation,
    )
