"""A block between two products, in which one thing happens: run converted and not, and compared bit by bit."""

import copy

import torch
from torch import nn

from manualnn import convert


class Block(nn.Module):
    """linear, norm, ``middle(self, h)``, linear"""

    def __init__(self, middle, norm=True):
        super().__init__()
        self.first, self.last, self.middle = nn.Linear(6, 16), nn.Linear(16, 3), middle
        self.norm = nn.BatchNorm1d(16) if norm else nn.Identity()
        self.register_buffer("centre", torch.linspace(-1, 1, 16))
        self.register_buffer("number", torch.tensor(0.5))

    def forward(self, x):
        return self.last(self.middle(self, self.norm(self.first(x))))


def inputs(*shape, dtype=torch.float64):
    return torch.randn(*(shape or (12, 6)), dtype=dtype, generator=torch.Generator().manual_seed(1))


def run(model, x, between=None, calls=1):
    """The output, all gradients, and the buffers; or the error."""
    for _ in range(calls):
        torch.manual_seed(0)
        try:
            out = model(x)
            if between is not None:
                between(model, x)
            parameters = [p for p in model.parameters() if p.requires_grad]
            grads = torch.autograd.grad(out.square().sum(), parameters, allow_unused=True)
        except RuntimeError as error:
            return error
    return [out.detach(), *grads, *(b.clone() for b in model.buffers())]


def pair_of(model, keep="less", verify=True, dtype=torch.float64):
    torch.manual_seed(0)
    theirs = model() if isinstance(model, type) else model
    theirs = theirs.to(dtype).train()
    return convert(copy.deepcopy(theirs), keep=keep, verify=verify), theirs


def assert_same(model, x=None, between=None, calls=1, **how):
    """The converted model's numbers are torch's, to the last bit."""
    x = inputs() if x is None else x
    ours, theirs = pair_of(model, **how)
    mine, other = run(ours, x, between, calls), run(theirs, x, between, calls)
    assert not isinstance(other, Exception), other
    if isinstance(mine, Exception):
        raise mine
    for i, (a, b) in enumerate(zip(mine, other, strict=True)):
        assert (a is None and b is None) or torch.equal(a, b), f"{i}: {(a - b).abs().max():.3g} off"
