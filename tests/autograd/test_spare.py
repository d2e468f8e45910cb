"""A gradient is written over where nothing else holds it, and nowhere else."""

import sys
import threading

import numpy as np
import pytest
import torch
from torch.nn import functional as theirs
from torch.utils import dlpack

import manualnn
from manualnn import functional as ours
from manualnn.autograd import faces, spare
from manualnn.kernels.trust import same_bits

COUNT = (1 << 15) + 5  # as many as are asked about where no test says otherwise
ACTIVATIONS = {
    "relu": {},
    "relu6": {},
    "leaky_relu": {"negative_slope": 0.1},
    "hardtanh": {},
    "elu": {"alpha": 0.7},
    "celu": {"alpha": 0.7},
    "selu": {},
    "gelu": {},
    "silu": {},
    "sigmoid": {},
    "tanh": {},
    "hardsigmoid": {},
    "hardshrink": {"lambd": 0.5},
    "softshrink": {"lambd": 0.5},
    "softplus": {},
    "threshold": {"threshold": 0.1, "value": 2.0},
}

NOT_IN_PLACE = {"gelu", "sigmoid", "tanh", "hardshrink", "softshrink", "softplus"}
FORMS = [(name, False) for name in ACTIVATIONS]
FORMS += [(name, True) for name in ACTIVATIONS if name not in NOT_IN_PLACE]


def drawn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def written(monkeypatch):
    """What was found of each gradient that was asked about: whether it may be written over."""
    found = []
    # Once Dynamo has looked at a call, each of Python's holds its arguments once more: nothing is written over
    # then. Here it is, also after a test that has compiled something.
    monkeypatch.setattr(spare, "MOST", 6)
    alone = spare.alone.__wrapped__()
    monkeypatch.setattr(spare, "alone", lambda: alone)

    class Compared(tuple):
        def __eq__(self, other):
            found.append(tuple(self) == tuple(other))
            return found[-1]

        __hash__ = None

    monkeypatch.setattr(faces, "alone", lambda: Compared(alone))
    return found


# --- where nothing holds it -------------------------------------------------------------------


@pytest.mark.parametrize("name, inplace", FORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_an_activation_has_torchs_bits(name, dtype, inplace, written, monkeypatch):
    z, w = drawn(COUNT).mul(3).to(dtype), drawn(COUNT, seed=1).to(dtype)
    options = ACTIVATIONS[name] | ({"inplace": True} if inplace else {})

    def gradient(home):
        leaf = z.clone().requires_grad_()
        a = getattr(home, name)(leaf * 1, **options)
        (a * w).sum().backward()
        return leaf.grad

    mine = gradient(ours)
    assert written == [True]
    monkeypatch.setattr(faces, "alone", tuple)
    assert same_bits(mine, gradient(ours))
    if dtype is not torch.float64:  # there torch's own constants are rounded to float32
        assert same_bits(mine, gradient(theirs))


def test_batch_norm_has_torchs_bits(written):
    x, w = drawn(4, 6, 40, 40), drawn(4, 6, 40, 40, seed=1)

    def gradients(layer):
        leaf = x.clone().requires_grad_()
        (layer(leaf * 1) * w).sum().backward()
        return leaf.grad, layer.weight.grad, layer.bias.grad

    mine = gradients(manualnn.nn.BatchNorm2d(6))
    assert all(map(same_bits, mine, gradients(torch.nn.BatchNorm2d(6))))
    assert written == [True]


def test_one_after_another_writes_in_the_same_memory(written):
    leaf, w, places = drawn(2, 4, 80, 80).requires_grad_(), drawn(2, 4, 80, 80, seed=1), []
    layer = manualnn.nn.BatchNorm2d(4)
    y = leaf * 1
    z = layer(y)
    a = ours.tanh(z)
    for t in (y, z, a):
        t.register_hook(lambda d: places.append(d.data_ptr()))
    (a * w).sum().backward()
    assert written == [True, True] and len(set(places)) == 1


# --- where something does ---------------------------------------------------------------------


def by_hook(keep):
    """The gradient is seen by a hook, which keeps something of it."""

    def way(a, w, kept):
        a.register_hook(lambda d: kept.append(keep(d)))
        (a * w).sum().backward()

    return way


def by_node(backward):
    """The gradient comes from a Function of the user's, which keeps something of it."""

    def way(a, w, kept):
        class Node(torch.autograd.Function):
            @staticmethod
            def forward(ctx, a):
                return a.clone()

            @staticmethod
            def backward(ctx, d):
                return backward(d * 2, kept)

        (Node.apply(a) * w).sum().backward()

    return way


def keeps(of):
    def backward(d, kept):
        kept.append(of(d))
        return d

    return backward


def of_numpy(d, kept):
    kept.append(d.numpy().copy())
    return torch.from_numpy(kept[-1])


def of_a_buffer(d, kept):
    kept.append(bytearray(d.numpy().tobytes()))
    return torch.frombuffer(kept[-1], dtype=torch.float32)


def retained(a, w, kept):
    a.retain_grad()
    (a * w).sum().backward()
    kept.append(a.grad)


def captured(a, w, kept):
    kept.extend(torch.autograd.grad((a * w).sum(), [a]))


def captured_on_the_way(a, w, kept):
    leaf = kept.pop()
    da, dleaf = torch.autograd.grad((a * w).sum(), [a, leaf])
    kept += [da, dleaf]


def given(a, w, kept):
    a.backward(w)
    kept.append(w)


def given_to_grad(a, w, kept):
    leaf = kept.pop()
    kept += [*torch.autograd.grad(a, leaf, w), w]


def prehook(a, w, kept):
    a.grad_fn.register_prehook(lambda ds: kept.append(ds[0]))
    (a * w).sum().backward()


def posthook(a, w, kept):
    a.grad_fn.register_hook(lambda dzs, das: kept.append(das[0]))
    (a * w).sum().backward()


def posthook_copies(a, w, kept):
    """What the hook is shown is da still."""
    a.grad_fn.register_hook(lambda dzs, das: kept.append(das[0].clone()))
    (a * w).sum().backward()


def several_tensors(a, w, kept):
    b = a * 1
    torch.autograd.graph.register_multi_grad_hook([a, b], lambda ds: kept.extend(ds))
    (b * w).sum().backward()


def shared_with_a_leaf(a, w, kept):
    leaf = torch.zeros_like(a).requires_grad_()
    ((a + leaf) * w).sum().backward()
    kept.append(leaf.grad)


def by_a_hook_on_the_module(a, w, kept):
    module = torch.nn.Identity()
    module.register_full_backward_hook(lambda m, dxs, dys: kept.extend((dxs[0], dys[0])))
    (module(a) * w).sum().backward()


def in_a_thread(a, w, kept):
    a.register_hook(kept.append)
    run = threading.Thread(target=(a * w).sum().backward)
    run.start()
    run.join()


HELD = {
    "a hook": by_hook(lambda d: d),
    "a hook's view": by_hook(lambda d: d[3:7]),
    "a hook's detached": by_hook(lambda d: d.detach()),
    "a hook's data": by_hook(lambda d: d.data),
    "a hook's array": by_hook(lambda d: d.numpy()),
    "a hook's asarray": by_hook(np.asarray),
    "a hook's part of an array": by_hook(lambda d: d.numpy()[2:9]),
    "a hook's memoryview": by_hook(lambda d: memoryview(d.numpy())),
    "a hook's capsule": by_hook(dlpack.to_dlpack),
    "a hook's array by a capsule": by_hook(np.from_dlpack),
    "a hook's storage": by_hook(lambda d: d.untyped_storage()),
    "a hook's typed storage": by_hook(lambda d: d.storage()),
    "a hook's dictionary": by_hook(lambda d: {"d": [d]}),
    "a Function": by_node(keeps(lambda d: d)),
    "a Function's array": by_node(keeps(lambda d: d.numpy())),
    "a Function's storage": by_node(keeps(lambda d: d.untyped_storage())),
    "a Function's capsule": by_node(keeps(dlpack.to_dlpack)),
    "NumPy's memory": by_node(of_numpy),
    "a buffer's memory": by_node(of_a_buffer),
    "retained": retained,
    "captured": captured,
    "captured on the way": captured_on_the_way,
    "given": given,
    "given to grad": given_to_grad,
    "a prehook of the node": prehook,
    "a hook of the node": posthook,
    "a hook of the node that copies": posthook_copies,
    "a hook of several tensors": several_tensors,
    "shared with a leaf": shared_with_a_leaf,
    "a hook of a module": by_a_hook_on_the_module,
    "a thread": in_a_thread,
}


def numbers(what):
    """A copy of what is kept, as a tensor."""
    if isinstance(what, dict):
        (what,) = what["d"]
    if type(what).__name__ == "PyCapsule":
        what = dlpack.from_dlpack(what)
    if isinstance(what, (torch.UntypedStorage, torch.TypedStorage)):
        untyped = getattr(what, "_untyped_storage", what)
        what = torch.empty(0).set_(untyped, 0, (untyped.nbytes() // 4,))
    if isinstance(what, (bytearray, memoryview)):
        what = np.frombuffer(what, dtype=np.float32)
    return torch.as_tensor(what).clone()


@pytest.mark.parametrize("inplace", [False, True], ids=["", "in place"])
@pytest.mark.parametrize("way", HELD)
def test_what_is_held_stays_as_it_is(way, inplace):
    z = drawn(COUNT)

    def run(home):
        leaf = z.clone().requires_grad_()
        kept = [leaf] if way in ("captured on the way", "given to grad") else []
        HELD[way](home.relu(leaf * 1, inplace=inplace), drawn(COUNT, seed=1), kept)
        assert kept
        return [leaf.grad if leaf.grad is not None else z, *map(numbers, kept)]

    mine, others = run(ours), run(theirs)
    assert len(mine) == len(others)
    assert all(map(same_bits, mine, others))


@pytest.mark.parametrize("two", ["relu", "batch norm"])
def test_two_that_are_given_the_same_gradient(two):
    layers = {
        "relu": (ours.relu, theirs.relu),
        "batch norm": (manualnn.nn.BatchNorm2d(4), torch.nn.BatchNorm2d(4)),
    }

    def run(layer):
        leaves = [drawn(2, 4, 80, 80, seed=s).requires_grad_() for s in (0, 1, 2)]
        a, b, c = (layer(leaf * 1) for leaf in leaves)
        ((a + b + c) * drawn(2, 4, 80, 80, seed=3)).sum().backward()
        return [leaf.grad for leaf in leaves]

    mine, others = map(run, layers[two])
    assert all(map(same_bits, mine, others))


def test_backward_twice():
    leaf = drawn(COUNT).requires_grad_()
    loss = (ours.tanh(leaf * 1) * drawn(COUNT, seed=1)).sum()
    (first,) = torch.autograd.grad(loss, leaf, retain_graph=True)
    kept = first.clone()
    (second,) = torch.autograd.grad(loss, leaf)
    assert same_bits(first, kept) and same_bits(second, kept)


@pytest.mark.parametrize("kind", ["strided", "expanded", "other strides", "NumPy's"])
def test_what_lies_in_memory_otherwise_is_left(kind, written):
    shape = (2, 4, 80, 80)
    w = {
        "strided": lambda: drawn(2, 4, 80, 160)[..., ::2],
        "expanded": lambda: drawn(80).expand(shape),
        "other strides": lambda: drawn(*shape).contiguous(memory_format=torch.channels_last),
        "NumPy's": lambda: torch.from_numpy(drawn(*shape).numpy()),
    }[kind]()
    before = w.clone()

    def run(home):
        leaf = drawn(*shape, seed=1).requires_grad_()
        home.relu(leaf * 1).backward(w)
        return leaf.grad

    mine, other = run(ours), run(theirs)
    assert same_bits(mine, other) and same_bits(w, before)
    assert mine.stride() == other.stride() and True not in written


@pytest.mark.parametrize("tool", ["trace", "profile"])
def test_where_a_debugger_looks_nothing_is_written_over(tool):
    """It holds what a frame holds for as long as it likes."""
    d = drawn(COUNT)
    assert spare.may_be_written_over(d)
    before = getattr(sys, f"get{tool}")()
    getattr(sys, f"set{tool}")(lambda *args: None)
    try:
        assert not spare.may_be_written_over(d)
    finally:
        getattr(sys, f"set{tool}")(before)


def test_a_part_of_something_larger_is_left():
    """Whose .grad it became would keep all of it."""
    assert not spare.may_be_written_over(drawn(2, COUNT)[0])
    part = torch.empty(0).set_(drawn(2 * COUNT).untyped_storage(), 0, (COUNT,))
    assert not spare.may_be_written_over(part)


def test_an_option_that_is_called_over_is_an_option():
    class Over(manualnn.Function):
        @staticmethod
        def forward(x, over):
            return x * over

        @staticmethod
        def save(needs, z, x, over):
            return (), (over,)

        @staticmethod
        def gradients(needs, dz, over):
            return dz * over

        @staticmethod
        def kernel_gradients(needs, dz, over=2.0):
            return dz * over

    leaf = drawn(COUNT).requires_grad_()
    Over.apply(leaf * 1, 3.0).sum().backward()
    assert torch.equal(leaf.grad, torch.full_like(leaf, 3.0))


@pytest.mark.parametrize("name", ["relu", "batch norm", "gelu"])
def test_a_batch_of_gradients(name):
    def layer(home):
        if name == "batch norm":
            return (manualnn.nn if home is ours else torch.nn).BatchNorm2d(4)
        return getattr(home, name)

    def gradients(home):
        leaf = drawn(2, 4, 80, 80).requires_grad_()
        y = layer(home)(leaf * 1)
        several = torch.autograd.grad(y, leaf, drawn(3, *y.shape, seed=1), is_grads_batched=True)
        if name == "batch norm":  # which torch.func refuses: it moves running statistics
            return several
        by_func = torch.func.vmap(lambda v: torch.func.vjp(layer(home), leaf.detach())[1](v)[0])
        return [*several, by_func(drawn(3, *y.shape))]

    for mine, other in zip(gradients(ours), gradients(theirs), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5)


def test_where_counts_cannot_be_had_nothing_is_written_over(monkeypatch):
    def none(t, storage):
        raise AttributeError("_use_count")

    monkeypatch.setattr(spare, "holders", none)
    monkeypatch.setattr(spare, "alone", spare.alone.__wrapped__)
    assert spare.alone() == spare.NOBODY
    leaf = drawn(COUNT).requires_grad_()
    (ours.relu(leaf * 1) * drawn(COUNT, seed=1)).sum().backward()
    assert leaf.grad is not None


def test_a_small_one_is_not_asked_about(written, monkeypatch):
    monkeypatch.setattr(faces, "LARGE", 1 << 15)
    leaf = drawn(100).requires_grad_()
    (ours.relu(leaf * 1) * drawn(100, seed=1)).sum().backward()
    assert written == []


# --- a pile -----------------------------------------------------------------------------------


def test_a_pile_gives_what_nothing_holds():
    pile = spare.Pile()
    t = drawn(COUNT)
    place = t.data_ptr()
    pile.add(t)
    assert pile.take(t.shape, t.dtype, t.stride(), exactly=True) is None  # t is still here
    view = t[1:]
    shape = t.shape
    del t
    assert pile.take(shape, torch.float32, (1,), exactly=True) is None
    del view
    assert pile.take((COUNT // 3,), torch.float32, (1,), exactly=False) is None  # less than half
    assert pile.take((COUNT - 1,), torch.float32, (1,), exactly=True) is None
    found = pile.take((5, COUNT // 5 - 1), torch.float32, (), exactly=False)
    assert found.data_ptr() == place and found.is_contiguous()
    assert pile.take(shape, torch.float32, (1,), exactly=True) is None  # given away


def test_a_pile_keeps_few():
    pile = spare.Pile()
    for i in range(5):
        pile.add(drawn(COUNT + i))
    sizes = [COUNT + i for i in range(5)]
    found = [pile.take((n,), torch.float32, (1,), exactly=True) is not None for n in sizes]
    assert found == [False, False, False, True, True]
