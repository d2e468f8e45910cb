"""Every op in every regime: torch.func, compile, autocast, strides, an empty batch."""

import pytest
import torch
from battery import assert_close, call, each, each_op, each_traced, gradients, leaves, sample

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@each(lambda op: not op.random)  # test_randomness.py compares masks drawn inside a transform
def test_torch_func(op):
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

    ours, theirs = (
        torch.func.hessian(scalar(function), argnums=wrt[0])(*tensors)
        for function in (op.ours, op.reference)
    )
    assert_close(ours, theirs, torch.float64, 100)


@each(lambda op: not op.random)
def test_vmap_and_per_sample_gradients(op):
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


@each_traced
@pytest.mark.one_in(3)
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


@each(lambda op: op.batch)
def test_empty_batch(op):
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
