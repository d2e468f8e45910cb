"""The average of each window. Of it nothing is saved but shapes."""

from math import prod

import torch

from manualnn._torch import adaptive_avg_pool2d_backward, adaptive_avg_pool3d_backward
from manualnn.autograd.examples import SIGNALS, Example, Twin, inputs
from manualnn.autograd.function import Function
from manualnn.ops.layout import placeholder, split

aten = torch.ops.aten
_KERNELS = {
    2: (aten.avg_pool2d.default, aten.avg_pool2d_backward.default),
    3: (aten.avg_pool3d.default, aten.avg_pool3d_backward.default),
}
_ADAPTIVE = {
    2: (aten.adaptive_avg_pool2d.default, adaptive_avg_pool2d_backward),
    3: (aten.adaptive_avg_pool3d.default, adaptive_avg_pool3d_backward),
}


class AvgPool(Function):
    """z = Σ x / D over each window
    dx = Σ dz / D over the windows that x lies in
    x (N, C, D…) or (C, D…), of two or three dimensions -> z (N, C, L…)
    D: the divisor given; else the elements of the window, those in the padding counted or not, but
    never those that ceil_mode adds behind it.
    Caches nothing but the shape of x.
    ``numbers``: kernel, stride and padding, each of as many as there are dimensions D.
    Source: torch.nn.functional.avg_pool2d
    """

    twin = Twin("avg_pool2d", "AvgPool2d")
    examples = tuple(
        Example(inputs(x), {"kernel_size": kernel}, function=f"avg_pool{dims}d")
        for dims, x, kernel in SIGNALS
    )

    @staticmethod
    def forward(x, ceil_mode, count_include_pad, divisor, *numbers):
        options = *split(numbers, 3), ceil_mode, count_include_pad, divisor
        return _KERNELS[len(options[0])][0](x, *options)

    @staticmethod
    def save(needs, z, x, *options):
        return (), (x.shape, x.stride(), *options)

    @staticmethod
    def gradients(needs, dz, x_shape, _, ceil_mode, count_include_pad, divisor, *numbers):
        windows, D = [], 1
        kernel, stride, padding = split(numbers, 3)
        for dim, (k, s, p) in enumerate(zip(kernel, stride, padding, strict=True), -len(kernel)):
            size, start = x_shape[dim], torch.arange(dz.shape[dim], device=dz.device) * s - p
            inside, stop = start.clamp(min=0), (start + k).clamp(max=size + p)
            counted = stop - start if count_include_pad else stop.clamp(max=size) - inside
            D = D * counted.view(-1, *(1 for _ in range(-1 - dim)))
            windows.append(places(start, stop, size, dz))
        return spread(dz / (divisor or D), windows)

    kernel_has_derivatives = True

    @staticmethod
    def kernel_gradients(needs, dz, x_shape, x_stride, *options):
        *rest, numbers = *options[:3], split(options[3:], 3)
        x = placeholder(dz, x_shape, x_stride)
        return _KERNELS[len(numbers[0])][1](dz, x, *numbers, *rest)

    @staticmethod
    def tangent(step, x_shape, x_stride, *options):
        return AvgPool.forward(step.x, *options)

    @staticmethod
    def recompute(inputs, outputs):
        x, *options = inputs
        return lambda x: AvgPool.forward(x, *options), (x,)


class AdaptiveAvgPool(Function):
    """z = mean over each window of x, the o-th of L from ⌊o D / L⌋ to ⌈(o + 1) D / L⌉
    dx = Σ dz / D over the windows that x lies in, D the elements of the window
    Shapes and cache as AvgPool.
    Source: torch.nn.functional.adaptive_avg_pool2d
    """

    twin = Twin("adaptive_avg_pool2d", "AdaptiveAvgPool2d")
    examples = tuple(
        Example(inputs(x), {"output_size": kernel}, function=f"adaptive_avg_pool{dims}d")
        for dims, x, kernel in SIGNALS
    )

    @staticmethod
    def forward(x, *count):
        return _ADAPTIVE[len(count)][0](x, count)

    @staticmethod
    def save(needs, z, x, *count):
        return (), (x.shape, x.stride(), *count)

    @staticmethod
    def gradients(needs, dz, x_shape, _, *count):
        windows, D = [], 1
        for dim, n in enumerate(count, -len(count)):
            size, o = x_shape[dim], torch.arange(n, device=dz.device)
            start, stop = o * size // n, ((o + 1) * size + n - 1) // n
            D = D * (stop - start).view(-1, *(1 for _ in range(-1 - dim)))
            windows.append(places(start, stop, size, dz))
        return spread(dz / D, windows)

    kernel_has_derivatives = True

    @staticmethod
    def kernel_gradients(needs, dz, x_shape, x_stride, *count):
        if all(n == 1 for n in count):  # one window, all of it: torch takes the mean
            return dz.expand(x_shape) / prod(x_shape[-len(count) :])
        return _ADAPTIVE[len(count)][1](dz, placeholder(dz, x_shape, x_stride))

    @staticmethod
    def tangent(step, x_shape, x_stride, *count):
        return AdaptiveAvgPool.forward(step.x, *count)

    @staticmethod
    def recompute(inputs, outputs):
        x, *count = inputs
        return lambda x: AdaptiveAvgPool.forward(x, *count), (x,)


def places(start, stop, size, like):
    """(L, size): 1 where a place lies in the window, from ``start`` to before ``stop``, else 0"""
    place = torch.arange(size, device=start.device)
    return ((place >= start[:, None]) & (place < stop[:, None])).to(like.dtype)


def spread(dz, windows):
    """Σ dz over the windows that each place lies in, one dimension after the other."""
    for dim, inside in enumerate(windows, -len(windows)):
        dz = (dz.transpose(dim, -1) @ inside).transpose(dim, -1)
    return dz
