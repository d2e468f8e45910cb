"""A forward pass that is recorded does not disturb other code that is at work in it, nor is it disturbed."""

import sys
import threading

import numpy
import pytest
import torch
from fuzzing.helpers import OwnInput
from recorded import Block, assert_same, inputs, pair_of, run
from torch import nn
from torch.autograd import forward_ad
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import CheckpointError, checkpoint

from manualnn import convert

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")


@pytest.fixture
def nothing_compiled_before():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


# --- Compiled parts -----------------------------------------------------------------------------------


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        return self.relu(self.norm(self.conv(x)) + x)


def scaled(t):
    return F.relu(t * 2 + 1)


class CompiledFunction(nn.Module):
    def __init__(self, backend):
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(6, 16), nn.LayerNorm(16), nn.Linear(16, 3)
        self.scaled = torch.compile(scaled, backend=backend)

    def forward(self, x):
        return self.last(self.scaled(self.norm(self.first(x))) + 1)


class CompiledParts(nn.Module):
    def __init__(self, backend):
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 1)
        self.blocks = nn.ModuleList(torch.compile(Residual(), backend=backend) for _ in range(2))
        self.plain = Residual()

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = self.plain(block(x))
        return self.head(x)


class CompiledInPlace(nn.Module):
    """A submodule that was compiled by its own method, and writes over what it is given."""

    def __init__(self, backend):
        super().__init__()
        self.stem, self.act, self.head = (
            nn.Conv2d(3, 4, 3),
            nn.ReLU(inplace=True),
            nn.Conv2d(4, 2, 1),
        )
        self.norm = nn.BatchNorm2d(4)
        self.act.compile(backend=backend)

    def forward(self, x):
        return self.head(self.act(self.norm(self.stem(x))))


KINDS = [CompiledFunction, CompiledParts, CompiledInPlace]
# The compiler takes seconds a program, and hides what it compiles from the recorder, as the other backends do.
COMPILED = [(k, b, e) for k in KINDS for b in ("eager", "aot_eager") for e in ("less", "all")]
COMPILED += [(CompiledParts, "inductor", "less")]


@pytest.mark.parametrize(("kind", "backend", "keep"), COMPILED)
@pytest.mark.one_in(3)
def test_compiled_parts_from_the_first_call_to_the_tenth(
    kind, backend, keep, nothing_compiled_before
):
    torch.manual_seed(0)
    theirs = kind(backend).double()
    ours = convert(kind(backend).double(), keep=keep)
    ours.load_state_dict(theirs.state_dict())
    x = inputs() if kind is CompiledFunction else inputs(2, 3, 6, 6)
    for call in range(10):
        mine, other = run(ours, x * (1 + call)), run(theirs, x * (1 + call))
        for a, b in zip(mine, other, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


def test_a_part_that_the_compiler_gives_up(nothing_compiled_before):
    """Dynamo then runs it as it is and compiles what it calls. The mode that records must not be compiled."""

    class GivenUp(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.centre = nn.Linear(6, 6), torch.ones(1, 6)

        def forward(self, x):
            def part(h):
                a = (h + self.centre).tanh()
                with torch.no_grad():
                    numpy.asarray(self.centre)[...] += 0.5
                b = -a
                return b

            return torch.compile(part, backend="eager")(self.first(x))

    results = []
    for model in pair_of(GivenUp):
        x = inputs().requires_grad_()
        out = model(x)
        results.append([out, torch.autograd.grad(out.sum(), x)[0]])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_a_compiled_part_that_has_refused_its_input(nothing_compiled_before):
    """It runs as it is from then on, and the compiler must leave alone what records the pass."""

    class Part(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.norm = nn.RMSNorm(width)
            block = nn.Sequential(nn.Linear(width, width), nn.ReLU())
            self.block = torch.compile(block, backend="eager")

        def forward(self, x):
            return self.block(self.norm(x).fill_(0.3))

    results = []
    for made in (lambda m: m, convert):
        torch.manual_seed(1)
        refused, taken = made(Part(5).double()), made(Part(32).double())
        with pytest.raises(RuntimeError, match="shape|size|dim"):
            refused.block(torch.ones(9, dtype=torch.float64))
        x = torch.linspace(-1, 1, 32, dtype=torch.float64, requires_grad=True)
        first = taken(x)
        with torch.no_grad():
            second = taken(x.detach())
        results.append([first, second, *torch.autograd.grad(first.sum(), taken.block.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


# --- Transforms and forward mode inside forward ------------------------------------------------------------


def by_grad(self, h):
    return torch.func.grad(lambda t: t.tanh().sum())(h)


def by_grad_of_a_layer(self, h):
    return h + torch.func.grad(lambda t: self.last(t).square().sum())(h)


def by_jvp(self, h):
    return torch.func.jvp(torch.tanh, (h,), (torch.ones_like(h),))[1]


def by_jvp_of_a_norm_with_statistics(self, h):
    return h + torch.func.jvp(self.tracked, (h,), (torch.ones_like(h),))[1]


def by_vmap(self, h):
    return torch.func.vmap(lambda row: F.relu(row - row.mean()))(h)


def by_jacrev(self, h):
    return torch.func.vmap(torch.func.jacrev(lambda row: F.silu(row).sum()))(h)


def by_vjp_that_goes_on(self, h):
    out, pull = torch.func.vjp(F.gelu, h)
    return out + pull(torch.ones_like(out))[0]


def by_dual_numbers(self, h):
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(F.silu(forward_ad.make_dual(h, torch.ones_like(h)))).tangent


def by_autograd_grad(self, h):
    inner = h.detach().requires_grad_()
    return h * torch.autograd.grad(F.silu(inner).sum(), inner)[0]


TRANSFORMS = [v for n, v in list(globals().items()) if n.startswith("by_")]


@pytest.mark.parametrize("keep", ["less", "all"])
@pytest.mark.parametrize("middle", TRANSFORMS, ids=lambda f: f.__name__)
def test_transforms_inside_forward(middle, keep):
    block = Block(middle)
    block.tracked = nn.InstanceNorm1d(12, affine=True, track_running_stats=True)
    ours, theirs = pair_of(block, keep=keep)
    for a, b in zip(run(ours, inputs()), run(theirs, inputs()), strict=True):
        if a is not None or b is not None:
            torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


# --- Modes --------------------------------------------------------------------------------------------


class Doubled(TorchFunctionMode):
    """relu is twice what it was."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        return out * 2 if func is F.relu else out


class DoubledBelow(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        return out * 2 if func is torch.ops.aten.relu.default else out


MODES = [Doubled, DoubledBelow]


@pytest.mark.parametrize("mode", MODES)
def test_a_mode_inside_forward(mode):
    def middle(self, h):
        with mode():
            y = F.relu(h)
        return F.relu(y - 0.1)

    assert_same(Block(middle))


@pytest.mark.parametrize("mode", MODES)
def test_a_mode_around_forward(mode):
    ours, theirs = pair_of(Block(lambda self, h: F.relu(h) - 0.1))
    results = []
    for model in (ours, theirs):
        with mode():
            out = model(inputs())
        results.append([out, *torch.autograd.grad(out.sum(), list(model.parameters()))])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("mode", MODES)
def test_a_mode_around_backward(mode):
    """torch's own backward calls no relu, so neither mode has anything to double."""
    ours, theirs = pair_of(Block(lambda self, h: F.relu(h) - 0.1))
    results = []
    for model in (ours, theirs):
        out = model(inputs())
        with mode():
            results.append(torch.autograd.grad(out.sum(), list(model.parameters())))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_a_default_device_is_no_reason_to_save_more():
    from manualnn.tools.ledgers.live import measure

    ours, _ = pair_of(Block(lambda self, h: F.relu(h)))
    alone = measure(ours, inputs()).retained
    ours.zero_grad(set_to_none=True)
    with torch.device("cpu"):
        assert measure(ours, inputs()).retained == alone


# --- Others that save tensors ---------------------------------------------------------------------------


def with_hooks(self, h):
    packed = []

    def pack(t):
        packed.append(t)
        return t.detach().numpy().copy()

    with saved_tensors_hooks(pack, torch.from_numpy):
        y = F.gelu(self.norm(h) * 2)
    assert packed
    return F.relu(y)


def with_save_on_cpu(self, h):
    with save_on_cpu():
        y = F.silu(h)
    return F.relu(y)


def with_checkpoint(self, h):
    return F.relu(checkpoint(lambda t: F.silu(self.norm(t)), h, use_reentrant=False))


def with_a_function_of_the_user(self, h):
    return F.relu(OwnInput.apply(F.relu(h)) + h)


class SavesAndWrites(torch.autograd.Function):
    @staticmethod
    def forward(ctx, z):
        ctx.mark_dirty(z)
        return z.mul_(2)

    @staticmethod
    def backward(ctx, da):
        return 2 * da


def with_a_function_that_writes(self, h):
    y = h + 1
    return F.relu(SavesAndWrites.apply(y) + F.silu(h))


WITH = [v for n, v in list(globals().items()) if n.startswith("with_")]


@pytest.mark.parametrize("keep", ["less", "all"])
@pytest.mark.parametrize("middle", WITH, ids=lambda f: f.__name__)
def test_others_that_save_tensors(middle, keep):
    assert_same(Block(middle), calls=2, keep=keep)


def test_what_a_function_of_the_user_saves_and_then_changes_is_refused_as_torch_does():
    def middle(self, h):
        h = h * 1
        h += OwnInput.apply(h)
        return h

    for model in pair_of(Block(middle)):
        assert "modified by an inplace operation" in str(run(model, inputs()))


@pytest.mark.parametrize("keep", ["less", "all"])
def test_a_reentrant_checkpoint(keep):
    def middle(self, h):
        return F.relu(checkpoint(lambda t: F.silu(self.norm(t)) * 2, h, use_reentrant=True))

    results = []
    for model in pair_of(Block(middle), keep=keep):
        model(inputs()).square().sum().backward()
        results.append([p.grad for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_a_checkpoint_that_must_raise_raises():
    """Its second run differs from its first; to go on would give the numbers of neither."""

    class Changing(Block):
        calls = 0

        def part(self, t):
            self.calls += 1
            return F.silu(t) if self.calls % 2 else torch.tanh(t[:3]).sum() + t

        def forward(self, x):
            h = self.norm(self.first(x))
            return self.last(checkpoint(self.part, h, use_reentrant=False))

    for model in pair_of(Changing(None)):
        with pytest.raises(CheckpointError):
            model(inputs()).sum().backward()


# --- torch.jit, threads ------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["trace", "script"])
def test_parts_of_torch_jit(how):
    class Part(nn.Module):
        def forward(self, h):
            return torch.relu(h * 2 + 1)

    part = Part()
    made = torch.jit.trace(part, inputs(12, 16)) if how == "trace" else torch.jit.script(part)

    class Model(Block):
        def forward(self, x):
            return self.last(F.silu(self.part(self.norm(self.first(x)))))

    def build():
        torch.manual_seed(0)
        model = Model(None).double()
        model.part = made
        return model

    ours, theirs = convert(build()), build()
    for _ in range(3):
        for a, b in zip(run(ours, inputs()), run(theirs, inputs()), strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("keep", ["less", "all"])
def test_a_converted_model_can_be_traced(keep):
    ours, theirs = pair_of(Block(lambda self, h: F.relu(h)), keep=keep)
    x, other = inputs(), inputs() * 3
    traced = torch.jit.trace(ours.eval(), x)
    assert torch.equal(traced(other), theirs.eval()(other))


def test_threads_started_inside_forward():
    def middle(self, h):
        results = [None, None]

        def work(i):
            results[i] = F.silu(h * (i + 1))

        threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return F.relu(results[0] + results[1])

    assert_same(Block(middle), calls=3)


def test_backward_in_a_thread_of_its_own():
    ours, theirs = pair_of(Block(lambda self, h: F.relu(h)))
    results = []
    for model in (ours, theirs):
        out = model(inputs())

        def work(out=out, model=model):
            results.append(torch.autograd.grad(out.sum(), list(model.parameters())))

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


class TwoHeads(nn.Module):
    def __init__(self, width=64):
        super().__init__()
        self.first, self.norm = nn.Linear(width, width), nn.LayerNorm(width)
        self.heads = nn.ModuleList(nn.Linear(width, 2) for _ in range(2))

    def forward(self, x):
        h = self.norm(self.first(x)) * 1.5 + 0.25
        g = h * 0.7 - 0.1
        return self.heads[0](torch.sigmoid(g)), self.heads[1](torch.tanh(g))


@pytest.mark.parametrize("verify", [True, False])
def test_two_threads_go_back_through_one_graph(verify):
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    ours, theirs = pair_of(TwoHeads, verify=verify)
    x = inputs(2000, 64)

    def gradients(model):
        outs, found = model(x), {}
        barrier = threading.Barrier(2)

        def back(i):
            barrier.wait()
            parameters = [*model.first.parameters(), *model.norm.parameters()]
            total = outs[i].square().sum()
            found[i] = torch.autograd.grad(total, parameters, retain_graph=True)

        threads = [threading.Thread(target=back, args=(i,)) for i in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return [*found[0], *found[1]]

    try:
        expected = gradients(theirs)
        for _ in range(40):
            assert all(torch.equal(a, b) for a, b in zip(gradients(ours), expected, strict=True))
    finally:
        sys.setswitchinterval(interval)
