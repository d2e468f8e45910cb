"""Second derivatives in mixed orders: forward over reverse, forward over forward, reverse over forward."""

import pytest
import torch
from battery import assert_close, call, differentiated, each, each_op, leaves, sample
from torch.autograd import forward_ad

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@each(lambda op: not op.random)  # gradgradcheck has them, with check_fwd_over_rev
def test_forward_over_reverse_without_torch_func(op):
    """A tangent at an input reaches the gradient through everything that was kept."""
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


@each(lambda op: not op.random)
def test_forward_over_forward(op):
    """PyTorch calls a Function's jvp with forward mode switched off: silently 0, unless seen to."""
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
