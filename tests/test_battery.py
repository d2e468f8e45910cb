"""What every op must hold in every regime. The rows stand in tests/ops.py."""

import gc
import warnings
import weakref

import pytest
import torch
from ops import OPS
from torch.autograd import forward_ad, gradcheck, gradgradcheck

from manualnn import functional, nn

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
each_op = pytest.mark.parametrize("op", OPS, ids=lambda op: op.id)
# Dropout draws its mask in a dtype of its own; the seed fixes the numbers, not how often they are drawn.


def call(op, function, tensors):
    torch.manual_seed(7)
    return function(*tensors)


def leaves(op, tensors, needs=None):
    """The tensors as leaves; those that are floating (or named in needs) require a gradient."""
    allowed = range(len(tensors)) if op.differentiable is None else op.differentiable
    made = []
    for i, t in enumerate(tensors):
        wants = t.is_floating_point() and i in allowed and (needs is None or i in needs)
        made.append(t.detach().clone().requires_grad_(wants))
    return made


def differentiated(tensors):
    return [t for t in tensors if t.requires_grad]


def gradients(op, function, tensors, create_graph=False):
    """The output and, for an incoming gradient of both signs, the gradients of all that needs one."""
    out = call(op, function, tensors)
    torch.manual_seed(3)
    d_out = torch.randn(out.shape, dtype=out.dtype)  # the same numbers whatever the strides are
    wrt = differentiated(tensors)
    if not out.requires_grad:
        return out, []
    grads = torch.autograd.grad(out, wrt, d_out, create_graph=create_graph, allow_unused=True)
    return out, [torch.zeros_like(t) if g is None else g for t, g in zip(wrt, grads, strict=True)]


def sample(op, dtype=torch.float64, seed=0):
    torch.manual_seed(seed)
    return op.inputs(dtype)


def assert_close(ours, theirs, dtype, factor=1.0):
    tolerance = {torch.float64: 1e-12, torch.float32: 2e-6}[dtype] * factor
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance, equal_nan=True)


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
        lambda *t: call(op, op.ours, t), tensors, check_fwd_over_rev=True, check_rev_over_rev=True
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


@each_op
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


@each_op
def test_special_values(op):
    if not op.pointwise:
        pytest.skip("of one number: the rows of pointwise activations")
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


@each_op
def test_torch_func(op):
    if op.random:
        pytest.skip("a mask drawn inside a transform is compared in test_randomness.py")
    tensors = sample(op)
    wrt = tuple(i for i, t in enumerate(leaves(op, tensors)) if t.requires_grad)
    for transform in (torch.func.jacrev, torch.func.jacfwd):
        ours = transform(op.ours, argnums=wrt)(*tensors)
        theirs = transform(op.reference, argnums=wrt)(*tensors)
        for a, b in zip(ours, theirs, strict=True):
            assert_close(a, b, torch.float64, 10)

    def scalar(function):
        return lambda *t: (function(*t) * 1.5).sum()

    ours = torch.func.grad(scalar(op.ours), argnums=wrt)(*tensors)
    theirs = torch.func.grad(scalar(op.reference), argnums=wrt)(*tensors)
    for a, b in zip(ours, theirs, strict=True):
        assert_close(a, b, torch.float64, 10)

    hessian = torch.func.hessian(scalar(op.ours))(*tensors)
    assert_close(hessian, torch.func.hessian(scalar(op.reference))(*tensors), torch.float64, 100)


@each_op
def test_vmap_and_per_sample_gradients(op):
    if op.random:
        pytest.skip("a mask drawn inside a transform is compared in test_randomness.py")
    stacks = [torch.stack([t, t.flip(0)]) for t in sample(op)]
    ours, theirs = torch.func.vmap(op.ours)(*stacks), torch.func.vmap(op.reference)(*stacks)
    assert_close(ours, theirs, torch.float64)
    wrt = tuple(i for i, t in enumerate(leaves(op, sample(op))) if t.requires_grad)

    def per_sample(function, in_dims):
        gradient = torch.func.grad(lambda *t: function(*t).square().sum(), argnums=wrt)
        return torch.func.vmap(gradient, in_dims=in_dims)(
            *(s if d == 0 else s[0] for s, d in zip(stacks, in_dims, strict=True))
        )

    shared = tuple(0 if i == 0 else None for i in range(len(stacks)))
    for in_dims in (tuple(0 for _ in stacks), shared):
        for a, b in zip(
            per_sample(op.ours, in_dims), per_sample(op.reference, in_dims), strict=True
        ):
            assert_close(a, b, torch.float64, 10)


@each_op
def test_compile_fullgraph(op):
    torch.compiler.reset()
    function = torch.compile(lambda *t: op.ours(*t), fullgraph=True, backend="aot_eager")
    tensors = sample(op)
    out, grads = gradients(op, function, leaves(op, tensors))
    ref, ref_grads = gradients(op, op.ours, leaves(op, tensors))
    assert_close(out, ref, torch.float64)
    for a, b in zip(grads, ref_grads, strict=True):
        assert_close(a, b, torch.float64, max(10, op.torch_off))


@each_op
def test_each_input_alone(op):
    everything = leaves(op, sample(op))
    for i, t in enumerate(everything):
        if not t.requires_grad:
            continue
        _, (ours,) = gradients(op, op.ours, leaves(op, sample(op), needs=(i,)))
        _, (theirs,) = gradients(op, op.reference, leaves(op, sample(op), needs=(i,)))
        assert_close(ours, theirs, torch.float64, op.torch_off)


def held(op, function, tensors):
    """Bytes of storage that the graph of the output keeps, each once; inputs count, parameters do not."""
    storages = {}
    parameters = [tensors[i].untyped_storage().data_ptr() for i in op.parameters]

    def note(t):
        storages[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        out = call(op, function, tensors)
    return sum(n for at, n in storages.items() if at not in parameters), out


@each_op
def test_keeps_no_more_bytes_than_torch(op):
    if op.keeps_more:
        pytest.skip(op.keeps_more)
    everything = leaves(op, sample(op, torch.float32))
    subsets = [None] + [(i,) for i, t in enumerate(everything) if t.requires_grad]
    for needs in subsets:
        ours, out = held(op, op.ours, leaves(op, sample(op, torch.float32), needs))
        theirs, ref = held(op, op.torchs, leaves(op, sample(op, torch.float32), needs))
        assert ours <= theirs, f"needs={needs}: {ours} bytes, torch {theirs}"
        del out, ref


@each_op
def test_strided_and_expanded(op):
    tensors = sample(op)

    def strided():
        turned = [t.mT.contiguous().mT if t.dim() >= 2 else t for t in tensors]
        return [
            t.detach().requires_grad_(leaf.requires_grad)
            for t, leaf in zip(turned, leaves(op, tensors), strict=True)
        ]

    ours, our_grads = gradients(op, op.ours, strided())
    theirs, their_grads = gradients(op, op.reference, strided())
    assert_close(ours, theirs, torch.float64)
    for a, b in zip(our_grads, their_grads, strict=True):
        assert_close(a, b, torch.float64, op.torch_off)

    mine = leaves(op, tensors)
    call(op, op.ours, mine).sum().backward()  # the incoming gradient is one number, expanded
    other = leaves(op, tensors)
    call(op, op.reference, other).sum().backward()
    for a, b in zip(mine, other, strict=True):
        assert (a.grad is None) == (b.grad is None)
        if a.grad is not None:
            assert_close(a.grad, b.grad, torch.float64, op.torch_off)


@each_op
def test_empty_batch(op):
    if not op.batch:
        pytest.skip("the row has no batch dimension")
    tensors = [t[:0] if i in op.batch else t for i, t in enumerate(sample(op))]
    ours, our_grads = gradients(op, op.ours, leaves(op, tensors))
    theirs, their_grads = gradients(op, op.reference, leaves(op, tensors))
    assert_close(ours, theirs, torch.float64)
    for a, b in zip(our_grads, their_grads, strict=True):
        assert_close(a, b, torch.float64)


@each_op
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(op, dtype):
    tensors = sample(op, torch.float32)
    ours_in, theirs_in = leaves(op, tensors), leaves(op, tensors)
    with torch.autocast("cpu", dtype):
        ours = call(op, op.ours, ours_in)
        theirs = call(op, op.torchs, theirs_in)
    assert ours.dtype == theirs.dtype
    torch.testing.assert_close(ours, theirs, rtol=0.02, atol=0.02)
    ours.float().sum().backward()
    theirs.float().sum().backward()
    for a, b in zip(ours_in, theirs_in, strict=True):
        if a.requires_grad and b.grad is not None:
            assert a.grad.dtype == b.grad.dtype
            torch.testing.assert_close(a.grad, b.grad, rtol=0.1, atol=0.1)


@each_op
def test_backward_inside_autocast_keeps_float32(op):
    outside, inside = leaves(op, sample(op, torch.float32)), leaves(op, sample(op, torch.float32))
    call(op, op.ours, outside).sum().backward()
    out = call(op, op.ours, inside)
    with torch.autocast("cpu", torch.bfloat16):
        out.sum().backward()
    for a, b in zip(outside, inside, strict=True):
        if a.grad is not None:
            assert torch.equal(a.grad, b.grad)


@each_op
@pytest.mark.parametrize("changed", ["input", "output"])
def test_change_between_forward_and_backward_raises_or_is_harmless(op, changed):
    right = leaves(op, sample(op))
    _, expected = gradients(op, op.ours, right)
    tensors = leaves(op, sample(op))
    made = [t * 1 if t.requires_grad else t for t in tensors]  # not leaves, so they may be changed
    out = call(op, op.ours, made)
    with torch.no_grad():
        for t in made if changed == "input" else [out]:
            if t.is_floating_point():
                t.add_(1.0)
    torch.manual_seed(3)
    d_out = torch.randn(out.shape, dtype=out.dtype)
    try:
        grads = torch.autograd.grad(out, differentiated(tensors), d_out, allow_unused=True)
    except RuntimeError as error:
        assert "modified by an inplace operation" in str(error)
        return
    for grad, right_grad in zip(grads, expected, strict=True):
        assert_close(
            torch.zeros_like(right_grad) if grad is None else grad, right_grad, torch.float64
        )


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
def test_forward_over_reverse_without_torch_func(op):
    """A tangent at an input reaches the gradient through everything that was kept."""
    if op.random:
        pytest.skip("covered by test_second_derivative_against_finite_differences")

    torch.manual_seed(5)
    tensors = sample(op)
    directions = [torch.randn_like(t) if t.requires_grad else t for t in leaves(op, tensors)]

    with forward_ad.dual_level():
        duals = [
            forward_ad.make_dual(t, v) if t.requires_grad else t
            for t, v in zip(leaves(op, tensors), directions, strict=True)
        ]
        out = call(op, op.ours, duals)
        grads = torch.autograd.grad(out.square().sum(), differentiated(duals))
        ours = [forward_ad.unpack_dual(g).tangent for g in grads]

    # The same product of the Hessian and the directions by two backwards through torch's op.
    plain = leaves(op, tensors)
    wrt = differentiated(plain)
    out = call(op, op.reference, plain)
    grads = torch.autograd.grad(out.square().sum(), wrt, create_graph=True)
    product = sum(
        (g * v).sum()
        for g, v in zip(
            grads,
            [v for v, t in zip(directions, plain, strict=True) if t.requires_grad],
            strict=True,
        )
    )
    theirs = torch.autograd.grad(product, wrt, allow_unused=True)
    for a, b in zip(ours, theirs, strict=True):
        zero = torch.zeros(())
        assert_close(
            *torch.broadcast_tensors(zero if a is None else a, zero if b is None else b),
            torch.float64,
            500,
        )


def tangent_by_backward(out, step):
    """dout/dstep with its history, by two backwards: ⟨u, out⟩ by step, then by u."""
    u = torch.zeros_like(out, requires_grad=True)
    (slope,) = torch.autograd.grad(out, step, u, create_graph=True, allow_unused=True)
    if slope is None or not slope.requires_grad:
        return torch.zeros_like(out)
    (tangent,) = torch.autograd.grad(slope, u, create_graph=True, allow_unused=True)
    return torch.zeros_like(out) if tangent is None else tangent


def on_a_line(op, seed=5):
    """The sample as leaves, a direction for each that may vary, and the points sample + step · direction."""
    torch.manual_seed(seed)
    points = leaves(op, sample(op))
    directions = [torch.randn_like(t) if t.requires_grad else None for t in points]
    step = torch.zeros((), dtype=torch.float64, requires_grad=True)
    line = [p if d is None else p + step * d for p, d in zip(points, directions, strict=True)]
    return points, directions, step, line


@each_op
def test_forward_over_forward(op):
    """PyTorch calls a Function's jvp with forward mode switched off: silently 0, unless seen to."""
    if op.random:
        pytest.skip("a mask drawn inside a transform is compared in test_randomness.py")
    points, directions, step, line = on_a_line(op)
    first = tangent_by_backward(op.reference(*line), step)
    theirs = tangent_by_backward(first, step) if first.requires_grad else torch.zeros_like(first)

    def out(s):
        moved = [
            p if d is None else p.detach() + s * d for p, d in zip(points, directions, strict=True)
        ]
        return op.ours(*moved)

    twice = torch.func.jacfwd(torch.func.jacfwd(out))
    if (
        "inplace" in op.option
    ):  # torch refuses to write over the tangent of a tangent, its own ops' too
        with pytest.raises(RuntimeError, match="ZeroTensors are immutable"):
            twice(torch.zeros((), dtype=torch.float64))
        return
    ours = twice(torch.zeros((), dtype=torch.float64))
    assert_close(ours, theirs, torch.float64, 500 * op.torch_off)


@each_op
def test_reverse_over_forward(op):
    """The gradient of a tangent, which has its way through everything that jvp reads."""
    points, directions, step, line = on_a_line(op)
    wrt = differentiated(points)

    def gradient(tangent):
        if not tangent.requires_grad:
            return [torch.zeros_like(t) for t in wrt]
        grads = torch.autograd.grad(tangent.square().sum(), wrt, allow_unused=True)
        return [torch.zeros_like(t) if g is None else g for t, g in zip(wrt, grads, strict=True)]

    theirs = gradient(tangent_by_backward(call(op, op.reference, line), step))
    with forward_ad.dual_level():
        duals = [
            p if d is None else forward_ad.make_dual(p, d)
            for p, d in zip(points, directions, strict=True)
        ]
        ours = gradient(forward_ad.unpack_dual(call(op, op.ours, duals)).tangent)
    for mine, other in zip(ours, theirs, strict=True):
        assert_close(mine, other, torch.float64, 500 * op.torch_off)


@each_op
def test_nothing_is_kept_after_backward(op):
    """Freed at once, not when the garbage collector finds a cycle of tensors and graph nodes."""
    tensors = leaves(op, sample(op))
    gc.collect()
    gc.disable()
    try:
        made = [t * 1 if t.requires_grad else t for t in tensors]
        watched = [weakref.ref(t) for t in made if t.requires_grad]
        out = call(op, op.ours, made)
        watched.append(weakref.ref(out))
        out.sum().backward()
        del made, out
        assert [w() for w in watched] == [None] * len(watched)
    finally:
        gc.enable()


def test_every_public_function_and_module_has_a_row():
    rows = {op.name for op in OPS}
    public = {
        name
        for name, value in vars(functional).items()
        if callable(value) and value.__module__ == functional.__name__ and not name.startswith("_")
    }
    in_place = {name for name in public if name.endswith("_")}
    assert {name[:-1] for name in in_place} <= rows
    assert public - in_place == rows - {"MLP"}
    assert "MLP" in rows and nn.MLP


def test_warnings_are_not_hidden_by_this_file():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        functional.mse_loss(torch.zeros(2), torch.zeros(2, 1))
    assert "different to the input size" in str(caught[0].message)
