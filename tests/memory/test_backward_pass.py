"""What a backward pass leaves behind when it has ended, was partial or raised; and a graph that is dropped."""

import functools
import gc
import threading
import weakref

import pytest
import torch
from recorded import Block, inputs, pair_of
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from manualnn import RecomputationError, convert
from manualnn.conversion.calls import Calls
from manualnn.conversion.model import observing
from manualnn.memory import Recorder
from manualnn.memory.backward_pass import BackwardPass
from manualnn.memory.decision import LeastBytes
from manualnn.tools.ledgers.live import Live


class TwoHeads(nn.Module):
    """Two layers save the same activation, so backward shares what it recomputes between them."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Linear(6, 16), nn.LayerNorm(16)
        self.heads = nn.ModuleList(nn.Linear(16, 3) for _ in range(2))

    def forward(self, x):
        h = F.silu(self.norm(self.first(x)))
        return [head(h) for head in self.heads]


def recomputations(call):
    """How often silu ran while ``call`` did."""
    found = []

    class Counts(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            found.append(func is torch.ops.aten.silu.default)
            return func(*args, **(kwargs or {}))

    with Counts():
        call()
    return sum(found)


def held(model, loss):
    live = Live([*model.parameters(), *model.buffers()])
    with live:
        loss = loss()
        gc.collect()
        return live.now(), loss


def test_a_pass_of_a_part_of_the_graph_holds_nothing_when_it_has_ended():
    """One head asks, the other does not: what was recomputed for both does not wait for the other."""
    model, x = convert(TwoHeads()), inputs(512, 6, dtype=torch.float32)
    live = Live([*model.parameters(), *model.buffers(), x])
    with live:
        first, second = model(x)
        gc.collect()
        before = live.now()
        torch.autograd.grad(first.sum(), model.heads[0].weight, retain_graph=True)
        gc.collect()
        assert live.now() == before
        torch.autograd.grad(second.sum(), model.heads[1].weight)


def test_a_pass_after_one_of_a_part_of_the_graph_shares_and_releases_as_any():
    model, x = convert(TwoHeads()), inputs(512, 6, dtype=torch.float32)
    live = Live([*model.parameters(), *model.buffers(), x])
    with live:
        first, second = model(x)
        parameters = list(model.parameters())

        def whole():
            torch.autograd.grad((first + second).sum(), parameters, retain_graph=True)

        whole()
        gc.collect()
        before = live.now()
        torch.autograd.grad(first.sum(), model.heads[0].weight, retain_graph=True)
        assert recomputations(whole) == 1
        gc.collect()
        assert live.now() == before


class Fails(torch.autograd.Function):
    armed = False

    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, dz):
        if Fails.armed:
            raise ValueError("here")
        return dz


def test_an_exception_in_backward_leaves_no_tensor_and_no_wrong_count():
    model, x = convert(TwoHeads()), inputs(512, 6, dtype=torch.float32)
    live = Live([*model.parameters(), *model.buffers(), x])
    with live:
        first, second = model(x)
        loss, parameters = (first + second).sum(), list(model.parameters())
        gc.collect()
        before = live.now()

        def fail(_):
            raise ValueError("here")

        # Backward comes here after the second head has asked, and before the first one does.
        hook = first.register_hook(fail)
        with pytest.raises(ValueError, match="here"):
            torch.autograd.grad(loss, parameters, retain_graph=True)
        hook.remove()
        gc.collect()
        assert live.now() == before
        for _ in range(2):
            whole = functools.partial(torch.autograd.grad, loss, parameters, retain_graph=True)
            assert recomputations(whole) == 1
        gc.collect()
        assert live.now() == before


def test_to_look_at_what_a_node_has_saved_changes_no_count():
    model, x = convert(TwoHeads()), inputs(512, 6, dtype=torch.float32)
    first, second = model(x)
    first.grad_fn.saved_tensors  # noqa: B018
    parameters = list(model.parameters())
    loss = (first + second).sum()
    assert recomputations(lambda: torch.autograd.grad(loss, parameters)) == 1


@pytest.fixture
def compared_as_on_a_gpu(monkeypatch):
    """There a comparison would wait for the GPU, so it is made when backward ends."""
    compare = BackwardPass.compare

    def later(backward, now, before, dtype, error):
        compare(backward, torch.tensor(now), torch.tensor(before), dtype, error)

    monkeypatch.setattr(BackwardPass, "compare", later)


class Reached(Block):
    """Lets a test reach what its recipes are made of."""

    def forward(self, x):
        h = self.first(x)
        self.reached = h.detach()
        return self.last(F.relu(self.norm(h)))


def negate_unseen(t):
    with torch._C.DisableTorchFunction():
        t.data.mul_(-1)


def test_a_mismatch_after_a_pass_that_raised_is_seen_on_a_gpu(compared_as_on_a_gpu):
    """The comparisons of a pass that raised are never looked at; those of the next pass must be."""
    model, _ = pair_of(Reached(None))
    Fails.armed = True
    out = model(Fails.apply(inputs().requires_grad_()))
    with pytest.raises(ValueError, match="here"):
        out.sum().backward()
    Fails.armed = False
    out = model(inputs())
    negate_unseen(model.reached)
    with pytest.raises(RecomputationError):
        out.sum().backward()


def test_a_mismatch_is_seen_where_another_thread_ends_the_pass(compared_as_on_a_gpu):
    """On a GPU the nodes run in a thread of their own, and another one may end the pass."""
    model, _ = pair_of(Reached(None))
    out = model(inputs())
    negate_unseen(model.reached)
    passes, end = [], BackwardPass.end

    def note(backward):
        passes.append(backward)

    BackwardPass.end = note
    try:
        out.sum().backward()
    finally:
        BackwardPass.end = end
    errors = []

    def work():
        try:
            passes[0].end()
        except RecomputationError as error:
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert errors


def test_a_pass_that_has_ended_is_freed():
    """Autograd holds it while it runs, and nothing else does."""
    model, passes = convert(TwoHeads()), []
    original = BackwardPass.tensor_of

    def tensor_of(backward, value, fresh):
        passes.append(weakref.ref(backward))
        return original(backward, value, fresh)

    BackwardPass.tensor_of = tensor_of
    gc.disable()
    try:
        for fail in (False, True):
            Fails.armed = fail
            x = Fails.apply(inputs(dtype=torch.float32).requires_grad_())
            first, second = model(x)
            try:
                (first + second).sum().backward()
            except ValueError:
                assert fail
            assert passes and all(found() is None for found in passes)
            passes.clear()
    finally:
        BackwardPass.tensor_of = original
        gc.enable()


# --- forward ---------------------------------------------------------------------------------------


class Inner(Block):
    """A graph that is dropped in the middle of forward, as where forces are derivatives of an energy."""

    def __init__(self, drop):
        super().__init__(None)
        self.act, self.drop = nn.SiLU(inplace=True), drop
        self.freed = []

    def inner(self, x):
        z = self.first(x)
        h = F.relu(self.norm(z)) * 2
        out = self.last(self.act(h + 1))
        self.freed.append(StorageWeakRef(z.untyped_storage()))
        return self.drop(out, x)

    def forward(self, x):
        with torch.enable_grad():
            for _ in range(3):
                self.inner(x)
                self.expired = [storage.expired() for storage in self.freed]
                assert all(self.expired)
        return self.last(F.relu(self.norm(self.first(x))))


def just_dropped(out, x):
    pass


def derivative_taken(out, x):
    return torch.autograd.grad(out.sum(), x)[0]


@pytest.mark.parametrize("drop", [just_dropped, derivative_taken])
def test_a_graph_that_is_dropped_in_forward_is_freed_at_once(drop):
    for model in pair_of(Inner(drop)):
        gc.disable()
        try:
            model(inputs().requires_grad_())
            assert len(model.expired) == 3
        finally:
            gc.enable()
            model.freed.clear()


def test_what_a_dropped_graph_had_saved_is_not_taken_for_saved():
    """The memory is free, and may be another tensor's: as much is saved as without the dropped graph."""

    class Drops(Block):
        times = 0

        def forward(self, x):
            for _ in range(self.times):
                self.first(x).exp().sin().exp()  # all of which autograd saves
            return self.last(F.relu(self.norm(self.first(x))))

    bytes_held = []
    for times in (0, 5):
        model = convert(Drops(None))
        model.times, x = times, inputs(4096, 6, dtype=torch.float32)
        bytes_held.append(held(model, lambda model=model, x=x: model(x).sum())[0])
    assert bytes_held[0] == bytes_held[1]


def test_memory_that_was_handed_out_and_is_free_again_is_not_handed_out():
    """Another tensor that has its address is recomputed, as where nothing was handed out."""

    class Shows(Block):
        show = staticmethod(lambda t: None)

        def forward(self, x):
            for _ in range(5):
                z = self.first(x)
                self.show([z.detach(), z.detach().exp(), z.detach().sin(), z.detach().cos()])
                del z
            return self.last(F.relu(self.norm(self.first(x)) * 2))

    bytes_held = []
    for show in (Shows.show, lambda tensors: [t.numpy().sum() for t in tensors]):
        model = convert(Shows(None))
        model.show, x = show, inputs(4096, 6, dtype=torch.float32)
        bytes_held.append(held(model, lambda model=model, x=x: model(x).sum())[0])
    assert bytes_held[0] == bytes_held[1]


def test_an_op_that_raises_in_forward_has_saved_nothing():
    """torch's product saves its operands before it refuses them: autograd forgets that, and so must we."""

    class Tries(Block):
        def forward(self, x):
            h = self.first(x)
            try:
                torch.mm(h, h)
            except RuntimeError:
                pass
            return h, self.last(F.relu(h * 2))

    results = []
    for model in pair_of(Tries(None)):
        h, out = model(inputs())
        with torch.no_grad():
            h.mul_(-1)
        results.append(torch.autograd.grad(out.sum(), model.last.weight))
    assert all(map(torch.equal, *results))


# --- recipes ---------------------------------------------------------------------------------------


def recorded(middle):
    """The values that backward recomputes of a block with ``middle``."""
    found = []
    with observing(lambda packed, op: found.append(packed.value)):
        convert(Block(middle))(inputs(dtype=torch.float32))
    return [value for value in found if value is not None]


def test_a_recipe_cannot_be_changed():
    recipe = recorded(lambda self, h: F.silu(h))[0].recipe
    with pytest.raises(AttributeError):
        recipe.op = "another"


def test_the_cost_of_a_recipe_is_what_it_reads_and_writes():
    """(12, 16) in float32 is 768 bytes, and of the norm's statistics and parameters each is 64."""
    values = recorded(lambda self, h: F.silu(h).t().t())
    view = next(value.recipe for value in values if value.recipe.is_view)
    (transposed,) = view.sources
    (silu,) = transposed.recipe.sources
    (norm,) = silu.sources
    assert (view.cost, transposed.recipe.cost, silu.recipe.cost) == (0, 0, 2 * 768)
    constants = len(norm.sources) - 1
    assert norm.recipe.cost == 2 * 768 + constants * 64
    assert [value.depth for value in (norm, silu, transposed)] == [1, 2, 3] and view.depth == 4


def test_another_decision_takes_the_place_of_the_default():
    """One that recomputes nothing: every tensor is saved."""

    class SaveAll(LeastBytes):
        def values_to_save(self, value):
            return None

    model, x = Block(lambda self, h: F.silu(h)), inputs(dtype=torch.float32)
    convert(model, keep="all")
    dropped = []
    for decision in (None, SaveAll()):
        packed = []
        recorder = Recorder(
            model,
            saved_later=set(),
            observer=lambda p, op, packed=packed: packed.append(p),
            decision=decision,
        )
        with recorder.recording(), Calls(recorder):
            model(x)
        dropped.append(sum(p.value is not None for p in packed))
    assert dropped[0] > dropped[1] == 0


def test_one_observer_inside_another():
    seen = {"outer": 0, "inner": 0}

    def count(name):
        return lambda packed, op: seen.update({name: seen[name] + 1})

    model, x = convert(Block(lambda self, h: F.silu(h))), inputs(dtype=torch.float32)
    with observing(count("outer")):
        with observing(count("inner")):
            model(x)
        model(x)
    assert seen["outer"] == seen["inner"] > 0
