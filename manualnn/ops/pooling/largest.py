"""The largest element of each window. Of a window one byte is saved: which of its elements that was."""

from math import prod

import torch

from manualnn.autograd.examples import SIGNALS, Example, Twin, inputs
from manualnn.autograd.function import Function
from manualnn.autograd.moment import plain
from manualnn.ops.layout import placeholder, split
from manualnn.ops.pooling.windows import adaptive, regular

aten = torch.ops.aten
_KERNELS = {
    2: (aten.max_pool2d_with_indices.default, aten.max_pool2d_with_indices_backward.default),
    3: (aten.max_pool3d_with_indices.default, aten.max_pool3d_with_indices_backward.default),
}
_INTO = {
    2: (aten.max_pool2d_with_indices.out, aten.max_pool2d_with_indices_backward.grad_input),
    3: (aten.max_pool3d_with_indices.out, aten.max_pool3d_with_indices_backward.grad_input),
}
_ADAPTIVE = {
    2: (aten.adaptive_max_pool2d.default, aten.adaptive_max_pool2d_backward.default),
    3: (aten.adaptive_max_pool3d.default, aten.adaptive_max_pool3d_backward.default),
}
BLOCK = 1 << 17  # windows: their int64 indices, and what is computed from them, stay in the cache


class MaxPool(Function):
    """z = max over each window of x
    dx = Σ dz of the windows of which x is the first largest, or the last NaN; else 0
    x (N, C, D…) or (C, D…), of two or three dimensions D -> z (N, C, L…), and each one's position
    Caches the position of the largest in its window, a byte (more if the window has more than 256).
    ``numbers``: kernel, stride, padding and dilation, each of as many as there are dimensions D.
    Source: torch.nn.functional.max_pool2d
    """

    twin = Twin("max_pool2d", "MaxPool2d")
    examples = tuple(
        Example(inputs(x), {"kernel_size": kernel}, function=f"max_pool{dims}d")
        for dims, x, kernel in SIGNALS
    )

    outputs, gives_intermediates = 1, True

    @staticmethod
    def forward(x, ceil_mode, *numbers):
        options = *split(numbers, 4), ceil_mode
        z, index = _KERNELS[len(options[0])][0](x, *options)
        return z, windows(x.shape, z.shape, options).position(index)

    @staticmethod
    def save(needs, output, x, ceil_mode, *numbers):
        z, position = output
        options = *split(numbers, 4), ceil_mode
        return (position,), (windows(x.shape, z.shape, options), options)

    @staticmethod
    def gradients(needs, dz, position, windows, options):
        index, dz = without_empty(windows, options, windows.index(position), dz)
        return scattered(dz, index, windows.size)

    @staticmethod
    def tangent(step, position, windows, options):
        index, one = windows.index(position), torch.ones_like(position, dtype=step.x.dtype)
        index, one = without_empty(windows, options, index, one)
        return gathered(step.x, index, windows.size) * one

    @staticmethod
    def kernel_forward(x, ceil_mode, *numbers):
        options = *split(numbers, 4), ceil_mode
        if memory_format := in_blocks(x, options[3]):
            return _forward_in_blocks(x, options, memory_format)
        return MaxPool.forward(x, ceil_mode, *numbers)

    @staticmethod
    def layout(needs, output, x, ceil_mode, *numbers):
        return x.shape, x.stride(), in_blocks(x, split(numbers, 4)[3])

    @staticmethod
    def kernel_gradients(needs, dz, position, windows, options, x_shape, x_stride, memory_format):
        if memory_format and plain(dz):
            return _backward_in_blocks(dz, position, windows, options, x_shape, memory_format)
        index, dz = without_empty(windows, options, windows.index(position), dz)
        x = placeholder(dz, x_shape, x_stride)
        return _KERNELS[len(windows.size)][1](dz, x, *options, index)

    @staticmethod
    def recompute(inputs, outputs):
        x, ceil_mode, *numbers = inputs
        kernel, *rest = split(numbers, 4)
        pool = _KERNELS[len(kernel)][0]
        return lambda x: pool(x, kernel, *rest, ceil_mode)[0], (x,)


class AdaptiveMaxPool(Function):
    """z = max over each window of x, the o-th of L from ⌊o D / L⌋ to ⌈(o + 1) D / L⌉
    dx, shapes and cache as MaxPool.
    Source: torch.nn.functional.adaptive_max_pool2d
    """

    twin = Twin("adaptive_max_pool2d", "AdaptiveMaxPool2d")
    examples = tuple(
        Example(inputs(x), {"output_size": kernel}, function=f"adaptive_max_pool{dims}d")
        for dims, x, kernel in SIGNALS
    )

    outputs, gives_intermediates = 1, True

    @staticmethod
    def forward(x, *count):
        z, index = _ADAPTIVE[len(count)][0](x, count)
        return z, adaptive(x.shape[-len(count) :], count).position(index)

    @staticmethod
    def save(needs, output, x, *count):
        _, position = output
        return (position,), (adaptive(x.shape[-len(count) :], count),)

    @staticmethod
    def gradients(needs, dz, position, windows):
        return scattered(dz, windows.index(position), windows.size)

    @staticmethod
    def tangent(step, position, windows):
        return gathered(step.x, windows.index(position), windows.size)

    @staticmethod
    def layout(needs, output, x, *count):
        return x.shape, x.stride()

    @staticmethod
    def kernel_gradients(needs, dz, position, windows, x_shape, x_stride):
        kernel = _ADAPTIVE[len(windows.size)][1]
        return kernel(dz, placeholder(dz, x_shape, x_stride), windows.index(position))

    @staticmethod
    def recompute(inputs, outputs):
        x, *count = inputs
        return lambda x: _ADAPTIVE[len(count)][0](x, count)[0], (x,)


def indices(position, size, geometry=None):
    """The places in the input, numbered as torch numbers them, that a pool's positions stand for."""
    count = position.shape[-len(size) :]
    made = adaptive(size, count) if geometry is None else regular(size, count, *geometry)
    return made.index(position)


def windows(x_shape, z_shape, options):
    kernel, stride, padding, dilation, _ = options
    n = len(kernel)
    return regular(x_shape[-n:], z_shape[-n:], kernel, stride, padding, dilation)


def without_empty(windows, options, index, dz):
    """Both 0 where a dilated window with its first element in the padding reaches over the whole input.

    torch's index points outside of the input then, and its backward writes there.
    """
    size, dilation = windows.size, options[3]
    if all(d <= n for d, n in zip(dilation, size, strict=True)):
        return index, dz
    for dim, (d, n) in enumerate(zip(dilation, size, strict=True)):
        start = windows.starts(dim, index.device)
        empty = ((start < 0) & (start.remainder(d) >= n)).view(-1, *(1 for _ in size[dim + 1 :]))
        index, dz = index.masked_fill(empty, 0), dz.masked_fill(empty, 0)
    return index, dz


def scattered(dz, index, size):
    """dx: each dz added to the element that its window took."""
    planes, dims = index.shape[: -len(size)], len(size)
    dx = dz.new_zeros(*planes, prod(size))
    dx = dx.scatter_add(-1, index.flatten(-dims), dz.reshape(*planes, prod(index.shape[-dims:])))
    return dx.view(*planes, *size)


def gathered(dx, index, size):
    """Of each window the dx of the element that it took: the adjoint of ``scattered``."""
    planes = index.shape[: -len(size)]
    dz = dx.reshape(*planes, prod(size)).gather(-1, index.flatten(-len(size)))
    return dz.view(index.shape)


# --- Block by block ---------------------------------------------------------------------------


def in_blocks(x, dilation):
    """The memory format of an input so large, and so plain in memory, that blocks pay; else None."""
    if x.device.type != "cpu" or x.numel() < BLOCK // 2:
        return None
    dims, size = len(dilation), x.shape[-len(dilation) :]
    if min(size) < 4 or any(d > n for d, n in zip(dilation, size, strict=True)):
        return None
    plane = prod(size)
    if x.is_contiguous() and x.stride(-dims - 1) == plane:
        return torch.contiguous_format
    last = torch.channels_last if dims == 2 else torch.channels_last_3d
    several = x.dim() == dims + 2 and x.shape[1] > 1
    return last if several and x.is_contiguous(memory_format=last) else None


def _blocks(tensors, dims, memory_format, windows):
    """The tensors in step: a few planes, or whole images where the channels lie innermost."""
    if memory_format is torch.contiguous_format:
        tensors = [t.flatten(0, -dims - 1) for t in tensors]
    step = max(1, BLOCK * len(tensors[0]) // windows)
    step = step if step < 16 else step // 16 * 16  # a vector of planes, see _forward_in_blocks
    return zip(*(t.split(step) for t in tensors), strict=True)


def _forward_in_blocks(x, options, memory_format):
    """torch's kernel is several times as fast where the channels lie innermost: planes are turned so."""
    dims = len(options[0])
    kernel = _INTO[dims][0]
    shape = _KERNELS[dims][0](x.to("meta"), *options)[0].shape
    w = windows(x.shape, shape, options)
    z = torch.empty(shape, dtype=x.dtype, memory_format=memory_format)
    position = torch.empty_like(z, dtype=w.dtype)
    numbered, turned = w.positions(x.device), memory_format is torch.contiguous_format
    last = torch.channels_last if dims == 2 else torch.channels_last_3d
    room = None
    for tensors in _blocks((x, z, position), dims, memory_format, z.numel()):
        inside = [t.unsqueeze(0) for t in tensors] if turned else tensors
        if room is None or room[0].shape != inside[0].shape:
            room = [torch.empty_like(t, memory_format=last) for t in inside] if turned else inside
            index = torch.empty_like(room[1], dtype=torch.int64)
        x_, z_, position_ = (room[0].copy_(inside[0]), *room[1:]) if turned else inside
        kernel(x_, *options, out=z_, indices=index)
        numbered(index, into=position_)
        if turned:
            inside[1].copy_(z_)
            inside[2].copy_(position_)
    return z, position


def _backward_in_blocks(dz, position, w, options, x_shape, memory_format):
    dims = len(w.size)
    dx = torch.empty(x_shape, dtype=dz.dtype, memory_format=memory_format)
    kernel, numbered, index = _INTO[dims][1], w.indices(dz.device), None
    tensors = dx, dz, position
    for dx_, dz_, position_ in _blocks(tensors, dims, memory_format, dz.numel()):
        if index is None or index.shape != dz_.shape:
            index = torch.empty_like(position_, dtype=torch.int64)
        # Of its input the kernel asks the shape: dx has it.
        kernel(dz_, dx_, *options, numbered(position_, into=index), grad_input=dx_)
    return dx
