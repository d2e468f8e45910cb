"""What every op keeps between forward and backward: how much, whether it can go stale, whether it is freed."""

import gc
import weakref

import pytest
import torch
from battery import assert_close, call, differentiated, each, each_op, gradients, leaves, sample

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


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


@each(lambda op: not op.keeps_more)
def test_keeps_no_more_bytes_than_torch(op):
    everything = leaves(op, sample(op, torch.float32))
    subsets = [None] + [(i,) for i, t in enumerate(everything) if t.requires_grad]
    for needs in subsets:
        ours, out = held(op, op.ours, leaves(op, sample(op, torch.float32), needs))
        theirs, ref = held(op, op.torchs, leaves(op, sample(op, torch.float32), needs))
        assert ours <= theirs, f"needs={needs}: {ours} bytes, torch {theirs}"
        del out, ref


@each(lambda op: op.keeps_more)
def test_what_is_said_to_keep_more_does(op):
    """So that the word is taken back when it no longer holds."""
    tensors = sample(op, torch.float32)
    ours, out = held(op, op.ours, leaves(op, tensors))
    theirs, ref = held(op, op.torchs, leaves(op, tensors))
    assert ours > theirs, op.keeps_more
    del out, ref


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
def test_nothing_is_kept_after_backward(op):
    """Freed at once, not when the garbage collector finds a cycle of tensors and graph nodes."""
    tensors = leaves(op, sample(op))
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
