"""What a converted model saves for backward: less, with exactly the same results, and nothing stale."""

import copy
import gc
import pickle

import pytest
import torch
from small_models import (
    MODELS,
    Inverted,
    Residual,
    Transformer,
    assert_equal,
    assert_same_run,
    gradients,
    loss_of,
    pair,
    pictures,
    second_derivatives,
)
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from manualnn import convert, nn, revert
from manualnn.autograd.interceptor import active
from manualnn.conversion.model import is_memory_saving, original_class
from manualnn.tools.ledgers.live import Live

each_model = pytest.mark.parametrize("cls", MODELS, ids=lambda cls: cls.__name__)


def held(model, x):
    live = Live([*model.parameters(), *model.buffers(), x])
    with live:
        loss = loss_of(model(x))
        gc.collect()
        return live.now(), loss


@each_model
def test_the_same_to_the_last_bit(cls):
    ours, theirs = pair(cls)
    assert_same_run(ours, theirs, pictures())
    for mine, other in zip(ours.buffers(), theirs.buffers(), strict=True):
        assert torch.equal(mine, other)


@each_model
def test_the_same_in_float64(cls):
    ours, theirs = pair(cls, torch.float64)
    x = pictures(dtype=torch.float64)
    if cls is not Inverted:
        assert_same_run(ours, theirs, x)
        return
    # torch's hardsigmoid and hardswish multiply by a 1/6 that is rounded to float32; ours do not.
    for a, b in zip(gradients(ours, x)[1], gradients(theirs, x)[1], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


@each_model
def test_channels_last(cls):
    ours, theirs = pair(cls)
    x = pictures().to(memory_format=torch.channels_last)
    ours, theirs = (
        ours.to(memory_format=torch.channels_last),
        theirs.to(memory_format=torch.channels_last),
    )
    assert_same_run(ours, theirs, x)


# Of the transformer's bytes the attention matrices are a good part, and one tensor each with torch too.
MOST = [0.60, 0.55, 0.45, 0.60, 0.76]


@pytest.mark.parametrize(
    "cls, most",
    zip(MODELS, MOST, strict=True),
    ids=lambda v: v.__name__ if isinstance(v, type) else "",
)
def test_saves_less(cls, most):
    """So little that one missing recipe would show."""
    ours, theirs = pair(cls)
    x = pictures(16)
    mine, other = held(ours, x)[0], held(theirs, x)[0]
    everything = held(convert(copy.deepcopy(theirs), keep="all"), x)[0]
    assert mine <= most * other, f"{mine / other:.3f}"
    assert mine < 0.9 * everything


@each_model
def test_trained_the_same(cls):
    ours, theirs = pair(cls)
    for model in (ours, theirs):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        for step in range(5):
            torch.manual_seed(step)
            optimizer.zero_grad()
            F.cross_entropy(model(pictures(seed=step)), torch.tensor([0, 1, 2, 3])).backward()
            optimizer.step()
    assert_equal(ours.state_dict().values(), theirs.state_dict().values())


@each_model
def test_backward_twice(cls):
    ours, theirs = pair(cls)
    x = pictures()
    torch.manual_seed(0)
    loss = loss_of(ours(x))
    wrt = list(ours.parameters())
    first = torch.autograd.grad(loss, wrt, retain_graph=True)
    second = torch.autograd.grad(loss, wrt, retain_graph=True)
    third = torch.autograd.grad(loss, wrt)
    assert_equal(first, second)
    assert_equal(first, third)
    torch.manual_seed(0)
    assert_equal(first, torch.autograd.grad(loss_of(theirs(x)), list(theirs.parameters())))


@each_model
def test_partial_backwards_in_any_order(cls):
    """Each parameter's gradient alone, the graph retained: the first that asks has a value recomputed."""
    ours, theirs = pair(cls)
    x = pictures()
    torch.manual_seed(0)
    loss, wrt = loss_of(ours(x)), list(ours.parameters())
    torch.manual_seed(0)
    whole = torch.autograd.grad(loss_of(theirs(x)), list(theirs.parameters()))
    order = torch.randperm(len(wrt)).tolist()
    for i in order:
        (grad,) = torch.autograd.grad(loss, wrt[i], retain_graph=True)
        assert torch.equal(grad, whole[i])


@each_model
def test_double_backward(cls):
    """Through batch statistics too, and through everything that is recomputed."""
    ours, theirs = pair(cls, torch.float64)
    x = pictures(dtype=torch.float64)
    close = 1e-9
    if cls in (
        Inverted,
        Transformer,
    ):  # torch has no second derivative of hardsigmoid, flash attention
        theirs = convert(theirs, keep="all")
    for a, b in zip(second_derivatives(ours, x), second_derivatives(theirs, x), strict=True):
        torch.testing.assert_close(a, b, rtol=close, atol=close * max(1.0, float(b.abs().max())))


@each_model
def test_evaluation(cls):
    ours, theirs = pair(cls)
    assert_same_run(ours.eval(), theirs.eval(), pictures())
    for without in (torch.no_grad, torch.inference_mode):
        outs = []
        for model in (ours, theirs):
            torch.manual_seed(0)
            with without():
                outs.append(model(pictures()))
        assert torch.equal(*outs)


@each_model
@pytest.mark.parametrize("every", [1, 2], ids=["all but the head", "every other"])
def test_frozen(cls, every):
    ours, theirs = pair(cls)
    for model in (ours, theirs):
        for i, (name, p) in enumerate(model.named_parameters()):
            p.requires_grad_(name.startswith("head") or (every == 2 and i % 2 == 0))
    x = pictures()
    torch.manual_seed(0)
    loss = loss_of(ours(x))
    torch.manual_seed(0)
    ref = loss_of(theirs(x))
    wrt = [[p for p in m.parameters() if p.requires_grad] for m in (ours, theirs)]
    assert_equal(torch.autograd.grad(loss, wrt[0]), torch.autograd.grad(ref, wrt[1]))
    if every == 1:  # nothing but the head's input
        assert held(ours, x)[0] <= held(theirs, x)[0] < 4000


@each_model
def test_autocast(cls):
    ours, theirs = pair(cls, torch.float32)
    results = []
    for model in (ours, theirs):
        x = pictures(dtype=torch.float32).requires_grad_()
        torch.manual_seed(0)
        with torch.autocast("cpu", torch.bfloat16):
            out = model(x)
        grads = torch.autograd.grad(loss_of(out.float()), [*model.parameters(), x])
        results.append([out, *grads])
    assert_equal(*results)
    x = pictures(16, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        mine, other = held(ours, x)[0], held(theirs, x)[0]
    assert mine < 0.75 * other


def test_backward_inside_autocast():
    ours, theirs = pair(Residual, torch.float32)
    results = []
    for model in (ours, theirs):
        with torch.autocast("cpu", torch.bfloat16):
            loss_of(model(pictures(dtype=torch.float32)).float()).backward()
        results.append([p.grad for p in model.parameters()])
    assert_equal(*results)


@each_model
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoint_around_the_model(cls, reentrant):
    ours, theirs = pair(cls)

    def run(model, x):
        return checkpoint(model, x, use_reentrant=reentrant)

    out = []
    for model in (ours, theirs):
        torch.manual_seed(0)
        x = pictures().requires_grad_()
        loss_of(run(model, x)).backward()
        out.append([p.grad for p in model.parameters()])
    assert_equal(*out)


def test_checkpoint_inside_the_model_saves_no_more_than_without_convert():
    class Inside(Residual):
        def forward(self, x):
            x = self.stem(x)
            for block in self.blocks:
                x = checkpoint(block, x, use_reentrant=False)
            return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))

    ours, theirs = pair(Inside)
    assert_same_run(ours, theirs, pictures())
    x = pictures(16)
    assert held(ours, x)[0] <= held(theirs, x)[0]


def test_hooks_that_save_elsewhere_get_what_torch_would_save():
    ours, theirs = pair(Residual)
    seen = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: seen.append(t.shape) or t, lambda t: t):
        out, grads = gradients(ours, pictures())
    assert len(seen) > 20
    assert_equal(grads, gradients(theirs, pictures())[1])
    with torch.autograd.graph.save_on_cpu():
        assert_equal(gradients(ours, pictures())[1], grads)


@each_model
@pytest.mark.one_in(3)
def test_compiled(cls):
    torch.compiler.reset()
    ours, theirs = pair(cls)
    compiled = torch.compile(ours, backend="aot_eager", fullgraph=True)
    x = pictures()
    ours.eval(), theirs.eval()  # random numbers of a compiled program are its own
    out, grads = gradients(compiled, x)
    ref, ref_grads = gradients(theirs, x)
    torch.testing.assert_close(out, ref, rtol=1e-4, atol=1e-5)
    for a, b in zip(grads, ref_grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@each_model
def test_torch_func(cls):
    ours, theirs = pair(cls)
    ours.eval(), theirs.eval()
    x = pictures()

    def per_sample(model):
        state = {k: v.detach() for k, v in model.named_parameters()}

        def loss(state, x):
            return loss_of(torch.func.functional_call(model, state, (x[None],)))

        return torch.func.vmap(torch.func.grad(loss), (None, 0), randomness="same")(state, x)

    mine, other = per_sample(ours), per_sample(theirs)
    for name, value in other.items():
        torch.testing.assert_close(mine[name], value, rtol=1e-4, atol=1e-5)


def test_a_model_called_twice_in_one_graph():
    ours, theirs = pair(Residual)

    def twice(model):
        return loss_of(model(pictures(seed=1))) + loss_of(model(pictures(seed=2)))

    grads = [torch.autograd.grad(twice(m), list(m.parameters())) for m in (ours, theirs)]
    assert_equal(*grads)


def test_a_converted_model_inside_another():
    class Outer(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner, self.head = inner, torch.nn.Linear(5, 2)

        def forward(self, x):
            return self.head(self.inner(x).relu())

    ours, theirs = pair(Residual)
    torch.manual_seed(0)
    outer = Outer(theirs)
    mine = copy.deepcopy(outer)
    mine.inner = ours
    convert(mine)
    assert is_memory_saving(type(mine)) and is_memory_saving(type(mine.inner))
    assert_same_run(mine, outer, pictures())


def test_model_of_a_million_sums():
    """A chain of recipes that is longer than Python's stack allows is cut."""

    class Deep(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = torch.nn.Conv2d(3, 3, 1), torch.nn.BatchNorm2d(3)
            self.last = torch.nn.Conv2d(3, 1, 1)

        def forward(self, x):
            y = self.norm(self.conv(x))
            for _ in range(2000):
                y = y + y.sigmoid() * 1e-3
            return self.last(y)

    torch.manual_seed(0)
    theirs = Deep()
    assert_same_run(convert(copy.deepcopy(theirs)), theirs, pictures(2))


def test_recomputed_at_most_once():
    """Forward kernels run again in backward: each norm and activation one time, no product at all."""
    calls = []

    class Counted(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            calls.append(func._schema.name.partition("::")[2])
            return func(*args, **(kwargs or {}))

    ours, _ = pair(Residual)
    norms = sum(isinstance(m, torch.nn.BatchNorm2d) for m in ours.modules())
    loss = loss_of(ours(pictures()))
    with Counted():
        loss.backward()
    assert calls.count("native_batch_norm") <= norms
    assert calls.count("relu") <= 13  # three a block and the stem's
    assert not {"convolution", "addmm", "mm", "linear"} & set(calls) - {"mm"}
    assert calls.count("mm") <= 2  # the head's two gradients


@pytest.mark.parametrize("whole", [True, False], ids=["after backward", "a graph that is dropped"])
def test_nothing_is_left(whole):
    """At once, not when the garbage collector comes: nothing of ours stands in a cycle."""
    ours, _ = pair(Residual)
    gc.collect()
    gc.disable()
    try:
        live = Live([*ours.parameters(), *ours.buffers()])
        with live:
            loss = loss_of(ours(pictures()))
            if whole:
                loss.backward()
            else:
                torch.autograd.grad(loss, ours.head.weight, retain_graph=True)
            del loss
            for p in ours.parameters():
                p.grad = None
            assert live.now() == 0
    finally:
        gc.enable()


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_exception_ends_the_recording(error):
    ours, theirs = pair(Residual)

    def fail(*_):
        raise error("here")

    handle = ours.blocks[1].register_forward_hook(fail)
    with pytest.raises(error):
        ours(pictures())
    handle.remove()
    assert active() is None
    assert torch._C._autograd._top_saved_tensors_default_hooks(True) is None
    assert torch._C._len_torch_function_stack() == 0
    assert_same_run(ours, theirs, pictures())


def test_copies_pickles_and_state():
    ours, theirs = pair(Residual)
    for other in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert type(other) is type(ours)
        assert_same_run(other, theirs, pictures())
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    assert repr(revert(ours)) == repr(theirs) and type(ours) is Residual
    assert original_class(type(convert(ours))) is Residual
    assert type(convert(ours, keep="all")) is Residual
    with pytest.raises(ValueError, match='keep must be "less" or "all", not .half.'):
        convert(ours, keep="half")


def test_threads_do_not_see_each_other():
    from concurrent.futures import ThreadPoolExecutor

    ours, theirs = pair(Residual)
    ours.eval(), theirs.eval()
    expected = [gradients(theirs, pictures(seed=i))[1] for i in range(4)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda i: gradients(ours, pictures(seed=i))[1], range(4)))
    for a, b in zip(found, expected, strict=True):
        assert_equal(a, b)


def test_the_model_returns_plain_tensors():
    ours, _ = pair(Residual)
    out = ours(pictures())
    assert type(out) is torch.Tensor and not vars(out)
    copy.deepcopy(out.detach())


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_tensors_without_memory():
    from torch._subclasses.fake_tensor import FakeTensorMode

    ours, _ = pair(Residual)
    assert ours.to("meta")(torch.empty(2, 3, 8, 8, device="meta")).shape == (2, 5)
    with FakeTensorMode():
        made = convert(Residual())
        assert made(torch.randn(2, 3, 8, 8)).shape == (2, 5)


def test_a_subclass_of_tensor():
    class Named(torch.Tensor):
        pass

    ours, theirs = pair(Residual)
    grads = []
    for model in (ours, theirs):
        loss_of(model(pictures().as_subclass(Named)).as_subclass(torch.Tensor)).backward()
        grads.append([p.grad for p in model.parameters()])
    assert_equal(*grads)


def test_layers_alone_are_not_recorded():
    assert not is_memory_saving(type(convert(torch.nn.Conv2d(3, 4, 3))))
    assert type(convert(torch.nn.ReLU())) is nn.ReLU


def test_what_several_ask_for_is_recomputed_once():
    """The pooled features stand in every concatenation after them, and no layer saves them."""

    class Pooled(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.pool = torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.MaxPool2d(2)
            self.layers = torch.nn.ModuleList(
                torch.nn.Sequential(torch.nn.BatchNorm2d(c), torch.nn.Conv2d(c, 8, 3, padding=1))
                for c in (8, 16, 24)
            )

        def forward(self, x):
            found = [self.pool(self.stem(x).relu())]
            for layer in self.layers:
                found.append(layer(torch.cat(found, 1)))
            return torch.cat(found, 1)

    model = convert(Pooled())
    loss = loss_of(model(pictures()))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        for _ in range(2):
            loss.backward(retain_graph=True)
    counts = {event.key: event.count for event in profile.key_averages()}
    assert counts["aten::max_pool2d_with_indices"] == 2  # once in each backward
