"""Dropout's own kernels: torch's bits, forward and backward, of every size; and when ATen serves."""

import functools

import kernel_cases
import pytest
import torch
from kernel_cases import Looks, need_every_kind

from manualnn import nn
from manualnn.autograd.masks import SMALL
from manualnn.kernels import build, masks, running
from manualnn.kernels.trust import same_bits

KINDS = ["Dropout", "AlphaDropout"]
each_kind = pytest.mark.parametrize("kind", KINDS)
SPECIAL = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, torch.nan, 1e-40, 3e38, -3e38])


@pytest.fixture(params=[1, 3])
def threads(request, monkeypatch):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    monkeypatch.setattr(running, "GRAIN", 1024)
    yield request.param
    torch.set_num_threads(before)


def drawn(size, seed):
    g = torch.Generator().manual_seed(seed)
    t = torch.randn(size, generator=g)
    t.view(-1)[torch.randint(t.numel(), (8,), generator=g)] = SPECIAL
    return t


def answers(monkeypatch, call):
    """Whether each question was answered by a kernel, forward and backward."""
    return kernel_cases.answers(monkeypatch, masks, ("and_pack", "by_bits"), call)


def trained(layer, z, da):
    torch.manual_seed(3)
    leaf = z.detach().requires_grad_()
    a = layer(leaf)
    a.backward(da)
    return a.detach(), leaf.grad


@need_every_kind
@each_kind
@pytest.mark.parametrize("p", [1e-8, 0.1, 0.5, 0.3333333, 0.999])
def test_torchs_bits(kind, p, threads, monkeypatch):
    for size in (SMALL, SMALL + 1, 5000, 9001, (7, 33, 41)):
        z, da = drawn(size, 1), drawn(size, 2)
        mine = []

        def run(z=z, da=da, mine=mine):
            mine.extend(trained(getattr(nn, kind)(p), z, da))

        assert answers(monkeypatch, run) == [True, True]
        theirs = trained(getattr(torch.nn, kind)(p), z, da)
        assert all(same_bits(a, b) for a, b in zip(mine, theirs, strict=True))
        monkeypatch.undo()
        monkeypatch.setattr(running, "LEAST", 0)


def under_a_mode(layer, z, da):
    with Looks():
        return trained(layer, z, da)


def under_autocast(layer, z, da):
    with torch.autocast("cpu"):
        return trained(layer, z, da)


def in_functional(layer, z, da):
    torch.manual_seed(3)
    return torch.func.vjp(layer, z)[1](da)


OTHERS = {
    "float64": lambda layer, z, da: trained(layer, z.double(), da.double()),
    "bfloat16": lambda layer, z, da: trained(layer, z.bfloat16(), da.bfloat16()),
    "strided": lambda layer, z, da: trained(layer, z.t(), da.t()),
    "small": lambda layer, z, da: trained(layer, z[:4, :4], da[:4, :4]),
    "a mode": under_a_mode,
}


@each_kind
@pytest.mark.parametrize("name", OTHERS)
def test_aten_serves(kind, name, monkeypatch):
    z, da = drawn((70, 90), 1), drawn((70, 90), 2)
    call = functools.partial(OTHERS[name], getattr(nn, kind)(0.3), z, da)
    assert not any(answers(monkeypatch, call))


@each_kind
@pytest.mark.parametrize("call", [under_autocast, in_functional])
def test_around_it_the_numbers_are_torchs(kind, call):
    z, da = drawn((70, 90), 1), drawn((70, 90), 2)
    mine, theirs = (call(getattr(of, kind)(0.3), z, da) for of in (nn, torch.nn))
    assert all(same_bits(a, b) for a, b in zip(mine, theirs, strict=True))


def test_whole_channels_are_atens(monkeypatch):
    z = drawn((80, 70, 3, 2), 1)
    mine, theirs = (trained(of.Dropout2d(0.4), z, z) for of in (nn, torch.nn))
    assert all(same_bits(a, b) for a, b in zip(mine, theirs, strict=True))
    assert not any(answers(monkeypatch, lambda: trained(nn.Dropout2d(0.4), z, z)))


@need_every_kind
def test_a_mask_of_another_size_is_refused():
    z = torch.ones(9000)
    how = masks.Masking(1.0)
    assert masks.by_bits(z, torch.zeros(1125, dtype=torch.uint8), how) is not None
    assert masks.by_bits(z, torch.zeros(1124, dtype=torch.uint8), how) is None
    assert masks.by_bits(z[:0], torch.zeros(0, dtype=torch.uint8), how) is None
    assert masks.and_pack(z, torch.ones(8999, dtype=torch.bool), how) is None
    assert masks.and_pack(z, torch.ones(9000), how) is None


FAULTS = {
    "the last eight": ("size - i < 8 ? size - i : 8", "size - i < 8 ? 0 : 8"),
    "the order of bits": ("0x8040201008040201ull) >> 56", "0x0102040810204080ull) >> 56"),
    "the other mask": ("mask[i] ? by.q : 0.0f;", "mask[i] ? 0.0f : by.q;"),
    "dropped without its sign": ("out[i] = z[i] * r;", "out[i] = mask[i] ? z[i] * r : 0.0f;"),
    "rounded once": ("out[i] = product + s;", "out[i] = __builtin_fmaf(z[i], r, s);"),
    "the shift of what is dropped": ("by.on : by.off, product", "by.on : by.on, product"),
}  # fmt: skip


@need_every_kind
@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_found_when_it_is_loaded(name, monkeypatch, tmp_path):
    right, wrong = FAULTS[name]
    text = masks._SOURCE.read_text()
    assert right in text
    file = tmp_path / "masks.c"
    file.write_text(text.replace(right, wrong))
    monkeypatch.setattr(masks, "_SOURCE", file)
    assert build.built(file.read_text()) is not None
    assert masks._loaded.__wrapped__() is None
    file.write_text(text)
    assert masks._loaded.__wrapped__() is not None


@each_kind
def test_strides_are_torchs(kind):
    """Of one channel they may say channels last while the numbers lie by rows."""
    z = torch.empty_strided((8, 1, 96, 96), (9216, 1, 96, 1)).copy_(drawn((8, 1, 96, 96), 1))
    mine, theirs = (trained(getattr(of, kind)(0.4), z, z) for of in (nn, torch.nn))
    for a, b in zip(mine, theirs, strict=True):
        assert same_bits(a, b)
        assert a.stride() == b.stride()
