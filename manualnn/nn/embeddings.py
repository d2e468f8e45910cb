"""Embedding."""

import torch
from torch import Tensor

from manualnn import functional as F


class Embedding(torch.nn.Embedding):
    def forward(self, input: Tensor) -> Tensor:
        return F.embedding(
            input,
            self.weight,
            self.padding_idx,
            self.max_norm,
            self.norm_type,
            self.scale_grad_by_freq,
            self.sparse,
        )
