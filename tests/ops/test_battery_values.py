"""Values and derivatives of every op against torch's and against differences, at kinks and at infinity."""

import pytest
import torch
from battery import (
    assert_close,
    call,
    differentiated,
    each,
    each_op,
    formula_and_kernel,
    gradients,
    leaves,
    nodes_of_ours,
    sample,
)
from torch.autograd import gradcheck, gradgradcheck

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@each_op
def test_first_derivative_against_finite_differences(op):
    tensors = leaves(op, sample(op))
    if not differentiated(tensors):
        pytest.fail("a row without anything to differentiate proves nothing")
    assert gradcheck(
        lambda *t: call(op, op.ours, t),
        tensors,
        check_forward_ad=True,
        check_batched_grad=not op.random,
        check_batched_forward_grad=not op.random,
        check_undefined_grad=True,
    )


@each_op
def test_second_derivative_against_finite_differences(op):
    tensors = leaves(op, sample(op))
    assert gradgradcheck(
        lambda *t: call(op, op.ours, t),
        tensors,
        check_fwd_over_rev=True,
        check_rev_over_rev=True,
        fast_mode=True,  # along random directions; the first derivative is checked in each element
    )


@each_op
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("create_graph", [False, True], ids=["kernel", "formula"])
def test_value_and_gradient_equal_torchs(op, dtype, create_graph):
    out, grads = gradients(op, op.ours, leaves(op, sample(op, dtype)), create_graph)
    ref, ref_grads = gradients(op, op.torchs, leaves(op, sample(op, dtype)))
    assert out.dtype == ref.dtype and out.shape == ref.shape
    assert_close(out, ref, dtype)
    for grad, ref_grad in zip(grads, ref_grads, strict=True):
        assert_close(grad, ref_grad, dtype, factor=5 if op.exact is None else op.torch_off)
    if op.exact is not None and dtype is torch.float64 and create_graph:
        _, exact_grads = gradients(op, op.exact, leaves(op, sample(op)))
        for grad, exact_grad in zip(grads, exact_grads, strict=True):
            assert_close(grad, exact_grad, dtype, factor=5)


@each_op
def test_the_kernel_computes_the_formula(op):
    """Whatever kernel an op names, it is held to the op's formula: all gradients needed, and each alone."""
    tensors = sample(op)
    for needs in (None, *({i} for i, t in enumerate(tensors) if t.is_floating_point())):
        given = leaves(op, tensors, needs)
        out = call(op, op.ours, given)
        for node in nodes_of_ours(out) if out.requires_grad else ():
            formula, kernel = formula_and_kernel(node)
            found = zip(node.needs_input_grad, formula, kernel or formula, strict=False)
            for need, one, other in found:
                if need:
                    one, other = (t.to_dense() if t.is_sparse else t for t in (one, other))
                    assert_close(other, one, torch.float64, factor=op.torch_off)


@each_op
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_error_against_float64_is_no_worse_than_torchs(op, dtype):
    tensors = [t.to(dtype) if t.is_floating_point() else t for t in sample(op)]
    exact_in = [t.double() if t.is_floating_point() else t for t in tensors]
    try:
        call(op, op.torchs, tensors)
    except RuntimeError as error:  # torch has no such kernel: ours must say the same
        assert "not implemented for" in str(error)
        with pytest.raises(RuntimeError, match="not implemented for"):
            call(op, op.ours, tensors)
        return
    # One incoming gradient for all three: rounded to dtype, then exact.
    ours, our_grads = _with_gradient(op, op.ours, leaves(op, tensors), dtype)
    theirs, their_grads = _with_gradient(op, op.torchs, leaves(op, tensors), dtype)
    exact, exact_grads = _with_gradient(op, op.torchs, leaves(op, exact_in), dtype)
    # Two sums in another order differ by a rounding or two: in float32 that is all there is.
    factor, ulps = (2.0, 1.0) if dtype is torch.float32 else (1.01, 0.5)
    ulp = torch.finfo(dtype).eps
    for mine, other, true in zip(
        [ours, *our_grads], [theirs, *their_grads], [exact, *exact_grads], strict=True
    ):
        assert mine.dtype == other.dtype
        error, their_error = (mine - true).abs().max(), (other - true).abs().max()
        assert error <= factor * their_error + ulps * ulp * true.abs().max()


def _with_gradient(op, function, tensors, dtype):
    out = call(op, function, tensors)
    torch.manual_seed(3)
    d_out = torch.randn(out.shape, dtype=torch.float64).to(dtype).to(out.dtype)
    grads = torch.autograd.grad(out, differentiated(tensors), d_out, allow_unused=True)
    return out.detach(), [g for g in grads if g is not None]


@each(lambda op: op.kinks)
@pytest.mark.parametrize("create_graph", [False, True], ids=["kernel", "formula"])
def test_kinks(op, create_graph):
    for kink in op.kinks:
        for dtype in (torch.float64, torch.float32):
            first, *rest = sample(op, dtype)
            point = torch.tensor(kink, dtype=dtype)
            inf = torch.tensor(float("inf"), dtype=dtype)
            around = torch.stack((point, point.nextafter(inf), point.nextafter(-inf)))
            z = around.repeat(first.numel() // 3).view(first.shape)
            _, ours = gradients(op, op.ours, leaves(op, [z, *rest]), create_graph)
            _, theirs = gradients(op, op.torchs, leaves(op, [z, *rest]))
            assert_close(ours[0], theirs[0], dtype, op.torch_off)


SPECIAL = [
    float("inf"),
    -float("inf"),
    float("nan"),
    0.0,
    -0.0,
    1e4,
    -1e4,
    88.8,
    -88.8,
    1e-30,
    -1e-30,
]


@each(lambda op: op.pointwise)
def test_special_values(op):
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        z = torch.tensor(SPECIAL, dtype=dtype)
        ours, (our_grad,) = gradients(op, op.ours, leaves(op, [z]))
        theirs, (their_grad,) = gradients(op, op.torchs, leaves(op, [z]))
        known = ~z.isnan()  # torch's own kernels disagree among themselves on the slope at NaN
        assert torch.equal(ours.isnan(), theirs.isnan())
        precision = {
            torch.bfloat16: 1e-2,
            torch.float32: 1e-5,
            torch.float64: 1e-12 * op.torch_off,
        }[dtype]
        for mine, other in ((ours, theirs), (our_grad[known], their_grad[known])):
            torch.testing.assert_close(mine, other, rtol=precision, atol=precision, equal_nan=True)
        assert torch.equal(torch.signbit(ours[3:5]), torch.signbit(theirs[3:5]))


def _twice(op, function, dtype):
    """The first and the second derivative, where exp overflows."""
    far = torch.tensor([30.0, 60.0, 88.8, 100.0, 750.0, 1e4])
    (z,) = leaves(op, [torch.cat((far, -far)).to(dtype)])
    (first,) = torch.autograd.grad(call(op, function, [z]).sum(), z, create_graph=True)
    second = None
    if first.requires_grad:
        (second,) = torch.autograd.grad(first.sum(), z, allow_unused=True)
    return first.detach(), torch.zeros_like(z) if second is None else second


@each(lambda op: op.pointwise and not op.random)
def test_second_derivative_far_out(op):
    """The case that is not taken overflows; it must not turn the derivative of the other into NaN."""
    for dtype in (torch.float64, torch.float32):
        ours = _twice(op, op.ours, dtype)
        if op.name == "hardsigmoid":  # of which torch has no second derivative
            assert ours[0].isfinite().all() and not ours[1].any()
            continue
        for mine, other in zip(ours, _twice(op, op.torchs, dtype), strict=True):
            known = other.isfinite()  # torch's mish gives NaN
            torch.testing.assert_close(mine[known], other[known], rtol=1e-4, atol=1e-6)


@each_op
def test_each_input_alone(op):
    everything = leaves(op, sample(op))
    for i, t in enumerate(everything):
        if not t.requires_grad:
            continue
        _, (ours,) = gradients(op, op.ours, leaves(op, sample(op), needs=(i,)))
        _, (theirs,) = gradients(op, op.reference, leaves(op, sample(op), needs=(i,)))
        assert_close(ours, theirs, torch.float64, op.torch_off)


@each_op
def test_backward_twice_with_retain_graph(op):
    tensors = leaves(op, sample(op))
    out = call(op, op.ours, tensors)
    if not out.requires_grad:
        pytest.fail("nothing to differentiate")
    first = torch.autograd.grad(
        out.sum(), differentiated(tensors), retain_graph=True, allow_unused=True
    )
    second = torch.autograd.grad(out.sum(), differentiated(tensors), allow_unused=True)
    for a, b in zip(first, second, strict=True):
        assert (a is None and b is None) or torch.equal(a, b)


@each_op
def test_an_incoming_gradient_without_memory(op):
    """PyTorch's second derivative of abs, say, sends back a zero that nothing may be written to."""
    tensors = leaves(op, sample(op))
    out = call(op, op.ours, tensors)
    outs = [o for o in (out if isinstance(out, tuple) else (out,)) if o.requires_grad]
    zeros = [torch._efficientzerotensor(o.shape, dtype=o.dtype) for o in outs]
    for grad in torch.autograd.grad(outs, differentiated(tensors), zeros, allow_unused=True):
        assert grad is None or not (grad + 0).any()
