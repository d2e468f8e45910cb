"""The average of each window. Of it nothing is kept but shapes."""

from math import prod

import torch

from manualnn.function import Function
from manualnn.ops.layout import split, stand_in

aten = torch.ops.aten
_KERNELS = {
    2: (aten.avg_pool2d.default, aten.avg_pool2d_backward.default),
    3: (aten.avg_pool3d.default, aten.avg_pool3d_backward.default),
}
_ADAPTIVE = {
    2: (aten.adaptive_avg_pool2d.default, aten._adaptive_avg_pool2d_backward.default),
    3: (aten.adaptive_avg_pool3d.default, aten._adaptive_avg_pool3d_backward.default),
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

    @staticmethod
    def forward(x, ceil_mode, count_include_pad, divisor, *numbers):
        options = *split(numbers, 3), ceil_mode, count_include_pad, divisor
        return _KERNELS[len(options[0])][0](x, *options)

    @staticmethod
    def setup_context(ctx, inputs, z):
        x, *ctx.options = inputs
        ctx.x_layout = (x.shape, x.stride())

    @staticmethod
    def backward(ctx, dz):
        *rest, numbers = *ctx.options[:3], split(ctx.options[3:], 3)
        kernel = _KERNELS[len(numbers[0])][1]
        dx = kernel(dz, stand_in(dz, *ctx.x_layout), *numbers, *rest)
        return dx, *(None for _ in ctx.options)

    @staticmethod
    def jvp(ctx, dx, *_):
        return AvgPool.forward(dx, *ctx.options)

    @staticmethod
    def again(inputs, outputs):
        x, *options = inputs
        return lambda x: AvgPool.forward(x, *options), (x,)


class AdaptiveAvgPool(Function):
    """z = mean over each window of x, the o-th of L from ⌊o D / L⌋ to ⌈(o + 1) D / L⌉
    dx = Σ dz / D over the windows that x lies in, D the elements of the window
    Shapes and cache as AvgPool.
    Source: torch.nn.functional.adaptive_avg_pool2d
    """

    @staticmethod
    def forward(x, *count):
        return _ADAPTIVE[len(count)][0](x, count)

    @staticmethod
    def setup_context(ctx, inputs, z):
        x, *ctx.count = inputs
        ctx.x_layout = (x.shape, x.stride())

    @staticmethod
    def backward(ctx, dz):
        shape, _ = ctx.x_layout
        dims, nones = len(ctx.count), [None for _ in ctx.count]
        if all(n == 1 for n in ctx.count):  # one window, all of it: torch takes the mean
            return dz.expand(shape) / prod(shape[-dims:]), *nones
        return _ADAPTIVE[dims][1](dz, stand_in(dz, *ctx.x_layout)), *nones

    @staticmethod
    def jvp(ctx, dx, *_):
        return AdaptiveAvgPool.forward(dx, *ctx.count)

    @staticmethod
    def again(inputs, outputs):
        x, *count = inputs
        return lambda x: AdaptiveAvgPool.forward(x, *count), (x,)
