"""Pooling: the largest or the average of each window."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from manualnn import functional as F


class MaxPool1d(torch.nn.MaxPool1d):
    def forward(self, input: Tensor) -> Any:
        return _max_pool(F.max_pool1d, self, input)


class MaxPool2d(torch.nn.MaxPool2d):
    def forward(self, input: Tensor) -> Any:
        return _max_pool(F.max_pool2d, self, input)


class MaxPool3d(torch.nn.MaxPool3d):
    def forward(self, input: Tensor) -> Any:
        return _max_pool(F.max_pool3d, self, input)


class AvgPool1d(torch.nn.AvgPool1d):
    def forward(self, input: Tensor) -> Tensor:
        return _avg_pool(F.avg_pool1d, self, input)


class AvgPool2d(torch.nn.AvgPool2d):
    def forward(self, input: Tensor) -> Tensor:
        return _avg_pool(F.avg_pool2d, self, input, self.divisor_override)


class AvgPool3d(torch.nn.AvgPool3d):
    def forward(self, input: Tensor) -> Tensor:
        return _avg_pool(F.avg_pool3d, self, input, self.divisor_override)


class AdaptiveMaxPool1d(torch.nn.AdaptiveMaxPool1d):
    def forward(self, input: Tensor) -> Any:
        return F.adaptive_max_pool1d(input, self.output_size, self.return_indices)


class AdaptiveMaxPool2d(torch.nn.AdaptiveMaxPool2d):
    def forward(self, input: Tensor) -> Any:
        return F.adaptive_max_pool2d(input, self.output_size, self.return_indices)


class AdaptiveMaxPool3d(torch.nn.AdaptiveMaxPool3d):
    def forward(self, input: Tensor) -> Any:
        return F.adaptive_max_pool3d(input, self.output_size, self.return_indices)


class AdaptiveAvgPool1d(torch.nn.AdaptiveAvgPool1d):
    def forward(self, input: Tensor) -> Tensor:
        return F.adaptive_avg_pool1d(input, self.output_size)


class AdaptiveAvgPool2d(torch.nn.AdaptiveAvgPool2d):
    def forward(self, input: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(input, self.output_size)


class AdaptiveAvgPool3d(torch.nn.AdaptiveAvgPool3d):
    def forward(self, input: Tensor) -> Tensor:
        return F.adaptive_avg_pool3d(input, self.output_size)


def _max_pool(pool: Callable[..., Any], layer: Any, input: Tensor) -> Any:
    return pool(
        input,
        layer.kernel_size,
        layer.stride,
        layer.padding,
        layer.dilation,
        ceil_mode=layer.ceil_mode,
        return_indices=layer.return_indices,
    )


def _avg_pool(pool: Callable[..., Any], layer: Any, input: Tensor, *divisor: int | None) -> Tensor:
    return pool(
        input,
        layer.kernel_size,
        layer.stride,
        layer.padding,
        layer.ceil_mode,
        layer.count_include_pad,
        *divisor,
    )
