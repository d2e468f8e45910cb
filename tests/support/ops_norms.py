"""Rows of the normalisations and of stochastic depth."""

from dataclasses import replace

import torch
import torchvision
from op import inputs, normal, pair, row
from ops_examples import normalized


def exactly(op, shape, mean, *args, **options):
    # torch keeps xhat in the place of x, where gamma multiplies it.
    keeps = op.name == "rms_norm" and "affine" not in op.option
    return replace(op, exact=normalized(mean, shape, *args, **options), keeps_inputs=keeps)


X = normal(4, 3, 2)
NO_EMPTY = ()  # torch's instance_norm with parameters refuses a batch of none: an IndexError
IMAGE = normal(2, 4, 2, 2)
C3, C4 = normal(3, scale=1.0), normal(4, scale=1.0)


def channels(name, option, make, batch=(0,), differentiable=None, **options):
    """A row of (x, gamma, beta) for batch_norm and instance_norm, with no running statistics."""

    def call(M, x, gamma=None, beta=None):
        return getattr(M, name)(x, None, None, gamma, beta, **options)

    return row(name, option, call, make, batch, differentiable)


def running(name, option, make, **options):
    """A row of (x, mu, var, gamma, beta): evaluation."""

    def call(M, x, mu, var, gamma=None, beta=None):
        return getattr(M, name)(x, mu, var, gamma, beta, **options)

    last = (3, 4) if "affine" not in option else ()
    return row(name, option, call, make, NO_EMPTY if name == "instance_norm" else (0,), (0, *last))


def variance(C):
    return lambda dtype: (torch.rand(C, dtype=torch.float64) + 0.5).to(dtype)


ROWS = [
    exactly(
        channels("batch_norm", "training,2d", inputs(normal(5, 3), C3, C3), training=True),
        (3,),
        (0,),
    ),
    exactly(
        channels("batch_norm", "training,image", inputs(IMAGE, C4, C4), training=True, eps=1e-2),
        (4, 1, 1),
        (0, 2, 3),
        1e-2,
    ),
    exactly(
        channels("batch_norm", "training,no-bias", inputs(X, C3), training=True), (3, 1), (0, 2)
    ),
    exactly(
        channels("batch_norm", "training,not-affine", inputs(X), training=True), (3, 1), (0, 2)
    ),
    running("batch_norm", "eval,not-affine", inputs(X, C3, variance(3)), eps=1e-2),
    exactly(
        channels("instance_norm", "not-affine", inputs(normal(2, 3, 2, 2)), eps=1e-2),
        (3, 1, 1),
        (2, 3),
        1e-2,
    ),
    running("instance_norm", "eval", inputs(X, C3, variance(3), C3, C3), use_input_stats=False),
    exactly(
        row(
            "layer_norm",
            "two dimensions,eps",
            lambda M, x, g, b: M.layer_norm(x, (3, 2), g, b, 1e-2),
            inputs(normal(3, 2, 3, 2), normal(3, 2), normal(3, 2)),
            (0,),
        ),
        (3, 2),
        (-2, -1),
        1e-2,
    ),
    exactly(
        row(
            "layer_norm",
            "no-bias",
            lambda M, x, g: M.layer_norm(x, (6,), g),
            inputs(normal(3, 6), normal(6)),
            (0,),
        ),
        (6,),
        (-1,),
    ),
    exactly(
        pair("layer_norm", "not-affine", inputs(normal(3, 6)), normalized_shape=(6,)), (6,), (-1,)
    ),
    exactly(
        pair("layer_norm", "unbatched", inputs(normal(6)), batch=(), normalized_shape=(6,)),
        (6,),
        (-1,),
    ),
    row(
        "group_norm",
        "2",
        lambda M, x, g, b: M.group_norm(x, 2, g, b),
        inputs(IMAGE, C4, C4),
        (0,),
    ),
    row(
        "group_norm",
        "1,no places",
        lambda M, x, g, b: M.group_norm(x, 1, g, b, 1e-2),
        inputs(normal(3, 4), C4, C4),
        (0,),
    ),
    pair("group_norm", "not-affine", inputs(normal(2, 4, 3)), num_groups=4),
    exactly(
        row(
            "rms_norm",
            "two dimensions,eps",
            lambda M, x, g: M.rms_norm(x, (3, 2), g, 1e-2),
            inputs(normal(3, 2, 3, 2), normal(3, 2)),
            (0,),
        ),
        (3, 2),
        (-2, -1),
        1e-2,
        centred=False,
    ),
    exactly(
        pair("rms_norm", "not-affine", inputs(normal(3, 6)), normalized_shape=(6,)),
        (6,),
        (-1,),
        2**-52,
        centred=False,
    ),
]

ROWS += [
    pair(
        "stochastic_depth",
        option,
        inputs(normal(6, 2, 3)),
        random=option != "eval",
        torchs=torchvision.ops.stochastic_depth,
        **options,
    )
    for option, options in {
        "row": {"p": 0.4, "mode": "row"},
        "batch": {"p": 0.4, "mode": "batch"},
        "p=1": {"p": 1.0, "mode": "row"},
        "eval": {"p": 0.4, "mode": "row", "training": False},
    }.items()
]
