"""The fully connected layer."""

import torch

from manualnn import functional as F


class Linear(torch.nn.Linear):
    def forward(self, input):
        return F.linear(input, self.weight, self.bias)
