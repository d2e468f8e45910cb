"""The fully connected layer."""

import torch
from torch import Tensor

from manualnn import functional as F


class Linear(torch.nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.weight, self.bias)
