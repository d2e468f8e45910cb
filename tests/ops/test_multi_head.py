"""Multi-head attention: bit for bit as torch, in every arrangement that torch's module takes."""

import copy

import pytest
import torch
from bits import assert_same_bits, kept, normal, results
from torch.nn import functional as TF

from manualnn import convert, functional, nn

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
each_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)


def twins(dtype, training=True, **options):
    options = {"embed_dim": 8, "num_heads": 2, "dtype": dtype, **options}
    ours, theirs = nn.MultiheadAttention(**options), torch.nn.MultiheadAttention(**options)
    with torch.no_grad():
        for p in theirs.parameters():
            p.normal_(std=0.3)
    ours.load_state_dict(theirs.state_dict())
    return ours.train(training), theirs.train(training)


MODULES = [
    {},
    {"batch_first": True},
    {"bias": False, "batch_first": True},
    {"dropout": 0.3},
    {"dropout": 1.0},
    {"add_bias_kv": True, "batch_first": True},
    {"add_zero_attn": True, "dropout": 0.3},
    {"add_zero_attn": True, "add_bias_kv": True, "batch_first": True},
]


class Shared(torch.nn.Module):
    """The module given some of its tensors more than once."""

    def __init__(self, module, which, **options):
        super().__init__()
        self.module, self.which, self.options = module, which, options

    def forward(self, *sources):
        return self.module(*(sources[i] for i in self.which), **self.options)


def masks(n, l, h, dtype):
    padding = torch.zeros(n, l, dtype=torch.bool)
    padding[0, -2:] = True
    truths = torch.ones(l, l, dtype=torch.bool).triu(1)
    nothing = truths.clone()
    nothing[1] = True  # a query without any key: NaN with weights
    numbers, each = torch.randn(l, l, dtype=dtype), torch.randn(n * h, l, l, dtype=dtype)
    yield {"key_padding_mask": padding}
    yield {"attn_mask": truths}
    yield {"attn_mask": nothing}
    yield {"attn_mask": truths, "is_causal": True}
    yield {"attn_mask": truths, "is_causal": True, "key_padding_mask": padding}
    yield {"attn_mask": numbers, "average_attn_weights": False}
    yield {"attn_mask": each, "key_padding_mask": padding}
    yield {"key_padding_mask": torch.randn(n, l, dtype=dtype)}


@each_dtype
@pytest.mark.parametrize("weights", [True, False], ids=["weights", "output"])
@pytest.mark.parametrize("options", MODULES, ids=str)
def test_multi_head_bit_for_bit(options, weights, dtype):
    n, l, t = 2, 6, 5
    ours, theirs = twins(dtype, **options)

    def source(length, width=8):
        first = options.get("batch_first")
        return normal(*((n, length) if first else (length, n)), width, dtype=dtype)

    def compare(ours, theirs, which, given, **more):
        pair = (Shared(m, which, need_weights=weights, **more) for m in (ours, theirs))
        assert_same_bits(*(results(m, given) for m in pair))

    for which in ((0, 0, 0), (0, 1, 1), (0, 1, 2), (1, 1, 2)):
        compare(ours, theirs, which, [source(l), source(t), source(t)][: max(which) + 1])
    for mask in masks(n, l, 2, dtype):
        compare(ours, theirs, (0, 0, 0), [source(l)], **mask)
    alone = [normal(l, 8, dtype=dtype)]
    compare(ours, theirs, (0, 0, 0), alone, attn_mask=torch.randn(2, l, l, dtype=dtype))
    others = twins(dtype, kdim=3, vdim=4, **options)
    compare(*others, (0, 1, 2), [source(l), source(t, 3), source(t, 4)])


@each_dtype
def test_static_keys_bit_for_bit(dtype):
    _, module = twins(dtype)
    x, static = normal(5, 3, 8, dtype=dtype), [normal(6, 7, 4, dtype=dtype) for _ in "kv"]
    parameters = (
        module.in_proj_weight,
        module.in_proj_bias,
        module.out_proj.weight,
        module.out_proj.bias,
    )

    def call(function, need_weights):
        return lambda x, k, v, W, b, *out: function(
            x, x, x, 8, 2, W, b, None, None, False, 0.0, *out, static_k=k, static_v=v, need_weights=need_weights
        )  # fmt: skip

    for need_weights in (True, False):
        both = (functional.multi_head_attention_forward, TF.multi_head_attention_forward)
        given = (x, *static, *parameters)
        assert_same_bits(*(results(call(f, need_weights), given) for f in both))


def test_multi_head_keeps_one_projection_and_less_than_torch():
    n, l, e, h = 4, 50, 32, 4
    for need_weights in (True, False):
        ours, theirs = twins(torch.float32, embed_dim=e, num_heads=h, batch_first=True, dropout=0.1)
        x = normal(n, l, e)
        parameters = sum(
            p.untyped_storage().nbytes() for p in (ours.in_proj_weight, ours.out_proj.weight)
        )

        mine, z = kept(Shared(ours, (0, 0, 0), need_weights=need_weights), (x,))
        other, z_torch = kept(Shared(theirs, (0, 0, 0), need_weights=need_weights), (x,))
        weights = n * h * l * l
        # x, q k v, the output, the weights and a bit an element; what is mixed is made again.
        assert mine == parameters + 5 * x.numel() * 4 + weights * 4 + weights // 8
        assert other > mine + 2 * weights * 4
        del z, z_torch


@pytest.mark.parametrize("mask", [False, True])
def test_eval_agrees_with_torchs_fast_path(mask):
    ours, theirs = twins(torch.float32, training=False, batch_first=True)
    x, options = torch.randn(3, 5, 8), {}
    if mask:
        padding = torch.zeros(3, 5, dtype=torch.bool)
        padding[1, 3:] = True
        options = {"key_padding_mask": padding}
    with torch.no_grad():
        fast = theirs(x, x, x, **options)
        for got, want in zip(ours(x, x, x, **options), fast, strict=True):
            assert torch.equal(got, want)
    for got, want in zip(ours(x, x, x, **options), fast, strict=True):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("training", [True, False])
def test_inside_torchs_encoder(training):
    torch.manual_seed(0)
    layer = torch.nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True)
    theirs = torch.nn.TransformerEncoder(layer, 2).train(training)
    ours = convert(copy.deepcopy(theirs), strict=True)
    assert type(ours.layers[0].self_attn) is nn.MultiheadAttention
    x, padding = normal(3, 5, 8), torch.zeros(3, 5, dtype=torch.bool)
    padding[1, 3:] = True
    for options in ({}, {"src_key_padding_mask": padding}):
        mine, other = (results(m, [x], options) for m in (ours, theirs))
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)
        with torch.no_grad():
            torch.manual_seed(1)
            got = ours(x, **options)
            torch.manual_seed(1)
            torch.testing.assert_close(got, theirs(x, **options), rtol=1e-5, atol=1e-6)


def test_multi_head_refuses_in_torchs_words():
    ours, theirs = twins(torch.float32, batch_first=True)
    x = torch.randn(2, 5, 8)
    bad = [
        ((x[..., :7],) * 3, {}),
        ((x, x[0], x), {}),
        ((x[None],) * 3, {}),
        ((x, x, x[:, :4]), {}),
        ((x, x, x), {"is_causal": True}),
        ((x, x, x), {"attn_mask": torch.randn(4, 5)}),
        ((x, x, x), {"attn_mask": torch.randn(3, 5, 5)}),
        ((x, x, x), {"attn_mask": torch.randn(5)}),
        ((x, x, x), {"attn_mask": torch.ones(5, 5).int()}),
        ((x, x, x), {"key_padding_mask": torch.ones(2, 4).bool()}),
        ((x[0], x[0], x[0]), {"key_padding_mask": torch.ones(2, 5).bool()}),
    ]
    for given, options in bad:
        with pytest.raises(Exception) as wanted:
            theirs(*given, **options)
        with pytest.raises(type(wanted.value)) as got:
            ours(*given, **options)
        assert str(got.value) == str(wanted.value)


@pytest.mark.parametrize("which", ["xkx", "xxk", "xkk", "xxx", "kxk"])
@pytest.mark.parametrize("keep", ["less", "all"])
def test_a_source_that_is_read_twice_and_by_others(which, keep):
    """Its gradients are added in torch's order."""
    torch.manual_seed(0)
    theirs = torch.nn.MultiheadAttention(8, 2, batch_first=True)
    ours = convert(copy.deepcopy(theirs), keep=keep)
    found = []
    for model in (ours, theirs):
        torch.manual_seed(1)
        x, k = normal(4, 6, 8), normal(4, 6, 8)
        sources = [{"x": x, "k": k}[letter] for letter in which]
        z = model(*sources, need_weights=False)[0] + x * k
        z.square().sum().backward()
        found.append([z, x.grad, k.grad, *(p.grad for p in model.parameters())])
    assert all(map(torch.equal, *found))
