"""Embedding: bit for bit as torch, and what no row can say."""

import pytest
import torch
from battery import formula_and_kernel
from bits import kept, normal
from torch.nn import functional as TF

from manualnn import functional, nn
from manualnn.ops.embeddings import Embedding

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
each_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)


@each_dtype
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"padding_idx": 2},
        {"padding_idx": -1},
        {"scale_grad_by_freq": True},
        {"max_norm": 0.7},
        {"max_norm": 0.7, "norm_type": 1.0},
        {"sparse": True},
        {"sparse": True, "padding_idx": 2},
    ],
    ids=str,
)
def test_embedding_bit_for_bit(options, dtype):
    i, W = torch.randint(0, 9, (40, 3)), torch.randn(9, 16, dtype=dtype)
    tables = [W.clone().requires_grad_() for _ in "xy"]
    both = [
        f(i, t, **options)
        for f, t in zip((functional.embedding, TF.embedding), tables, strict=True)
    ]
    assert torch.equal(*both) and torch.equal(*tables)
    da = torch.randn_like(both[0])
    ours, theirs = (torch.autograd.grad(a, t, da)[0] for a, t in zip(both, tables, strict=True))
    assert ours.layout == theirs.layout
    if ours.is_sparse:
        assert torch.equal(ours._indices(), theirs._indices())
        ours, theirs = ours._values(), theirs._values()
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("padding_idx", [-1, 2])
@pytest.mark.parametrize("options", [(False, False), (True, False), (False, True)])
def test_the_embedding_kernel_computes_the_formula(padding_idx, options):
    i, da = torch.randint(0, 5, (7, 2)), torch.randn(7, 2, 3, dtype=torch.float64)
    W = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    node = Embedding.apply(i, W, padding_idx, *options).grad_fn
    formula, kernel = (found[1] for found in formula_and_kernel(node, da))
    assert kernel.is_sparse == formula.is_sparse == options[1]
    if options[1]:
        kernel, formula = kernel.to_dense(), formula.to_dense()
    torch.testing.assert_close(kernel, formula, rtol=1e-12, atol=1e-12)


def test_embedding_is_made_again_and_keeps_only_indices():
    i, W = torch.randint(0, 50, (8, 3)), normal(50, 16)
    amount, a = kept(functional.embedding, (i, W))
    assert amount == i.untyped_storage().nbytes()
    for options in ((-1, False, False), (2, True, False), (-1, False, True)):
        inputs = (i, W.detach(), *options)
        outputs = (Embedding.forward(*inputs),)
        make, sources = Embedding.recompute(inputs, outputs)
        assert torch.equal(make(*sources), outputs[0])
        assert sources[1].data_ptr() == W.data_ptr()
    del a


def test_embedding_refuses_in_torchs_words():
    i, W = torch.tensor([0, 1]), torch.randn(3, 2)
    bad = [
        (i, W, {"padding_idx": 3}),
        (i, W, {"padding_idx": -4}),
        (i, W[0], {}),
        (i.float(), W, {}),
        (i + 3, W, {}),
        (i, W.requires_grad_(), {"sparse": True, "scale_grad_by_freq": True}),
    ]
    for indices, table, options in bad:
        with pytest.raises(Exception) as wanted:
            TF.embedding(indices, table, **options).sum().backward()
        with pytest.raises(type(wanted.value)) as got:
            functional.embedding(indices, table, **options).sum().backward()
        assert str(got.value) == str(wanted.value)


def test_from_pretrained():
    W = torch.randn(4, 3)
    ours = nn.Embedding.from_pretrained(W, freeze=False, padding_idx=1)
    assert type(ours) is nn.Embedding and ours.padding_idx == 1
    ours(torch.tensor([1, 2, 2])).sum().backward()
    assert ours.weight.grad.sum(1).tolist() == [0, 0, 6, 0]
    assert not nn.Embedding.from_pretrained(W).weight.requires_grad
