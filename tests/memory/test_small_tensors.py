"""An op whose tensors are small is left to autograd: to keep their books takes longer than they are worth."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import manualnn
from manualnn.kernels.trust import same_bits
from manualnn.memory import recorder


class Shrinking(nn.Module):
    """Tensors of 32 KiB down to 512 bytes, and up again: with skips, gates, writes, views and dropout."""

    def __init__(self):
        super().__init__()
        self.down = nn.ModuleList(nn.Conv2d(8, 8, 3, stride=2, padding=1) for _ in range(3))
        self.norms = nn.ModuleList(nn.BatchNorm2d(8) for _ in range(3))
        self.gate = nn.Linear(8, 8)
        self.up = nn.ModuleList(nn.Conv2d(16, 8, 3, padding=1) for _ in range(3))
        self.act, self.drop = nn.SiLU(inplace=True), nn.Dropout(0.3)

    def forward(self, x):
        seen = []
        for i, (conv, norm) in enumerate(zip(self.down, self.norms, strict=True)):
            seen.append(x)
            x = self.act(norm(conv(x)))
            if i == 1:
                x += 0.5
            x = x * torch.sigmoid(self.gate(x.mean((2, 3))))[:, :, None, None]
        for conv in self.up:
            x = F.interpolate(x, scale_factor=2)
            x = self.drop(F.relu(conv(torch.cat([x, seen.pop()], 1)), inplace=True))
            first, second = x.chunk(2, 1)
            x = torch.cat([first + second, first * second], 1)
        return x


def results(model, x, steps=2):
    found = []
    for step in range(steps):
        torch.manual_seed(step)
        leaf = x.clone().requires_grad_()
        y = model(leaf)
        y.square().mean().backward()
        found += [y, leaf.grad, *(p.grad.clone() for p in model.parameters())]
        model.zero_grad()
    return found


@pytest.mark.parametrize("least", [0, 600, 3000, 10_000, 40_000, 1 << 30])
@pytest.mark.parametrize("verify", [True, "full"])
def test_torchs_bits_wherever_the_border_lies(least, verify, monkeypatch):
    monkeypatch.setattr(recorder, "LEAST", least)
    torch.manual_seed(0)
    theirs, x = Shrinking(), torch.randn(4, 8, 16, 16)
    torch.manual_seed(0)
    ours = manualnn.convert(Shrinking(), verify=verify)
    assert all(map(same_bits, results(ours, x), results(theirs, x)))


def test_small_ones_have_no_recipe_and_large_ones_have(monkeypatch):
    monkeypatch.setattr(recorder, "LEAST", 1 << 17)
    recipes = []
    set_recipe = recorder.Recorder.set_recipe
    monkeypatch.setattr(
        recorder.Recorder,
        "set_recipe",
        lambda self, t, *args, **named: (
            recipes.append(t.shape) or set_recipe(self, t, *args, **named)
        ),
    )
    model = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1))
    manualnn.convert(model)
    model(torch.randn(2, 4, 64, 64))  # 128 KiB
    assert recipes == []
    model(torch.randn(3, 4, 64, 64))
    assert recipes == [(3, 4, 64, 64)] * 2


def test_the_border_says_what_is_saved(monkeypatch):
    x = torch.randn(4, 8, 16, 16)
    saved = []
    for least in (0, 3000, 1 << 30):
        monkeypatch.setattr(recorder, "LEAST", least)
        report = manualnn.ledger(Shrinking(), x)
        saved.append(report.total)
    assert saved[0] < saved[1] < saved[2] <= report.torch_total


def test_a_large_one_made_of_small_ones_has_its_recipe(monkeypatch):
    """Else each concatenation of a dense block would be saved."""
    monkeypatch.setattr(recorder, "LEAST", 8192)

    class Dense(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(4, 8, 1)
            self.layers = nn.ModuleList(nn.Conv2d(8 * (i + 1), 8, 1) for i in range(12))

        def forward(self, x):
            pieces = [self.stem(x)]
            for layer in self.layers:
                pieces.append(layer(torch.cat(pieces, 1)))  # each of 8192 bytes
            return pieces[-1]

    x = torch.randn(4, 4, 8, 8)
    report = manualnn.ledger(Dense(), x)
    assert report.total < 20 * 8192 < report.torch_total


def test_a_small_part_of_a_large_one_does_not_keep_it(monkeypatch):
    """As the head of a vision transformer reads one of many tokens."""
    monkeypatch.setattr(recorder, "LEAST", 4096)

    class Head(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.head = nn.Linear(16, 16), nn.Linear(16, 4)

        def forward(self, x):
            return self.head((torch.tanh(self.first(x)) * 2)[:, 0])

    x = torch.randn(8, 100, 16)
    report = manualnn.ledger(Head(), x)
    assert report.total < 1.2 * 4 * x.numel() < report.torch_total


def test_a_write_over_a_small_one_is_seen(monkeypatch):
    """As torch, what was saved and then overwritten is refused."""
    monkeypatch.setattr(recorder, "LEAST", 1 << 17)

    class Writes(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(8, 8)

        def forward(self, x):
            a = torch.tanh(self.linear(x))
            b = a * 2
            a.add_(1)
            return a + b

    for model in (Writes(), manualnn.convert(Writes())):
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            model(torch.randn(4, 8)).sum().backward()


def test_a_large_one_written_over_that_a_small_view_was_taken_of(monkeypatch):
    monkeypatch.setattr(recorder, "LEAST", 3000)

    class Views(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)

        def forward(self, x):
            a = F.relu(self.first(x))
            part = a[:1, :2]
            s = F.silu(part)  # small, and saves a part of the large one
            b = a * 2
            a.mul_(3)
            return self.second(b) + s.mean() + a

    torch.manual_seed(0)
    x = torch.randn(4, 8, 16, 16)

    def outcome(model):
        try:
            return results(model, x, 1)
        except RuntimeError as error:
            return str(error).partition(":")[0]

    torch.manual_seed(1)
    theirs = outcome(Views())
    torch.manual_seed(1)
    ours = outcome(manualnn.convert(Views()))
    assert ours == theirs if isinstance(theirs, str) else all(map(same_bits, ours, theirs))
