"""Dropout: switch units off at random while training.

The mask is drawn as torch draws it, number for number, and saved as one bit an element.
"""

import math

import torch

from manualnn.autograd.examples import Example, Twin, inputs, normal
from manualnn.autograd.function import Function
from manualnn.autograd.masks import (
    again_in_one_pass,
    as_bools,
    draw,
    drop,
    drop_again,
    dropped,
    in_one_pass,
    keepable,
)
from manualnn.kernels.expressions import rounded

ALPHA = 1.7580993408473766  # λα of SELU: a unit that is switched off saturates at −ALPHA


class Dropout(Function):
    """a = z ∗ r,  r = mask / (1 − p),  mask = 1 with probability 1 − p
    dz = da ∗ r
    z (*); mask (*), or of a shape given, such as (N, C, 1, ...) to drop whole channels
    -> a (*), and the mask as it is saved
    Caches the mask, a bit an element (a byte below 4096 elements); not z.
    Source: Srivastava et al. 2014, section 4; torch.nn.functional.dropout
    """

    twin = Twin("dropout", "Dropout")
    examples = (
        Example(inputs(normal(4, 6)), random=True),
        Example(inputs(normal(2, 4, 3)), function="dropout1d", random=True),
        Example(inputs(normal(2, 3, 2, 2)), function="dropout2d", random=True),
    )

    outputs = 1

    @staticmethod
    def forward(z, p, shape):
        mask = draw(z, p, shape)
        return dropped(z, mask, p), keepable(mask)

    @staticmethod
    def kernel_forward(z, p, shape):
        return drop(z, draw(z, p, shape), p)

    @staticmethod
    def save(needs, output, z, p, shape):
        _, mask = output
        return (mask,), (p, z.shape if shape is None else shape)

    @staticmethod
    def gradients(needs, da, mask, p, shape):
        return dropped(da, as_bools(mask, shape), p)

    @staticmethod
    def kernel_gradients(needs, da, mask, p, shape):
        return drop_again(da, mask, shape, p)

    @staticmethod
    def tangent(step, mask, p, shape):
        return dropped(step.z, as_bools(mask, shape), p)

    @staticmethod
    def recompute(inputs, output):
        """From the input and the mask, which is saved."""
        z, p, shape = inputs
        whole = z.shape if shape is None else shape
        return lambda z, mask: drop_again(z, mask, whole, p), (z, output[1])


class AlphaDropout(Function):
    """a = z ∗ r + s,  r = u mask,  s = −α u (1 − mask) + α u p,  u = 1 / √((1 + α² p) (1 − p))
    dz = da ∗ r
    α = 1.7581: mean 0 and variance 1 are kept. Shapes and cache as Dropout.
    Source: Klambauer et al. 2017, section 3; torch.nn.functional.alpha_dropout
    """

    twin = Twin("alpha_dropout", "AlphaDropout")
    examples = (Example(inputs(normal(4, 6)), {"training": True}, random=True),)

    outputs = 1

    @staticmethod
    def forward(z, p, shape):
        mask = draw(z, p, shape)
        return AlphaDropout.masked(z, mask, p), keepable(mask)

    @staticmethod
    def kernel_forward(z, p, shape):
        mask = draw(z, p, shape)
        found = in_one_pass(z, mask, alpha_scale(p), *shifts(p))
        return (AlphaDropout.masked(z, mask, p), keepable(mask)) if found is None else found

    @staticmethod
    def masked(z, mask, p):
        u = alpha_scale(p)
        s = (mask.to(z.dtype) - 1) * (ALPHA * u) + ALPHA * u * p
        return z * (mask.to(z.dtype) * u) + s

    save = staticmethod(Dropout.save)

    @staticmethod
    def gradients(needs, da, mask, p, shape):
        return da * (as_bools(mask, shape).to(da.dtype) * alpha_scale(p))

    @staticmethod
    def kernel_gradients(needs, da, mask, p, shape):
        found = again_in_one_pass(da, mask, alpha_scale(p))
        return AlphaDropout.gradients(needs, da, mask, p, shape) if found is None else found

    @staticmethod
    def tangent(step, mask, p, shape):
        return AlphaDropout.gradients(None, step.z, mask, p, shape)

    @staticmethod
    def recompute(inputs, output):
        z, p, shape = inputs
        whole = z.shape if shape is None else shape

        def make(z, mask):
            found = again_in_one_pass(z, mask, alpha_scale(p), *shifts(p))
            return AlphaDropout.masked(z, as_bools(mask, whole), p) if found is None else found

        return make, (z, output[1])


def shifts(p):
    """s where the mask is 1, and where it is 0, as float32 rounds them."""
    u = alpha_scale(p)
    up, down = (rounded(n, torch.float32) for n in (ALPHA * u * p, -(ALPHA * u)))
    return up, rounded(down + up, torch.float32)


def alpha_scale(p):
    return 1 / math.sqrt((ALPHA * ALPHA * p + 1) * (1 - p))  # rounded as torch rounds it
