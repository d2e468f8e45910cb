"""Calls inside forward in an unusual dress: by keyword, conjugated, in place without gradients."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as TF

from manualnn import convert


class Net(nn.Module):
    def __init__(self, middle, width):
        super().__init__()
        self.first, self.middle, self.last = nn.Linear(8, 8), middle, nn.Linear(width, 3)

    def forward(self, x):
        return self.last(self.middle(self.first(x)))


def agrees(middle, width=8):
    torch.manual_seed(0)
    theirs = Net(middle, width).double()
    ours, x = convert(copy.deepcopy(theirs)), torch.randn(4, 8, dtype=torch.float64)
    results = []
    for model in (ours, theirs):
        torch.manual_seed(1)
        out = model(x)
        results.append([out, *torch.autograd.grad(out.square().sum(), model.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


BY_KEYWORD = {
    "softmax": lambda h: torch.softmax(input=h, dim=1),
    "log_softmax": lambda h: torch.log_softmax(input=h, dim=1),
    "relu": lambda h: torch.relu(input=h),
    "add": lambda h: torch.add(input=h, other=h * 2),
    "matmul": lambda h: torch.matmul(input=h, other=h.T.relu()) @ h,
    "cat": lambda h: torch.cat(tensors=[h, h], dim=1)[:, 4:12],
}


@pytest.mark.parametrize("name", BY_KEYWORD)
def test_by_keyword(name):
    agrees(BY_KEYWORD[name])


CONJUGATED = {
    "a slice": lambda s: s.conj()[..., :3] * 1,
    "reshaped": lambda s: s.conj().reshape(4, 5) * 1,
    "a row": lambda s: s.mH.T[..., 1:4] * 1,
    "its imaginary part": lambda s: s.conj().imag[:, :4] * 2.0,
    "its imaginary part, flat": lambda s: s.conj().imag.flatten().view(4, 5) * 2.0,
    "negated": lambda s: s.conj().imag.reshape(4, 5).abs() * s.abs(),
}


@pytest.mark.parametrize("name", CONJUGATED)
def test_a_view_of_a_lazily_conjugated_tensor(name):
    def middle(h):
        out = CONJUGATED[name](torch.fft.rfft(h)).abs()
        return TF.pad(out, (0, 5 - out.shape[1]))

    agrees(middle, width=5)


WRITES = {
    "relu": lambda h: TF.relu(h, inplace=True),
    "relu by keyword": lambda h: TF.relu(input=h, inplace=True),
    "silu": lambda h: TF.silu(h, inplace=True),
    "elu": lambda h: TF.elu(h, 1.0, True),
    "threshold": lambda h: TF.threshold(h, 0.0, 0.0, True),
    "dropout": lambda h: TF.dropout(h, 0.5, True, True),
    "init": lambda h: nn.init.normal_(h),
    "add_": lambda h: h.add_(1),
}


@pytest.mark.parametrize("name", WRITES)
def test_a_write_without_gradients(name):
    def middle(h):
        h = h * 2
        out = h.repeat(1, 2)
        with torch.no_grad():
            WRITES[name](h)
        return out

    agrees(middle, width=16)
