"""Matrix product and attention: bit for bit as torch, and what no row can say."""

import itertools

import pytest
import torch
from bits import assert_same_bits, kept, normal, results
from ops_examples import attention as composed
from torch.nn import functional as TF

from manualnn import functional
from manualnn.functional.products import matmul
from manualnn.ops.attention import FlashAttention

OLDER = tuple(map(int, torch.__version__.split(".")[:2])) < (2, 14)

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
each_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
attention = functional.scaled_dot_product_attention
attention_of_torch = TF.scaled_dot_product_attention


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


def twin(q, k, v, *mask, **options):
    """torch's; where 2.14 and later add a dimension to three, the older ones take products, to rounding."""
    if OLDER and q.dim() == k.dim() == 3:
        q, k, v = (t.unsqueeze(0) for t in (q, k, v))
        return attention_of_torch(q, k, v, *mask, **options).squeeze(0)
    return attention_of_torch(q, k, v, *mask, **options)


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
            mine, other = (results(f, given, options) for f in (attention, twin))
            assert_same_bits(mine, other)
    options = {"dropout_p": p, "is_causal": True}
    assert_same_bits(*(results(f, (q, k, v), options) for f in (attention, twin)))
    for needs in ((True, False, False), (False, True, False), (False, False, True)):
        given = [t.detach().requires_grad_(n) for t, n in zip((q, k, v), needs, strict=True)]
        mine, other = (results(f, given, {"dropout_p": p}) for f in (attention, twin))
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
        output = function(*given, **options)
        return output.grad_fn.name()

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
    torch.testing.assert_close(o, composed(q, k, v, **options), rtol=1e-12, atol=1e-12)
    do = torch.randn_like(o)
    kernel = torch.autograd.grad(o, given, do, retain_graph=True)
    formula = torch.autograd.grad(o, given, do, create_graph=True)
    truth = torch.autograd.grad(composed(q, k, v, **options), given, do)
    for one, other, true in zip(kernel, formula, truth, strict=True):
        assert not one.requires_grad and other.requires_grad
        torch.testing.assert_close(one, true, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(other, true, rtol=1e-12, atol=1e-12)


def test_a_causal_mask_with_a_negative_scale():
    """torch's kernel multiplies the −∞ of its mask with the scale: NaN. The formula has no such trouble."""
    given = [normal(2, 1, 3, 4, dtype=torch.float64) for _ in range(3)]
    options = {"is_causal": True, "scale": -0.4}
    assert attention_of_torch(*given, **options).isnan().any()
    torch.testing.assert_close(attention(*given, **options), composed(*given, **options))


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


if OLDER:  # there torch takes the two together; ours refuses them with every release
    del BAD["mask and causal"]


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


@pytest.mark.parametrize("dims", [2, 3])  # of four, torch raises an IndexError
@pytest.mark.parametrize("kind", ["bool", "float"])
def test_a_mask_of_keys_alone(dims, kind):
    q, k, v = (normal(*(2, 3)[: dims - 2], n, 8, dtype=torch.float64) for n in (3, 4, 4))
    mask = torch.tensor([True, True, False, True])
    mask = mask if kind == "bool" else mask.double() - 0.5
    found = []
    for f in (functional.scaled_dot_product_attention, TF.scaled_dot_product_attention):
        o = f(q, k, v, attn_mask=mask)
        found.append([o, *torch.autograd.grad(o.square().sum(), (q, k, v))])
    for a, b in zip(*found, strict=True):
        assert a.shape == b.shape and torch.allclose(a, b, rtol=1e-12, atol=1e-12)
