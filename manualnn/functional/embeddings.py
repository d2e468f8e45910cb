"""Embedding."""

import torch
from torch import Tensor
from torch.nn import functional as TF

from manualnn.functional.names import require_tensor
from manualnn.ops.embeddings import Embedding


def embedding(
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Tensor:
    """W[i]. input (*) integers, weight (n, d) -> (*, d). With max_norm, rows of weight that are taken
    and longer are shortened in place first, as torch does."""
    require_tensor("embedding", 1, "weight", weight)
    require_tensor("embedding", 2, "indices", input)
    rows = weight.shape[0] if weight.dim() else 0
    if (
        weight.dim() != 2
        or weight.is_complex()
        or not -rows <= (padding_idx or 0) < max(rows, 1)
        or input.dtype not in (torch.int64, torch.int32)
        or torch.jit.is_tracing()
    ):
        # torch refuses it, or its gradient, in its own words; or a trace, where sizes are tensors.
        return TF.embedding(
            input, weight, padding_idx, max_norm, norm_type, scale_grad_by_freq, sparse
        )
    if padding_idx is None:
        padding_idx = -1
    elif padding_idx < 0:
        padding_idx += rows
    if max_norm is not None:
        input = input.contiguous()
        torch.embedding_renorm_(weight.detach(), input, max_norm, norm_type)
    return Embedding.apply(input, weight, padding_idx, scale_grad_by_freq, sparse)
