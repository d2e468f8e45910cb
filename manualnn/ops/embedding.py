"""Embedding: rows of a table."""

import torch

from manualnn.function import Function, first_order
from manualnn.torchs import F
from manualnn.transforms import forward_mode


class Embedding(Function):
    """a = W[i]
    dW = Σ da over the places where a row was taken, by row; 0 at row padding_idx
    i (*) integers, W (n, d) -> a (*, d)
    Caches i, and the number of rows; never W.
    Source: torch.nn.functional.embedding
    """

    @staticmethod
    def forward(i, W, padding_idx, scale_grad_by_freq, sparse):
        return torch.embedding(W, i, padding_idx, scale_grad_by_freq, sparse)

    @staticmethod
    def setup_context(ctx, inputs, a):
        i, W, *ctx.options = inputs
        ctx.n = W.shape[0]
        if ctx.needs_input_grad[1]:
            ctx.save_for_backward(i)
        if forward_mode():
            ctx.save_for_forward(i)

    @staticmethod
    def backward(ctx, da):
        if not ctx.needs_input_grad[1]:
            return None, None, None, None, None
        (i,) = ctx.saved_tensors
        padding_idx, scale_grad_by_freq, sparse = ctx.options
        if first_order() or (sparse and scale_grad_by_freq):  # which torch refuses
            dW = torch.ops.aten.embedding_backward(
                da, i, ctx.n, padding_idx, scale_grad_by_freq, sparse
            )
        else:
            dW = sum_by_row(da, i, ctx.n, padding_idx, scale_grad_by_freq, sparse)
        return None, dW, None, None, None

    @staticmethod
    def jvp(ctx, _, dW, *options):
        (i,) = ctx.saved_tensors
        return F.embedding(i, dW)

    @staticmethod
    def again(inputs, outputs):
        # W is given as it is and not copied, being the largest tensor of a model.
        i, W = inputs[:2]
        return lambda i, W: torch.embedding(W, i), (i, W)


def sum_by_row(da, i, n, padding_idx, scale_grad_by_freq, sparse):
    """dW: each row of da added to the row of W that it came from, or divided among its takers."""
    i, rows = i.reshape(-1), da.reshape(i.numel(), da.shape[-1])
    # A mask and not a choice of elements, whose number vmap and compile could not know.
    rows = rows * (i != padding_idx).unsqueeze(-1)
    if scale_grad_by_freq:
        times = torch.zeros(n, dtype=da.dtype, device=da.device)
        rows = rows / times.index_add(0, i, torch.ones_like(i, dtype=da.dtype))[i].unsqueeze(-1)
    if sparse:
        return torch.sparse_coo_tensor(i.unsqueeze(0), rows, (n, rows.shape[-1]))
    return torch.zeros(n, rows.shape[-1], dtype=da.dtype, device=da.device).index_add(0, i, rows)
