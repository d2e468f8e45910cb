"""Rows of the registry: convolution and pooling."""

import torch
from op import inputs, normal, pair


def distinct(*shape):
    """Both signs, no two closer than 0.1, so that a finite difference changes no window's largest."""

    def make(dtype):
        count = torch.Size(shape).numel()
        z = torch.randperm(count).double() - count / 2 + 0.25 + torch.rand(count).double() / 2
        return (z * 0.2).view(shape).to(dtype)

    return make


def conv(name, option, x, W, bias=True, batch=(0,), **options):
    outputs = W[0] if "transpose" not in name else W[1] * options.get("groups", 1)
    makers = [normal(*x, scale=1.0), normal(*W, scale=0.5)]
    makers += [normal(outputs, scale=0.5)] if bias else []
    return pair(name, option, inputs(*makers), batch, **options)


CONVOLUTIONS = [
    conv("conv1d", "unbatched", (2, 5), (3, 2, 3), batch=()),
    conv("conv1d", "no-bias", (2, 2, 5), (3, 2, 3), bias=False),
    conv(
        "conv1d", "stride,padding,dilation", (2, 2, 6), (2, 2, 2), stride=2, padding=1, dilation=2
    ),
    conv("conv1d", "groups", (2, 4, 4), (4, 2, 2), groups=2),
    conv("conv1d", "depthwise", (2, 2, 4), (4, 1, 2), groups=2),
    conv("conv1d", "same", (2, 2, 5), (2, 2, 3), padding="same"),
    conv("conv1d", "same,uneven", (2, 2, 5), (2, 2, 2), padding="same"),
    conv("conv1d", "valid", (2, 2, 5), (2, 2, 2), padding="valid"),
    conv("conv2d", "unbatched", (2, 3, 3), (2, 2, 2, 2), batch=()),
    conv("conv2d", "1x1", (2, 2, 2, 3), (3, 2, 1, 1)),
    conv("conv2d", "unequal", (1, 2, 5, 4), (2, 1, 3, 2), stride=(2, 1), padding=(1, 0), groups=2),
    conv("conv2d", "same,dilation", (1, 1, 4, 4), (2, 1, 2, 3), padding="same", dilation=(1, 2)),
    conv("conv3d", "unbatched,padding", (1, 2, 2, 2), (2, 1, 2, 1, 2), batch=(), padding=(1, 0, 0)),
    conv("conv_transpose1d", "unbatched,no-bias", (2, 3), (2, 2, 2), bias=False, batch=()),
    conv(
        "conv_transpose1d",
        "all",
        (2, 2, 3),
        (2, 1, 3),
        stride=3,
        padding=1,
        output_padding=1,
        groups=2,
        dilation=2,
    ),
    conv(
        "conv_transpose2d",
        "stride,output_padding",
        (1, 2, 2, 2),
        (2, 1, 2, 2),
        stride=2,
        output_padding=(1, 0),
    ),
]


def pool(name, option, shape, batch=(0,), **options):
    return pair(name, option, inputs(distinct(*shape)), batch, **options)


def with_index(name, shape, **options):
    """The largest, weighted with where it was: both outputs count."""
    row = pool(name, "indices", shape, return_indices=True, **options)

    def weighted(function):
        def call(x):
            z, index = function(x)
            return z * (index + 1)

        return call

    return type(row)(
        row.name, row.option, weighted(row.ours), weighted(row.torchs), row.inputs, batch=row.batch
    )


POOLS = [
    pool("max_pool1d", "unbatched", (2, 7), (), kernel_size=3, stride=2, padding=1),
    with_index("max_pool1d", (2, 2, 6), kernel_size=2, ceil_mode=True),
    pool("max_pool2d", "overlapping,padding", (2, 1, 5, 4), kernel_size=3, stride=2, padding=1),
    pool(
        "max_pool2d", "dilation,ceil", (1, 2, 6, 5), kernel_size=2, dilation=(3, 2), ceil_mode=True
    ),
    pool("max_pool2d", "unbatched", (2, 4, 3), (), kernel_size=(2, 3), stride=(1, 2)),
    with_index("max_pool2d", (1, 2, 3, 3), kernel_size=3, stride=1, padding=1),
    pool(
        "max_pool3d",
        "padding",
        (2, 3, 2, 3),
        (),
        kernel_size=(3, 2, 2),
        stride=1,
        padding=(1, 0, 1),
    ),
    with_index("max_pool3d", (1, 1, 3, 3, 3), kernel_size=2, stride=1),
    pool("avg_pool1d", "padding", (2, 7), (), kernel_size=3, stride=2, padding=1, ceil_mode=True),
    pool("avg_pool1d", "not-counted", (2, 2, 6), kernel_size=3, padding=1, count_include_pad=False),
    pool(
        "avg_pool2d",
        "ceil,not-counted",
        (1, 2, 6, 5),
        kernel_size=3,
        stride=2,
        padding=1,
        ceil_mode=True,
        count_include_pad=False,
    ),
    pool("avg_pool2d", "divisor", (2, 4, 3), (), kernel_size=(2, 3), stride=1, divisor_override=5),
    pool("avg_pool3d", "padding", (1, 2, 2, 3), (), kernel_size=2, stride=1, padding=1),
    with_index("adaptive_max_pool1d", (2, 2, 5), output_size=2),
    pool("adaptive_max_pool2d", "one", (2, 3, 4), (), output_size=1),
    with_index("adaptive_max_pool2d", (1, 2, 5, 3), output_size=(2, None)),
    with_index("adaptive_max_pool3d", (1, 1, 3, 4, 3), output_size=(None, 2, 2)),
    pool("adaptive_avg_pool1d", "one", (2, 2, 5), output_size=1),
    pool("adaptive_avg_pool2d", "", (1, 2, 5, 4), output_size=(3, None)),
    pool("adaptive_avg_pool2d", "one", (2, 2, 3, 4), output_size=1),
    pool("adaptive_avg_pool2d", "unbatched", (2, 3, 4), (), output_size=(2, 6)),
    pool("adaptive_avg_pool3d", "", (1, 2, 3, 4, 3), output_size=(2, 3, None)),
    pool("adaptive_avg_pool3d", "one", (2, 2, 2, 3), (), output_size=(1, 1, 1)),
]
ROWS = CONVOLUTIONS + POOLS
