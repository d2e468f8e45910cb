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


def agrees(middle, width=8, verify=True):
    torch.manual_seed(0)
    theirs = Net(middle, width).double()
    ours = convert(copy.deepcopy(theirs), verify=verify)
    x = torch.randn(4, 8, dtype=torch.float64)
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


def twice_conjugated(h):
    s = torch.complex(h[:, :4], h[:, 4:]) * 1
    negative = s.conj()
    return torch.view_as_real(torch.cat([s, negative.conj(), negative], 1)).flatten(1)


def conjugated_and_back(h):
    s = torch.complex(h[:, :4], h[:, 4:]) * 2
    return ((s @ s.mT) * (s.conj().conj() @ s.mT)).abs() @ h


def repeated_then_overwritten(h):
    s = torch.complex(h[:, :4], h[:, 4:])
    out = s.conj().repeat(1, 32).abs().view(4, -1, 8).square().sum(1)
    s.add_(1 + 2j)
    return out + s.real.sum(1, keepdim=True)


def beyond_a_slice(h):
    h = h.relu() * 1
    part = h[:, :7]
    part += 1
    return part.as_strided((4, 8), (8, 1))


def around_a_slice(h):
    h = h * 1
    part = h[:, ::2]
    part.mul_(2)
    return part.as_strided(h.shape, h.stride(), 0)


@pytest.mark.parametrize("verify", (True, False))
@pytest.mark.parametrize(
    "middle, width",
    [
        (twice_conjugated, 24),
        (conjugated_and_back, 8),
        (repeated_then_overwritten, 8),
        (beyond_a_slice, 8),
        (around_a_slice, 8),
    ],
)
def test_numbers_that_do_not_stand_in_memory_as_they_are(middle, width, verify):
    """Conjugated lazily, or in the gaps of what was written to."""
    agrees(middle, width, verify=verify)


class Phase(nn.Module):
    """Gives out the memory of a view that its own recipes read with the other sign."""

    def __init__(self):
        super().__init__()
        self.p, self.q = nn.Linear(6, 256), nn.Linear(6, 255)
        self.w, self.u = nn.Linear(512, 4), nn.Linear(256, 4)

    def forward(self, x):
        p, q = self.p(x), self.q(x)
        spectrum = torch.complex(p[:, :1], q[:, :1])
        phase = spectrum.conj().imag
        return self.w(torch.cat([p.relu(), phase, q.relu()], 1)) + self.u(p), spectrum


@pytest.mark.parametrize("verify", (True, False))
def test_a_negative_view_of_what_the_model_gives_out(verify):
    torch.manual_seed(0)
    theirs, x = Phase(), torch.randn(1000, 6)
    ours = convert(copy.deepcopy(theirs), verify=verify)
    for model in (ours, theirs):
        out, spectrum = model(x)
        (out.square().mean() + spectrum.abs().mean()).backward()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)


def test_a_function_that_replaces_torchs_and_calls_it(monkeypatch):
    """torch's function tells a mode of itself by its name, and so of the one that stands there now."""
    agrees(TF.relu)
    theirs = TF.relu
    monkeypatch.setattr(TF, "relu", lambda x, inplace=False: theirs(x) * 2)
    agrees(lambda h: TF.relu(h) + 1)


def test_a_function_that_is_replaced_changes_no_layer_of_ours(monkeypatch):
    """Its backward would be that of another function."""
    model = convert(Net(nn.Softplus(), 8))
    x = torch.randn(4, 8)
    before = model(x)
    for name in ("linear", "softplus"):
        theirs = getattr(TF, name)
        monkeypatch.setattr(TF, name, lambda *args, theirs=theirs: 2 * theirs(*args))
    assert torch.equal(model(x), before)


class Named(torch.Tensor):
    """A subclass that only wants to come out again."""


@pytest.mark.parametrize("keep", ["less", "all"])
def test_a_subclass_comes_out_of_a_converted_model(keep):
    torch.manual_seed(0)
    theirs = Net(nn.Sequential(nn.ReLU(), nn.LayerNorm(8), nn.Dropout(0.0)), 8)
    ours = convert(copy.deepcopy(theirs), keep=keep)
    found = []
    for model in (ours, theirs):
        x = torch.ones(4, 8).cumsum(1).as_subclass(Named).requires_grad_()
        out = model(x)
        assert type(out) is Named
        out.square().sum().backward()
        found.append([out, x.grad, *(p.grad for p in model.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_a_view_that_may_be_asked_nothing():
    """Of two views whose base is overwritten torch refuses to say what they come from."""

    def middle(h):
        part = h.chunk(2, 1)[-1]
        h.square_()
        part.double()
        return h

    agrees(middle)
