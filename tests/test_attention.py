"""Matrix product, embedding, attention: bit for bit as torch, and what no row can say."""

import copy
import itertools

import pytest
import torch
from ops_attention import _composed
from torch.nn import functional as TF

from manualnn import convert, functional, nn
from manualnn.functional.products import matmul
from manualnn.ops.attention import FlashAttention
from manualnn.ops.embedding import Embedding, sum_by_row

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
each_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
attention, attention_of_torch = (
    functional.scaled_dot_product_attention,
    TF.scaled_dot_product_attention,
)


def normal(*shape, dtype=torch.float32, grad=True):
    return torch.randn(*shape, dtype=dtype).requires_grad_(grad)


def results(function, tensors, options=None):
    """What comes out, then the gradients of all leaves that need one; None where none arrives."""
    leaves = [t.detach().clone().requires_grad_(t.requires_grad) for t in tensors]
    torch.manual_seed(1)
    out = function(*leaves, **(options or {}))
    outs = [t for t in out if t is not None] if isinstance(out, tuple) else [out]
    torch.manual_seed(2)
    loss = sum((t * torch.randn(t.shape, dtype=t.dtype)).sum() for t in outs)
    wrt = [t for t in leaves if t.requires_grad]
    wrt += list(function.parameters()) if isinstance(function, torch.nn.Module) else []
    return [t.detach() for t in outs], torch.autograd.grad(loss, wrt, allow_unused=True)


def assert_same_bits(ours, theirs):
    for mine, other in zip((*ours[0], *ours[1]), (*theirs[0], *theirs[1]), strict=True):
        assert (mine is None) == (other is None)
        if mine is not None:
            assert mine.dtype == other.dtype
            assert torch.equal(mine.isnan(), other.isnan())
            assert torch.equal(mine.nan_to_num(), other.nan_to_num())


def kept(function, tensors):
    """Bytes that the graph keeps, each storage once."""
    storages = {}

    def note(t):
        storages[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        out = function(*tensors)
    return sum(storages.values()), out


# --- the matrix product ------------------------------------------------------------------------

LAYOUTS = {
    "plain": lambda t: t,
    "turned": lambda t: t.mT.contiguous().mT if t.dim() > 1 else t,
    "strided": lambda t: torch.stack((t, t), -1)[..., 0],
    "swapped": lambda t: t.transpose(0, 1).contiguous().transpose(0, 1) if t.dim() > 2 else t,
}
SHAPES = [
    ((5,), (5,)),
    ((4, 5), (5,)),
    ((5,), (5, 6)),
    ((40, 50), (50, 60)),
    ((3, 40, 50), (50, 60)),
    ((3, 40, 50), (50,)),
    ((50,), (3, 50, 60)),
    ((40, 50), (3, 50, 60)),
    ((3, 40, 50), (3, 50, 60)),
    ((1, 40, 50), (3, 50, 60)),
    ((3, 40, 50), (1, 50, 60)),
    ((2, 1, 4, 5), (3, 5, 6)),
    ((3, 5), (2, 3, 5, 6)),
    ((0, 4, 5), (5, 6)),
]


@each_dtype
@pytest.mark.parametrize("shapes", SHAPES, ids=str)
def test_product_bit_for_bit(shapes, dtype):
    for left, right in itertools.product(LAYOUTS.values(), LAYOUTS.values()):
        for needs in ((True, True), (True, False), (False, True)):
            A, B = (
                left(torch.randn(shapes[0], dtype=dtype)),
                right(torch.randn(shapes[1], dtype=dtype)),
            )
            pairs = [
                [t.detach().requires_grad_(n) for t, n in zip((A, B), needs, strict=True)]
                for _ in "xy"
            ]
            C, C_torch = matmul(*pairs[0]), torch.matmul(*pairs[1])
            assert torch.equal(C, C_torch) and C.stride() == C_torch.stride()
            dC = torch.randn(C.shape, dtype=dtype)
            ours, theirs = (
                torch.autograd.grad(out, [t for t in given if t.requires_grad], dC)
                for out, given in zip((C, C_torch), pairs, strict=True)
            )
            for mine, other in zip(ours, theirs, strict=True):
                assert torch.equal(mine, other) and mine.stride() == other.stride()


def test_product_keeps_strided_operands_without_copies():
    pack = normal(2, 50, 3, 4, 8)
    q, k, _ = pack.permute(2, 0, 3, 1, 4).unbind(0)
    ours, C = kept(matmul, (q, k.mT))
    theirs, C_torch = kept(torch.matmul, (q, k.mT))
    assert ours == pack.untyped_storage().nbytes()
    assert theirs == q.numel() * 4 * 2  # copies of both
    del C, C_torch


# --- attention ---------------------------------------------------------------------------------


@each_dtype
@pytest.mark.parametrize("p", [0.0, 0.3])
@pytest.mark.parametrize(
    "shapes",
    [
        ((2, 3, 50, 16), (2, 3, 33, 16)),
        ((3, 50, 16), (3, 33, 16)),
        ((50, 16), (33, 16)),
        ((2, 2, 3, 5, 8), (2, 2, 3, 7, 8)),
        ((2, 1, 5, 8), (2, 3, 7, 8)),
        ((1, 5, 8), (3, 7, 8)),
        ((5, 8), (2, 3, 7, 8)),
    ],
    ids=str,
)
def test_attention_bit_for_bit(shapes, p, dtype):
    of_q, of_k = shapes
    q, k, v = normal(*of_q, dtype=dtype), normal(*of_k, dtype=dtype), normal(*of_k, dtype=dtype)
    mask = torch.randn(of_q[-2], of_k[-2], dtype=dtype)
    truths = mask > -1
    truths[0] = False  # a query without any key: 0 from torch, not NaN
    infinite = mask.clone()
    infinite[1] = float("-inf")
    for M in (None, mask, truths, infinite, mask.clone().requires_grad_()):
        given = (q, k, v) if M is None else (q, k, v, M)
        for options in ({}, {"scale": 0.3}, {"scale": -0.3}):
            options = {**options, "dropout_p": p}
            mine, other = (results(f, given, options) for f in (attention, attention_of_torch))
            assert_same_bits(mine, other)
    options = {"dropout_p": p, "is_causal": True}
    assert_same_bits(*(results(f, (q, k, v), options) for f in (attention, attention_of_torch)))
    for needs in ((True, False, False), (False, True, False), (False, False, True)):
        given = [t.detach().requires_grad_(n) for t, n in zip((q, k, v), needs, strict=True)]
        mine, other = (results(f, given, {"dropout_p": p}) for f in (attention, attention_of_torch))
        assert_same_bits(mine, other)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("p", [0.0, 0.3])
def test_attention_in_low_precision_bit_for_bit(dtype, p):
    given = [normal(2, 3, n, 16, dtype=dtype) for n in (9, 7, 7)]
    mine, other = (results(f, given, {"dropout_p": p}) for f in (attention, attention_of_torch))
    assert_same_bits(mine, other)


@each_dtype
@pytest.mark.parametrize("p", [0.0, 0.3])
def test_shared_heads_bit_for_bit(p, dtype):
    given = [normal(2, h, n, 16, dtype=dtype) for h, n in ((6, 9), (3, 7), (2, 7))]
    options = {"dropout_p": p, "enable_gqa": True}
    assert_same_bits(*(results(f, given, options) for f in (attention, attention_of_torch)))


def test_the_kernel_is_taken_where_torch_takes_it():
    def node(function, *given, **options):
        return function(*given, **options).grad_fn.name()

    q, k, v = (normal(2, 3, n, 8) for n in (4, 5, 5))
    taken = "ScaledDotProductFlashAttentionForCpuBackward0"
    masks = [
        None,
        torch.randn(4, 5),
        torch.rand(4, 5) > 0.5,
        torch.randn(2, 1, 1, 5),
        torch.randn(3, 4, 5),
    ]
    for M in [*masks, normal(4, 5)]:
        for options in ({}, {"dropout_p": 0.1}, {"scale": -1.0}):
            flash = node(attention, q, k, v, M, **options) == "FlashAttentionBackward"
            assert flash == (node(attention_of_torch, q, k, v, M, **options) == taken)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        assert node(attention, q, k, v) == "AttentionBackward"


@pytest.mark.parametrize("options", [{}, {"is_causal": True}, {"scale": 0.7}], ids=str)
def test_the_kernel_computes_the_formula(options):
    given = [normal(2, 4, n, 8, dtype=torch.float64) for n in (5, 6, 6)]
    q, k, v = given
    o = FlashAttention.apply(q, k, v, None, options.get("is_causal", False), options.get("scale"))[
        0
    ]
    torch.testing.assert_close(o, _composed(q, k, v, **options), rtol=1e-12, atol=1e-12)
    do = torch.randn_like(o)
    kernel = torch.autograd.grad(o, given, do, retain_graph=True)
    formula = torch.autograd.grad(o, given, do, create_graph=True)
    truth = torch.autograd.grad(_composed(q, k, v, **options), given, do)
    for one, other, true in zip(kernel, formula, truth, strict=True):
        assert not one.requires_grad and other.requires_grad
        torch.testing.assert_close(one, true, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(other, true, rtol=1e-12, atol=1e-12)


def test_a_causal_mask_with_a_negative_scale():
    """torch's kernel multiplies the −∞ of its mask with the scale: NaN. The formula has no such trouble."""
    given = [normal(2, 1, 3, 4, dtype=torch.float64) for _ in range(3)]
    options = {"is_causal": True, "scale": -0.4}
    assert attention_of_torch(*given, **options).isnan().any()
    torch.testing.assert_close(attention(*given, **options), _composed(*given, **options))


def test_dropout_keeps_a_bit_an_element():
    q, k, v = (normal(2, 4, 64, 16) for _ in range(3))
    ours, o = kept(lambda *t: attention(*t, dropout_p=0.2), (q, k, v))
    weights = 2 * 4 * 64 * 64
    assert ours == 3 * q.numel() * 4 + weights * 4 + weights // 8
    theirs, o_torch = kept(lambda *t: attention_of_torch(*t, dropout_p=0.2), (q, k, v))
    assert (
        theirs == ours + 8 * weights - weights // 8
    )  # the mask in numbers, and the weights times it
    del o, o_torch


BAD = {
    "dtypes": lambda: attention_arguments(k=torch.randn(2, 3, 5, 8, dtype=torch.float64)),
    "vector": lambda: attention_arguments(q=torch.randn(8)),
    "lengths": lambda: attention_arguments(v=torch.randn(2, 3, 6, 8), dropout_p=0.1),
    "widths": lambda: attention_arguments(k=torch.randn(2, 3, 5, 7)),
    "mask and causal": lambda: attention_arguments(attn_mask=torch.randn(4, 5), is_causal=True),
    "mask's dtype": lambda: attention_arguments(attn_mask=torch.ones(4, 5).int()),
    "mask's shape": lambda: attention_arguments(attn_mask=torch.randn(4, 6), dropout_p=0.1),
    "wide mask": lambda: attention_arguments(attn_mask=torch.randn(2, 2, 3, 4, 5)),
    "probability": lambda: attention_arguments(dropout_p=1.2),
    "heads": lambda: attention_arguments(k=torch.randn(2, 2, 5, 8), enable_gqa=True),
}


def attention_arguments(q=None, k=None, v=None, **options):
    made = [torch.randn(2, 3, n, 8) if t is None else t for t, n in ((q, 4), (k, 5), (v, 5))]
    return made, options


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD.keys())
def test_bad_input_is_refused_in_torchs_words(bad):
    given, options = bad()
    with pytest.raises(Exception) as theirs:
        attention_of_torch(*given, **options)
    with pytest.raises(type(theirs.value)) as ours:
        attention(*given, **options)
    assert str(ours.value) == str(theirs.value)


@pytest.mark.parametrize("length", [4, 6])
def test_keys_and_values_of_two_lengths_are_refused(length):
    """torch's kernel reads as many values as there are keys, beyond the end if there are fewer."""
    given, _ = attention_arguments(v=torch.randn(2, 3, length, 8))
    with pytest.raises(RuntimeError, match="Expected size for first two dimensions of batch2"):
        attention(*given)


# --- multi-head attention ----------------------------------------------------------------------


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


# --- embedding ---------------------------------------------------------------------------------


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
    kernel = torch.ops.aten.embedding_backward(da, i, 5, padding_idx, *options)
    formula = sum_by_row(da, i, 5, padding_idx, *options)
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
        make, sources = Embedding.again(inputs, outputs)
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
