"""Calls inside forward in an unusual dress: by keyword, conjugated, in place without gradients."""

import copy
from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.nn import functional as TF
from torch.utils._pytree import tree_map

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


class Asked(torch.Tensor):
    """A subclass that is asked about each function."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        return super().__torch_function__(func, types, args, kwargs or {})


LAYERS = {
    "Conv2d": lambda: nn.Conv2d(2, 2, 1),
    "BatchNorm2d": lambda: nn.BatchNorm2d(2),
    "GroupNorm": lambda: nn.GroupNorm(2, 2),
    "LayerNorm": lambda: nn.LayerNorm(4),
    "GELU": nn.GELU,
    "MaxPool2d": lambda: nn.MaxPool2d(2),
    "Dropout": lambda: nn.Dropout(0.4),
    "Linear": lambda: nn.Linear(4, 4),
}
WRITTEN = {
    "ReLU(inplace)": nn.ReLU(inplace=True),
    "SiLU(inplace)": nn.SiLU(inplace=True),
    "add_": lambda h: h.add_(1.0),
    "an element": lambda h: h.__setitem__(0, 0.0) or h,
}


@pytest.mark.parametrize("way", ["less", "all", "a part alone", "other hooks", "a parameter"])
@pytest.mark.parametrize("kind", [Named, Asked])
@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
def test_what_comes_out_as_a_subclass_can_be_written_over(layer, kind, way):
    torch.manual_seed(0)
    theirs = nn.Sequential(nn.Conv2d(2, 2, 1), layer())
    if way == "a parameter":
        theirs[0].weight.data = theirs[0].weight.data.as_subclass(kind)
    ours = convert(copy.deepcopy(theirs), keep="all" if way == "all" else "less")
    for write in WRITTEN.values():
        found = []
        for model in (ours, theirs):
            torch.manual_seed(1)
            x = torch.randn(3, 2, 4, 4)
            x = (x if way == "a parameter" else x.as_subclass(kind)).requires_grad_()
            keeping = torch.autograd.graph.save_on_cpu if way == "other hooks" else nullcontext
            with keeping():
                h = model[1](model[0](x)) if way == "a part alone" else model(x)
                out = write(h)
            out.square().sum().backward()
            found.append([out, x.grad, *(p.grad for p in model.parameters())])
        assert type(found[0][0]) is type(found[1][0])
        for a, b in zip(*found, strict=True):
            assert torch.equal(a.as_subclass(torch.Tensor), b.as_subclass(torch.Tensor))


class Wrapper(torch.Tensor):
    """Holds another tensor and has no memory of its own, as a DTensor."""

    @staticmethod
    def __new__(cls, t):
        made = torch.Tensor._make_wrapper_subclass(
            cls, t.shape, dtype=t.dtype, requires_grad=t.requires_grad, strides=t.stride()
        )
        made.held = t
        return made

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        def inside(t):
            return t.held if isinstance(t, Wrapper) else t

        out = func(*tree_map(inside, args), **tree_map(inside, kwargs or {}))
        return tree_map(lambda t: Wrapper(t) if isinstance(t, torch.Tensor) else t, out)


@pytest.mark.parametrize("keep", ["less", "all"])
@pytest.mark.parametrize(
    "act", ["ReLU", "LeakyReLU", "ELU", "SiLU", "Hardswish", "Mish", "Dropout", "Threshold"]
)
def test_a_tensor_without_memory_of_its_own(act, keep):
    options = {"Threshold": (0.1, 0.2)}.get(act, ())
    torch.manual_seed(0)
    theirs = nn.Sequential(nn.Linear(4, 4), getattr(nn, act)(*options, inplace=True))
    ours = convert(copy.deepcopy(theirs), keep=keep)
    found = []
    for model in (ours, theirs):
        torch.manual_seed(1)
        x = Wrapper(torch.randn(3, 4)).requires_grad_()
        out = model(x)
        out.sum().backward()
        found.append((out.held, x.grad.held))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_a_view_that_may_be_asked_nothing():
    """Of two views whose base is overwritten torch refuses to say what they come from."""

    def middle(h):
        part = h.chunk(2, 1)[-1]
        h.square_()
        part.double()
        return h

    agrees(middle)
