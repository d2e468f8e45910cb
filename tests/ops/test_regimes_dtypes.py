"""Dtypes, autocast, the meta device, inference mode, and what is refused: as torch's twins."""

from contextlib import nullcontext
from fnmatch import fnmatch

import pytest
import torch
from battery import call, differentiated, each_op, leaves, sample
from ops import OPS
from regimes_cases import (
    CASES,
    LOSSES,
    assert_same,
    blocks,
    each,
    each_case,
    first_line,
    incoming,
    network,
    same_outcome,
    step,
)
from torch.utils._python_dispatch import TorchDispatchMode

from manualnn import nn

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
each_low = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
WITH_PARAMETERS = [c for c in CASES if c.name in ("Linear", "PReLU", "MLP")]
WITHOUT_BFLOAT16 = ("AvgPool3d",)  # torch's own kernel on the CPU refuses it


# --- modules in a dtype ------------------------------------------------------------------------


@each_case
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_a_module_in_a_dtype(case, dtype):
    """Value and gradients no farther from float64's than torch's, and half a rounding."""
    mine, other = case.pair(dtype)
    _, exact = case.pair(dtype)
    exact = exact.double()
    tensors = case.sample(dtype=dtype)
    wide = [t.double() if t.is_floating_point() else t for t in tensors]
    both = same_outcome(lambda: step(mine, tensors), lambda: step(other, tensors))
    if both is None:
        assert dtype is torch.float16 or case.loss or case.name in WITHOUT_BFLOAT16
        return
    assert_same_types(*both)
    if dtype is torch.float64:
        assert_same(*both, case.close)
        return
    if case.random:  # the mask is of the same numbers in every dtype, rounded; torch is the measure
        torch.testing.assert_close(*both, rtol=4 * torch.finfo(dtype).eps, atol=0.05)
        return
    ulp = torch.finfo(dtype).eps
    for a, b, true in zip(*both, step(exact, wide), strict=True):
        # Rounding d_out is common to all three.
        error, their_error = (a - true).abs().max(), (b - true).abs().max()
        assert error <= 1.01 * their_error + ulp * true.abs().max()


def assert_same_types(mine, other):
    assert [(t.dtype, t.shape) for t in mine] == [(t.dtype, t.shape) for t in other]


@each(WITH_PARAMETERS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_constructed_in_a_dtype(case, dtype):
    args, kwargs = case.arguments()
    mine = getattr(nn, case.name)(*args, **kwargs, dtype=dtype)
    assert {p.dtype for p in mine.parameters()} == {dtype}
    out = mine(*case.sample(dtype=dtype))
    assert out.dtype is dtype


@each(WITH_PARAMETERS)
def test_a_wrong_dtype_is_refused_as_torch_does(case):
    mine, other = case.pair(torch.float32)
    for dtype in (torch.float64, torch.bfloat16, torch.int64):
        x = case.sample(dtype=torch.float64)[0].to(dtype)
        got = same_outcome(lambda x=x: mine(x), lambda x=x: other(x))
        assert got is None or got[0].dtype is got[1].dtype


# --- autocast ----------------------------------------------------------------------------------


def under_autocast(module, tensors, dtype, nested=None):
    """The dtype of the output, and the gradients; ``nested`` is a second region inside the first."""
    x, *rest = (t.detach().clone() for t in tensors)
    x.requires_grad_()
    torch.manual_seed(7)
    with torch.autocast("cpu", dtype):
        if nested is None:
            out = module(x, *rest)
        else:
            with torch.autocast("cpu", **nested):
                out = module(x, *rest)
            assert torch.is_autocast_enabled("cpu")
            assert torch.get_autocast_dtype("cpu") is dtype
    grads = torch.autograd.grad(out, [x, *module.parameters()], incoming(out))
    return out.detach(), *grads


@each_case
@each_low
def test_autocast_of_a_module(case, dtype):
    mine, other = case.pair(torch.float32)
    tensors = case.sample(dtype=torch.float32)
    ours, theirs = (under_autocast(m, tensors, dtype) for m in (mine, other))
    assert_same_types(ours, theirs)
    assert all(g.dtype is torch.float32 for g in ours[1:])
    torch.testing.assert_close(ours, theirs, rtol=0.02, atol=0.05)


NESTED = [
    {"enabled": False},
    {"dtype": torch.float16},
    {"dtype": torch.bfloat16},
]


@each([network([6, 5, 3], "ReLU"), network([6, 5, 3], "Softplus"), *WITH_PARAMETERS[:3], *LOSSES])
@pytest.mark.parametrize("nested", NESTED, ids=["disabled", "float16", "bfloat16"])
def test_nested_autocast(case, nested):
    mine, other = case.pair(torch.float32)
    tensors = case.sample(dtype=torch.float32)
    ours, theirs = (under_autocast(m, tensors, torch.bfloat16, nested) for m in (mine, other))
    assert_same_types(ours, theirs)
    close = 1e-6 if "enabled" in nested else 0.02
    torch.testing.assert_close(ours, theirs, rtol=close, atol=close)


@each_case
def test_autocast_leaves_float64_alone(case):
    mine, other = case.pair(torch.float64)
    ours, theirs = (under_autocast(m, case.sample(), torch.bfloat16) for m in (mine, other))
    assert_same(ours, theirs, case.close)


@each_low
def test_autocast_of_a_converted_model(dtype):
    mine, other = (m.float() for m in blocks(p=0.4))
    x = torch.randn(4, 6)
    ours, theirs = (under_autocast(m, [x], dtype) for m in (mine, other))
    assert_same_types(ours, theirs)
    torch.testing.assert_close(ours, theirs, rtol=0.02, atol=0.02)


# --- the meta device ---------------------------------------------------------------------------


@each_op
def test_on_the_meta_device(op):
    """Shapes, dtypes and strides without numbers, forward and backward."""
    tensors = [t.to("meta") for t in sample(op)]

    def run(function):
        made = leaves(op, tensors)
        out = call(op, function, made)
        grads = torch.autograd.grad(out, differentiated(made), torch.empty_like(out))
        return [out, *grads]

    both = same_outcome(lambda: run(op.ours), lambda: run(op.torchs))
    assert both is not None
    for a, b in zip(*both, strict=True):
        assert a.device.type == "meta"
        assert (a.dtype, a.shape, a.stride()) == (b.dtype, b.shape, b.stride())


@each(WITH_PARAMETERS)
@pytest.mark.parametrize("how", ["argument", "context", "default"])
def test_built_on_meta_and_made_real_later(case, how):
    args, kwargs = case.arguments()
    if how == "argument":
        mine = getattr(nn, case.name)(*args, **kwargs, device="meta")
    elif how == "context":
        with torch.device("meta"):
            mine = getattr(nn, case.name)(*args, **kwargs)
    else:
        torch.set_default_device("meta")
        try:
            mine = getattr(nn, case.name)(*args, **kwargs)
        finally:
            torch.set_default_device(None)
    assert {p.device.type for p in mine.parameters()} == {"meta"}
    x = case.sample(dtype=torch.float32)[0]
    assert mine(x.to("meta")).device.type == "meta"
    full, other = case.pair(torch.float32)
    mine.to_empty(device="cpu").load_state_dict(full.state_dict())
    assert_same(step(mine, [x]), step(other, [x]), 2e-6)
    late, _ = case.pair(torch.float32)
    late.to("meta").load_state_dict(full.state_dict(), assign=True)
    assert_same(step(late, [x]), step(other, [x]), 2e-6)


@each_case
def test_run_inside_a_device_context(case):
    """What is made on the way goes where the inputs are, not where the context says."""
    mine, other = case.pair()
    tensors = case.sample()
    outside = step(mine, tensors)
    d_out = incoming(outside[0])
    x, *rest = (t.detach().clone() for t in tensors)
    x.requires_grad_()
    torch.manual_seed(7)
    with torch.device("meta"):
        out = mine(x, *rest)
        grads = torch.autograd.grad(out, [x, *mine.parameters()], d_out)
    assert_same([out.detach(), *grads], outside)


# --- inference mode and no_grad ----------------------------------------------------------------


@each_op
@pytest.mark.parametrize(
    "mode", [torch.no_grad, torch.inference_mode], ids=["no_grad", "inference"]
)
def test_without_gradients(op, mode):
    out, theirs = (call(op, f, leaves(op, sample(op))).detach() for f in (op.ours, op.torchs))
    with mode():
        tensors = leaves(op, sample(op))
        got, want = call(op, op.ours, tensors), call(op, op.torchs, tensors)
        # On some processors torch's own product rounds otherwise in inference mode: then ours does.
        assert torch.equal(got, out) or (torch.equal(got, want) and not torch.equal(want, theirs))
        assert got.grad_fn is None
        assert (
            got.requires_grad
            is want.requires_grad
            is (op.option == "eval" and op.name in ("dropout", "stochastic_depth"))
        )
        assert got.is_inference() is want.is_inference() is (mode is torch.inference_mode)
        assert_same([got], [want], 1e-12 * op.torch_off)


@each_op
def test_inference_tensors_outside_of_inference_mode(op):
    """What was made in inference mode may be used later, but not kept for backward: torch's error."""
    with torch.inference_mode():
        x, *rest = (t.clone() for t in sample(op))
    if "inplace" not in op.option:
        got, want = call(op, op.ours, (x, *rest)), call(op, op.torchs, (x, *rest))
        assert_same([got], [want])
    fresh = [t.clone().requires_grad_(t.is_floating_point()) for t in rest]
    if op.keeps_more or op.keeps_inputs:  # torch keeps a tensor of its own making, ours the inputs
        with pytest.raises(RuntimeError, match="Inference tensors cannot be saved for backward"):
            call(op, op.ours, (x, *fresh))
        return
    both = same_outcome(
        lambda: call(op, op.ours, (x, *fresh)), lambda: call(op, op.torchs, (x, *fresh))
    )
    if both is not None:
        assert both[0].requires_grad == both[1].requires_grad


# --- what is refused ---------------------------------------------------------------------------
OTHER_DTYPES = [torch.int64, torch.uint8, torch.bool, torch.complex128]


def in_dtype(t, dtype):
    if not t.is_floating_point():
        return t
    return torch.complex(t, t.flip(-1)) if dtype.is_complex else t.mul(3).to(dtype)


class Bernoulli(TorchDispatchMode):
    """torch before 2.15 draws no complex mask, and so refuses dropout, which ours need not.

    Until then the twin is torch's dropout with that one operation supplied.
    """

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        mask = args[0] if args else None
        if func is torch.ops.aten.bernoulli_.float and mask.is_complex():
            return mask.copy_(torch.empty_like(mask.real).bernoulli_(*args[1:], **kwargs or {}))
        return func(*args, **kwargs or {})


def torchs(op, tensors):
    # Not stochastic depth, which torchvision and ours refuse with every release.
    with Bernoulli() if op.random and op.name != "stochastic_depth" else nullcontext():
        return call(op, op.torchs, tensors)


def differences(op):
    """Every dtype in which ours and torch's do not do the same."""
    found = []
    for dtype in OTHER_DTYPES:
        for which in ("first", "all"):
            tensors = [
                in_dtype(t, dtype) if which == "all" or i == 0 else t
                for i, t in enumerate(sample(op))
            ]
            try:
                both = same_outcome(
                    lambda t=tensors: call(op, op.ours, [x.clone() for x in t]),
                    lambda t=tensors: torchs(op, [x.clone() for x in t]),
                )
                if both is not None:
                    assert_same([both[0]], [both[1]])
            except AssertionError as error:
                found.append(f"{which} {dtype}: {first_line(error)}")
    return found


# What differs, and where: in the words of the refusal, or in a dtype that nobody trains in.
WEIGHTED = "integers and complex numbers refused where torch computes; bool the reverse"
INTEGERS = {
    "alpha_dropout-*": "torch calls a bool a Long in its message",
    "mse_loss-weight,*": WEIGHTED,
}
COMPLEX = {
    "softsign": "refused where torch differentiates",
    "mse_loss-weight,*": WEIGHTED,
}


def marked(known):
    """The rows, those with a known difference expected to fail."""

    def marks(op):
        reasons = [why for pattern, why in known.items() if fnmatch(op.id, pattern)]
        return [pytest.mark.xfail(strict=True, reason=why) for why in reasons[:1]]

    return pytest.mark.parametrize(
        "op", [pytest.param(op, marks=marks(op), id=op.id) for op in OPS]
    )


@marked(INTEGERS)
def test_integers_and_complex_numbers(op):
    """Accepted where torch accepts them, with its values and dtype; else refused in its words."""
    assert differences(op) == []


@marked(COMPLEX)
def test_complex_gradients(op):
    """Where torch differentiates complex numbers, the gradient is its conjugate one."""
    tensors = [in_dtype(t, torch.complex128) for t in sample(op)]
    allowed = range(len(tensors)) if op.differentiable is None else op.differentiable

    def run(function):
        made = [
            t.clone().requires_grad_(t.is_complex() and i in allowed) for i, t in enumerate(tensors)
        ]
        out = function(made)
        d_out = incoming(out)
        if out.is_complex():
            d_out = torch.complex(d_out.real, incoming(out, 4).real)
        return [out.detach(), *torch.autograd.grad(out, differentiated(made), d_out)]

    both = same_outcome(
        lambda: run(lambda made: call(op, op.ours, made)),
        lambda: run(lambda made: torchs(op, made)),
    )
    if both is not None:
        assert_same(*both)
