"""Checkpointing, hooks on saved tensors, accumulation, and what is freed: as torch's twins."""

import gc
import weakref

import pytest
import torch
from battery import call, differentiated, each_op, leaves, sample
from ops import OPS
from regimes_cases import CASES, WRITING, assert_same, blocks, each, each_case, incoming, step
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

from manualnn import nn

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
each_way = pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "not reentrant"])


# --- checkpointing -----------------------------------------------------------------------------


def again(module, tensors, **options):
    """As ``step``, the forward pass run a second time for the backward pass."""
    x, *rest = (t.detach().clone() for t in tensors)
    x.requires_grad_()
    torch.manual_seed(7)
    out = checkpoint(lambda *t: module(t[0] * 1, *t[1:]), x, *rest, **options)
    torch.manual_seed(99)  # where another number would be drawn, unless the state is brought back
    out.backward(incoming_after(out))
    grads = [x.grad, *(p.grad for p in module.parameters())]
    return out.detach(), *grads


def incoming_after(out):
    """d_out, the generator left as it was."""
    state = torch.get_rng_state()
    d_out = incoming(out)
    torch.set_rng_state(state)
    return d_out


@each(CASES + WRITING)
@each_way
def test_checkpointed(case, reentrant):
    mine, other = case.pair()
    ours = again(mine, case.sample(), use_reentrant=reentrant)
    assert_same(ours, step(other, case.sample()), case.close)


@each([c for c in CASES + WRITING if c.random])
@each_way
def test_checkpointed_without_preserving_the_random_numbers(case, reentrant):
    """Then the second pass draws other numbers: the same as torch's second pass does."""
    mine, other = case.pair()
    options = {"use_reentrant": reentrant, "preserve_rng_state": False}
    ours = again(mine, case.sample(20), **options)
    if case.name == "RReLU" and not reentrant:
        # torch's own reads noise that was never written: its gradient is 0 everywhere.
        ratio = ours[1] / again(mine, case.sample(20), use_reentrant=False)[1]
        assert ratio.max() < 3 and ratio.min() > 1 / 3
    else:
        assert_same(ours, again(other, case.sample(20), **options), case.close)
    preserved = again(case.pair()[0], case.sample(20), use_reentrant=reentrant)
    assert torch.equal(ours[0], preserved[0]) and not torch.equal(ours[1], preserved[1])


@each_way
def test_checkpointed_in_segments(reentrant):
    mine, other = blocks(p=0.4)
    x = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    results = []
    for model, run in (
        (mine, lambda m, x: checkpoint_sequential(m, 3, x, use_reentrant=reentrant)),
        (other, lambda m, x: m(x)),
    ):
        torch.manual_seed(7)
        out = run(model, x)
        torch.manual_seed(99)
        out.backward(incoming(out))
        results.append([out.detach(), x.grad, *(p.grad for p in model.parameters())])
        x.grad = None
    assert_same(*results)


# --- hooks on saved tensors --------------------------------------------------------------------


def through(hooks, op):
    tensors = leaves(op, sample(op))
    with hooks:
        out = call(op, op.ours, tensors)
    return torch.autograd.grad(out, differentiated(tensors), incoming(out), allow_unused=True)


@each_op
def test_saved_tensors_go_through_hooks(op):
    def copied(t):
        return t.detach().clone()

    right = through(saved_tensors_hooks(lambda t: t, lambda t: t), op)
    assert_same(through(saved_tensors_hooks(copied, copied), op), right)
    assert_same(through(save_on_cpu(), op), right)


@pytest.mark.parametrize(
    "op", [op for op in OPS if op.name in ("MLP", "gelu", "dropout2d")], ids=lambda op: op.id
)
def test_saved_tensors_wait_on_disk(op, tmp_path):
    files = []

    def to_disk(t):
        files.append(tmp_path / f"{len(files)}.pt")
        torch.save(t.detach().clone(), files[-1])
        return files[-1]

    right = through(saved_tensors_hooks(lambda t: t, lambda t: t), op)
    assert_same(through(saved_tensors_hooks(to_disk, torch.load), op), right)
    assert files


# --- accumulation ------------------------------------------------------------------------------


@each([c for c in CASES if c.name in ("Linear", "PReLU", "MLP") and not c.random])
@pytest.mark.parametrize("parts", [2, 3, 8])
def test_micro_batches_add_up_to_the_batch(case, parts):
    mine, other = case.pair()
    (x,) = case.sample(8)
    d_out = incoming(mine(x))
    for piece, d in zip(x.chunk(parts), d_out.chunk(parts), strict=True):
        mine(piece).backward(d)
    other(x).backward(d_out)
    assert_same([p.grad for p in mine.parameters()], [p.grad for p in other.parameters()])


@each([c for c in CASES if c.loss and c.kwargs.get("reduction") == "mean"])
def test_micro_batches_of_a_mean_add_up(case):
    mine, other = case.pair()
    x, y = case.sample(8)
    x.requires_grad_()
    for part in range(4):
        at = slice(2 * part, 2 * part + 2)
        (mine(x[at], y[at]) / 4).backward()
    (want,) = torch.autograd.grad(other(x, y), x)
    assert_same([x.grad], [want])


def test_micro_batches_through_a_whole_network_and_its_loss():
    mine, other = blocks()
    x, y = torch.randn(8, 6).double(), torch.randint(0, 3, (8,))
    ours, theirs = nn.NLLLoss(reduction="sum"), torch.nn.NLLLoss()
    for i in range(0, 8, 2):
        (ours(mine(x[i : i + 2]), y[i : i + 2]) / 8).backward()
    theirs(other(x), y).backward()
    assert_same([p.grad for p in mine.parameters()], [p.grad for p in other.parameters()])


# --- what is freed -----------------------------------------------------------------------------


class Kept:
    """What a hook puts in the place of a saved tensor; unlike a tensor's memory, it can be watched."""

    def __init__(self, tensor):
        self.tensor = tensor.detach()


class Watch:
    """The saved tensors of a graph, seen by weak references only, with the collector switched off."""

    def __init__(self):
        self.seen = []

    def pack(self, tensor):
        kept = Kept(tensor)
        self.seen.append(weakref.ref(kept))
        return kept

    def __enter__(self):
        gc.disable()
        self.hooks = saved_tensors_hooks(self.pack, lambda kept: kept.tensor)
        self.hooks.__enter__()
        return self

    def __exit__(self, *error):
        self.hooks.__exit__(*error)
        gc.enable()

    def alive(self):
        return sum(seen() is not None for seen in self.seen)


@each_op
def test_nothing_is_kept_when_the_output_is_dropped(op):
    with Watch() as watch:
        tensors = leaves(op, sample(op))
        made = [t * 1 if t.requires_grad else t for t in tensors]
        watched = [weakref.ref(t) for t in made if t.requires_grad]
        out = call(op, op.ours, made)
        watched.append(weakref.ref(out))
        del made, out
        assert [w() for w in watched] == [None] * len(watched)
        assert watch.alive() == 0


@each_op
def test_every_saved_tensor_is_freed_by_backward_while_the_output_lives(op):
    with Watch() as watch:
        tensors = leaves(op, sample(op))
        out = call(op, op.ours, tensors)
        torch.autograd.grad(out.sum(), differentiated(tensors), allow_unused=True)
        assert out.requires_grad
        assert watch.alive() == 0


def grad_twice(op, function, tensors):
    """The gradient of the square of the first gradients, and of all in between only weak references."""
    made = [t * 1 if t.requires_grad else t for t in tensors]
    watched = [weakref.ref(t) for t in made if t.requires_grad]
    out = call(op, function, made)
    grads = torch.autograd.grad(
        out, differentiated(tensors), incoming(out), create_graph=True, allow_unused=True
    )
    watched += [weakref.ref(out), *(weakref.ref(g) for g in grads if g is not None)]
    again = sum(g.square().sum() for g in grads if g is not None)
    return watched, again


@each_op
@pytest.mark.parametrize("differentiate", [True, False], ids=["second backward", "dropped"])
def test_nothing_is_kept_after_a_double_backward(op, differentiate):
    with Watch() as watch:
        tensors = leaves(op, sample(op))
        watched, again = grad_twice(op, op.ours, tensors)
        if differentiate and again.requires_grad:
            torch.autograd.grad(again, differentiated(tensors), allow_unused=True)
        del again
        assert [w() for w in watched] == [None] * len(watched)
        assert watch.alive() == 0


@each_case
def test_a_module_remembers_nothing_of_a_step(case):
    mine, _ = case.pair()
    before = set(vars(mine))
    with Watch() as watch:
        x, *rest = case.sample()
        x.requires_grad_()
        out = mine(x * 1, *rest)
        watched = [weakref.ref(out), weakref.ref(x)]
        del out, x, rest
        assert [w() for w in watched] == [None, None]
        assert watch.alive() == 0
    assert set(vars(mine)) == before
