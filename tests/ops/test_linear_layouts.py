"""Linear of inputs, weights and incoming gradients in every layout: bit for bit as torch.

How torch groups the rows into products decides how they are rounded, and depends on strides.
"""

import itertools

import pytest
import torch
from torch.nn import functional as TF

from manualnn import functional

SHAPES = [(5,), (5, 2), (1, 5), (5, 1), (3, 2, 5), (2, 1, 3, 2)]


def layouts(shape, i, dtype):
    """One input in all orders of its dimensions, in steps, and expanded."""
    shape = (*shape, i)
    for order in itertools.permutations(range(len(shape))) if len(shape) < 5 else ():
        x = torch.randn([shape[k] for k in order], dtype=dtype)
        yield x.permute([order.index(k) for k in range(len(shape))])
    yield torch.randn(*shape[:-1], 2 * i, dtype=dtype)[..., ::2]
    yield torch.randn(1, *shape[1:], dtype=dtype).expand(shape)


def incoming(z):
    """Gradients of z: contiguous, all dimensions reversed, the first two exchanged."""
    yield torch.randn_like(z)
    yield torch.randn(z.shape[::-1], dtype=z.dtype).permute(*reversed(range(z.dim())))
    yield torch.randn_like(z.transpose(0, 1).contiguous()).transpose(0, 1)


def results(linear, x, W, b, needed, gradients):
    leaves = [t.detach().requires_grad_(need) for t, need in zip((x, W), needed, strict=True)]
    z = linear(*leaves, b)
    wrt = [t for t in leaves if t.requires_grad]
    return [z, *(g for dz in gradients for g in torch.autograd.grad(z, wrt, dz, retain_graph=True))]


@pytest.mark.parametrize("needed", [(True, True), (True, False), (False, True)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("i, o", [(3, 8), (8, 3), (5, 5)])
def test_every_layout_bit_for_bit(i, o, dtype, needed):
    W, b = torch.randn(o, i, dtype=dtype), torch.randn(o, dtype=dtype)
    for x in itertools.chain.from_iterable(layouts(shape, i, dtype) for shape in SHAPES):
        for weight, bias in ((W, b), (W, None), (W.t().contiguous().t(), b)):
            gradients = list(incoming(TF.linear(x, weight, bias)))
            both = [
                results(f, x, weight, bias, needed, gradients)
                for f in (functional.linear, TF.linear)
            ]
            for ours, theirs in zip(*both, strict=True):
                assert torch.equal(ours, theirs), (x.shape, x.stride(), weight.stride())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64], ids=str)
@pytest.mark.parametrize("i", [4, 16, 100, 10_000])
@pytest.mark.parametrize("shape", [(), (3,), (2, 3)], ids=str)
def test_a_weight_that_is_a_vector(shape, i, dtype):
    """torch adds up in another order than for a matrix of one row."""
    torch.manual_seed(0)
    x, w = torch.randn(*shape, i, dtype=dtype), torch.randn(i, dtype=dtype)
    dz = torch.randn(shape, dtype=dtype)
    ours, theirs = (
        results(linear, x, w, None, (True, True), [dz]) for linear in (functional.linear, TF.linear)
    )
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
