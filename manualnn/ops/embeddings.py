"""Embedding: rows of a table."""

import torch

from manualnn._torch import F
from manualnn.autograd.examples import Example, Twin, classes, inputs, normal
from manualnn.autograd.function import Function


class Embedding(Function):
    """a = W[i]
    dW = Σ da over the places where a row was taken, by row; 0 at row padding_idx
    i (*) integers, W (n, d) -> a (*, d)
    Caches i, and the number of rows; never W.
    Source: torch.nn.functional.embedding
    """

    twin = Twin("embedding", "Embedding")
    examples = (Example(inputs(classes(2, 2, high=4), normal(4, 3))),)

    @staticmethod
    def forward(i, W, padding_idx, scale_grad_by_freq, sparse):
        return torch.embedding(W, i, padding_idx, scale_grad_by_freq, sparse)

    @staticmethod
    def save(needs, a, i, W, *options):
        return (i if needs.W else None,), (W.shape[0], *options)

    @staticmethod
    def gradients(needs, da, i, n, padding_idx, scale_grad_by_freq, sparse):
        i, rows = i.reshape(-1), da.reshape(i.numel(), da.shape[-1])
        # A mask and not a choice of elements, whose number vmap and compile could not know.
        rows = rows * (i != padding_idx).unsqueeze(-1)
        if scale_grad_by_freq:
            if sparse:
                raise RuntimeError("scale_grad_by_freq not supported with sparse gradients")
            times = torch.zeros(n, dtype=da.dtype, device=da.device)
            rows = rows / times.index_add(0, i, torch.ones_like(i, dtype=da.dtype))[i].unsqueeze(-1)
        if sparse:
            return None, torch.sparse_coo_tensor(i.unsqueeze(0), rows, (n, rows.shape[-1]))
        dW = torch.zeros(n, rows.shape[-1], dtype=da.dtype, device=da.device)
        return None, dW.index_add(0, i, rows)

    @staticmethod
    def kernel_gradients(needs, da, i, n, padding_idx, scale_grad_by_freq, sparse):
        options = padding_idx, scale_grad_by_freq, sparse
        return None, torch.ops.aten.embedding_backward(da, i, n, *options)

    @staticmethod
    def tangent(step, i, *options):
        return F.embedding(i, step.W)

    @staticmethod
    def recompute(inputs, outputs):
        # W is given as it is and not copied, being the largest tensor of a model.
        i, W = inputs[:2]
        return lambda i, W: torch.embedding(W, i), (i, W)
