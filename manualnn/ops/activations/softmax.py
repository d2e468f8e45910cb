"""Softmax and its logarithm: activations that look at a whole row at once."""

import torch

from manualnn._torch import log_softmax_backward, softmax_backward
from manualnn.autograd.examples import Example, Twin, inputs, normal
from manualnn.autograd.function import Function

__all__ = ["LogSoftmax", "Softmax"]


class Softmax(Function):
    """a_i = exp(z_i − max z) / Σ_j exp(z_j − max z)
    dz_i = a_i (da_i − Σ_j da_j a_j)
    z (*) -> a (*), the sum along dimension dim
    Caches a.
    Source: Bridle 1990; torch.nn.functional.softmax
    """

    twin = Twin("softmax", "Softmax", others=("Softmin",))
    examples = (
        Example(inputs(normal(4, 6)), {"dim": -1}),
        Example(inputs(normal(4, 6)), {"dim": -1}, function="softmin"),
    )

    @staticmethod
    def forward(z, dim):
        return torch.softmax(z, dim)

    @staticmethod
    def save(needs, a, z, dim):
        return (a if needs.z else None,), (dim,)

    @staticmethod
    def gradients(needs, da, a, dim):
        return a * (da - (da * a).sum(dim, keepdim=True))

    @staticmethod
    def kernel_gradients(needs, da, a, dim):
        return softmax_backward(da, a, dim, a.dtype)

    @staticmethod
    def tangent(step, a, dim):
        # The Jacobian diag(a) − a aᵀ is symmetric: forward and backward are the same product.
        return Softmax.gradients(None, step.z, a, dim)


class LogSoftmax(Function):
    """a_i = z_i − max z − log Σ_j exp(z_j − max z)
    dz_i = da_i − exp(a_i) Σ_j da_j
    z (*) -> a (*), the sum along dimension dim
    Caches a.
    Source: torch.nn.functional.log_softmax
    """

    twin = Twin("log_softmax", "LogSoftmax")
    examples = (Example(inputs(normal(4, 6)), {"dim": -1}),)

    @staticmethod
    def forward(z, dim):
        return torch.log_softmax(z, dim)

    @staticmethod
    def save(needs, a, z, dim):
        return (a if needs.z else None,), (dim,)

    @staticmethod
    def gradients(needs, da, a, dim):
        return da - a.exp() * da.sum(dim, keepdim=True)

    @staticmethod
    def kernel_gradients(needs, da, a, dim):
        return log_softmax_backward(da, a, dim, a.dtype)

    @staticmethod
    def tangent(step, a, dim):
        return step.z - (a.exp() * step.z).sum(dim, keepdim=True)
