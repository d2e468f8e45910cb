"""Tensors that are worked through block by block, and masks that are kept as bits."""

import pytest
import torch

from manualnn import functional as ours
from manualnn.autograd.bits import pack, unpack
from manualnn.autograd.blockwise import BLOCK, evaluate

theirs = torch.nn.functional
# Those whose derivative has no one-pass kernel in torch: they go block by block.
FORMULAS = ["softsign", "tanhshrink", "logsigmoid"]
N = 4 * BLOCK
LAYOUTS = {
    "contiguous": lambda: torch.randn(64, N // 64 + 1),
    "one dimension": lambda: torch.randn(N + 3),
    "transposed": lambda: torch.randn(N // 64 + 1, 64).t(),
    "channels_last": lambda: torch.randn(8, 4, N // 1024, 33).contiguous(
        memory_format=torch.channels_last
    ),
    "strided": lambda: torch.randn(64, N // 64 + 1, 2)[..., 0],
    "expanded": lambda: torch.randn(1, N // 64 + 1).expand(64, -1),
    "one row": lambda: torch.randn(1, N + 1),
    "one column": lambda: torch.randn(N + 1, 1),
}


def result(function, z, d):
    z = z.detach().requires_grad_()
    a = function(z)
    return a, *torch.autograd.grad(a, z, d)


@pytest.mark.parametrize("name", FORMULAS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("gradient", ["expanded", "contiguous"])
def test_block_by_block(name, layout, dtype, gradient):
    torch.manual_seed(0)
    z = LAYOUTS[layout]().mul(3).to(dtype)
    d = torch.ones((), dtype=dtype).expand(z.shape)
    if gradient == "contiguous":
        d = torch.randn(z.shape, dtype=dtype)
    mine, other = result(getattr(ours, name), z, d), result(getattr(theirs, name), z, d)
    exact = result(getattr(theirs, name), z.double(), d.double())
    for a, b, true in zip(mine, other, exact, strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        error, their_error = (a - true).abs().max(), (b - true).abs().max()
        assert error <= their_error + torch.finfo(dtype).eps * true.abs().max()


@pytest.mark.parametrize("count", [0, 1, N - 1, N, N + 1, N + BLOCK - 1])
def test_no_block_is_left_out(count):
    z = torch.arange(count, dtype=torch.float64)
    with torch.no_grad():
        assert torch.equal(evaluate(lambda t: t + 1, z), z + 1)


def test_the_formula_sees_blocks():
    sizes = []
    with torch.no_grad():
        evaluate(lambda t: (sizes.append(t.numel()), t)[1], torch.zeros(N + 5))
    assert max(sizes) <= BLOCK and sum(sizes) == N + 5


@pytest.mark.parametrize("count", [*range(18), 4095, 4096, 4097])
def test_bits(count):
    torch.manual_seed(count)
    mask = torch.rand(count) < 0.5
    bits = pack(mask)
    assert bits.dtype is torch.uint8 and bits.numel() == (count + 7) // 8
    assert torch.equal(unpack(bits, mask.shape), mask)


def test_bits_of_a_strided_mask():
    mask = (torch.rand(70, 90) < 0.5).t()
    assert torch.equal(unpack(pack(mask), mask.shape), mask)


@pytest.mark.parametrize("count", [4095, 4096, 4097])
def test_dropout_keeps_bits_from_4096_elements_on(count):
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(t), t)[1], lambda t: t):
        ours.dropout(torch.randn(count, requires_grad=True))
    assert [t.numel() for t in kept] == [count if count < 4096 else (count + 7) // 8]
