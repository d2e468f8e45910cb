"""Convolutions, and transposed ones."""

import torch

from manualnn import functional as F


class Conv1d(torch.nn.Conv1d):
    def _conv_forward(self, input, weight, bias):
        return _convolve(F.conv1d, self, input, weight, bias)


class Conv2d(torch.nn.Conv2d):
    def _conv_forward(self, input, weight, bias):
        return _convolve(F.conv2d, self, input, weight, bias)


class Conv3d(torch.nn.Conv3d):
    def _conv_forward(self, input, weight, bias):
        return _convolve(F.conv3d, self, input, weight, bias)


class ConvTranspose1d(torch.nn.ConvTranspose1d):
    def forward(self, input, output_size=None):
        return _convolve_transposed(F.conv_transpose1d, 1, self, input, output_size)


class ConvTranspose2d(torch.nn.ConvTranspose2d):
    def forward(self, input, output_size=None):
        return _convolve_transposed(F.conv_transpose2d, 2, self, input, output_size)


class ConvTranspose3d(torch.nn.ConvTranspose3d):
    def forward(self, input, output_size=None):
        return _convolve_transposed(F.conv_transpose3d, 3, self, input, output_size)


def _convolve(conv, layer, input, weight, bias):
    padding = layer.padding
    if layer.padding_mode != "zeros":
        ends = layer._reversed_padding_repeated_twice
        input, padding = torch.nn.functional.pad(input, ends, mode=layer.padding_mode), 0
    return conv(input, weight, bias, layer.stride, padding, layer.dilation, layer.groups)


def _convolve_transposed(conv, dims, layer, input, output_size):
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
