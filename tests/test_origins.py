"""What a converted model keeps: less, exactly the same results, and nothing that could be stale."""

import copy
import gc
import pickle

import pytest
import torch
from small_models import MODELS, Inverted, Residual, Transformer, gradients, loss_of, pair, pictures
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from manualnn import convert, nn, revert
from manualnn.cache import active
from manualnn.convert.model import is_sparing, plain
from manualnn.ledger.live import Live

each_model = pytest.mark.parametrize("cls", MODELS, ids=lambda cls: cls.__name__)


def assert_equal(mine, other):
    for a, b in zip(mine, other, strict=True):
        assert (a is None) == (b is None)
        assert a is None or (torch.equal(a, b) and a.dtype == b.dtype)


def assert_same_run(ours, theirs, x, **options):
    out, grads = gradients(ours, x, **options)
    ref, ref_grads = gradients(theirs, x, **options)
    assert torch.equal(out, ref)
    assert_equal(grads, ref_grads)
    return out, grads


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
def test_keeps_less(cls, most):
    """So little that a lost origin anywhere would show."""
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
    """Each parameter's gradient alone, the graph retained: whoever asks first has it made."""
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


def second_derivatives(model, x):
    x = x.detach().clone().requires_grad_()
    torch.manual_seed(0)
    wrt = [*model.parameters(), x]
    grads = torch.autograd.grad(loss_of(model(x)), wrt, create_graph=True)
    total = sum(g.square().sum() for g in grads)
    second = torch.autograd.grad(total, wrt, allow_unused=True)
    return [torch.zeros_like(t) if g is None else g for t, g in zip(wrt, second, strict=True)]


@each_model
def test_double_backward(cls):
    """Through batch statistics too, and through everything that is made again."""
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


def test_checkpoint_inside_the_model_keeps_what_it_would():
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


# --- What could make an origin wrong ------------------------------------------------------------


class Changed(torch.nn.Module):
    """A convolution, a norm, ``change``, a convolution: what happens to the norm's output in between?"""

    def __init__(self, change):
        super().__init__()
        self.conv1, self.norm = torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8)
        self.act, self.conv2 = torch.nn.ReLU(), torch.nn.Conv2d(8, 4, 3)
        self.change = change

    def forward(self, x):
        y = self.norm(self.conv1(x))
        y = self.change(self, y)
        return self.conv2(y)


def _unseen(t, write):
    """Written over where no function mode looks."""
    with torch._C.DisableTorchFunction(), torch.no_grad():
        write(t)


def seen_in_place(self, y):
    y += 0.5
    return y


def in_place_without_history(self, y):
    with torch.no_grad():
        y.mul_(1.5)
    return y


def in_place_unseen(self, y):
    _unseen(y, lambda t: t.mul_(1.5))
    return y


def view_in_place(self, y):
    y[:, :2].mul_(3.0)
    return y


def view_in_place_unseen(self, y):
    _unseen(y[:, 1:3], lambda t: t.zero_())
    return y


def item_assigned(self, y):
    y[:, 0] = 2.0
    return y


def base_in_place(self, y):
    flat = y.flatten(1)
    with torch.no_grad():
        y.add_(1.0)
    return flat.unflatten(1, y.shape[1:])


def relu_then_in_place(self, y):
    a = self.act(y.sigmoid() * 2)
    b = a * 1.0
    b.mul_(2.0)
    return b


def unknown_in_place(self, y):
    a = y * 2
    with torch.no_grad():
        a.clamp_(-0.5, 0.5)
    return a


def copied_over(self, y):
    a = y * 2
    a.copy_(y.flip(1))
    return a


def copied_over_in_part(self, y):
    a = y * 2
    a[:, :4].copy_(y[:, 4:])
    return a


def written_out(self, y):
    a = y.detach() * 3
    torch.add(y.detach(), 1.0, out=a)
    return y * a


def swapped_data(self, y):
    a = y * 2
    a.data = a.data + 1
    return a


def data_after_saving(self, y):
    a = self.act(y)  # saves its output, by its origin
    a.data.mul_(2.0)
    return a


def data_of_a_source(self, y):
    x = y * 2 + torch.ones_like(y)
    a = self.act(x + y)
    x.data.mul_(3.0)
    x.detach().numpy()[:] += 1
    return a * 2


def data_of_what_only_an_origin_keeps(self, y):
    piece = torch.full((1, 8, 1, 1), 0.5, dtype=y.dtype)
    a = self.act(self.norm(y) + piece)
    piece.data.mul_(3.0)
    return a


def scaled_by_buffer_that_moves(self, y):
    noise = torch.full((1, 8, 1, 1), 2.0, dtype=y.dtype)
    a = y * noise
    return a * noise.clone()


def piece_then_in_place(self, y):
    """The piece of a concatenation is written over: torch keeps the concatenation, so may that be."""
    p = y * 2
    joined = torch.cat([p, y], 1)
    p.add_(1.0)
    return joined[:, :8] + joined[:, 8:] + p


def several_consumers(self, y):
    a = self.act(y)
    return a * a.sigmoid() + a.tanh() * y + a


def of_another_dtype(self, y):
    return y.float().double() * y


def by_keyword_and_changed(self, y):
    """Of a sum torch keeps nothing; where a keyword hides a tensor, its sum is kept."""
    shift = torch.ones(1, 8, 1, 1, dtype=y.dtype)
    a = self.act(torch.add(y, other=shift))
    shift.fill_(9.0)
    return a


def index_that_changes(self, y):
    index = torch.tensor([3, 2, 1, 0, 7, 6, 5, 4])
    a = y[:, index]
    index.zero_()
    return a * 2


def index_select_that_changes(self, y):
    index = torch.tensor([3, 2, 1, 0, 7, 6, 5, 4])
    return y.index_select(1, index) * 2


def source_then_in_place(self, y):
    """A source that torch's sum would not keep, written over afterwards, with and without a history."""
    small = torch.full((1, 8, 1, 1), 0.5, dtype=y.dtype)
    weighted = self.norm(y) + small
    small.mul_(3.0)
    piece = torch.ones(4, 8, 1, 1, dtype=y.dtype)
    a = self.act(weighted + piece)
    with torch.no_grad():
        piece.zero_()
    return a


def inference_tensor(self, y):
    with torch.inference_mode():
        shift = torch.ones(1, 8, 1, 1, dtype=y.dtype)
    return self.act(y + shift)


def sparse_and_strided(self, y):
    eye = torch.eye(8, dtype=y.dtype).to_sparse()
    return torch.sparse.mm(eye, y.transpose(0, 1).reshape(8, -1)).view(8, 4, 6, 6).transpose(0, 1)


def complex_views(self, y):
    return torch.view_as_real(torch.complex(y, y * 2).conj().resolve_conj()).sum(-1)


CHANGES = [
    seen_in_place,
    in_place_without_history,
    in_place_unseen,
    view_in_place,
    view_in_place_unseen,
    item_assigned,
    base_in_place,
    relu_then_in_place,
    unknown_in_place,
    copied_over,
    copied_over_in_part,
    written_out,
    swapped_data,
    data_after_saving,
    data_of_a_source,
    data_of_what_only_an_origin_keeps,
    scaled_by_buffer_that_moves,
    piece_then_in_place,
    several_consumers,
    of_another_dtype,
    by_keyword_and_changed,
    index_that_changes,
    index_select_that_changes,
    source_then_in_place,
    inference_tensor,
    sparse_and_strided,
    complex_views,
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
@pytest.mark.parametrize("mode", [True, False], ids=["train", "eval"])
def test_changes_between_are_seen(change, mode):
    torch.manual_seed(0)
    theirs = Changed(change).double().train(mode)
    ours = convert(copy.deepcopy(theirs))
    x = pictures(dtype=torch.float64)
    refused = [changed_and_refused(model, x) for model in (ours, theirs)]
    assert refused[0] == refused[1]
    if refused[0]:
        return
    assert_same_run(ours, theirs, x)
    for a, b in zip(second_derivatives(ours, x), second_derivatives(theirs, x), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def changed_and_refused(model, x):
    try:
        gradients(model, x)
    except RuntimeError as error:
        assert "modified by an inplace operation" in str(error)
        return True
    return False


def _graph(model, x):
    return loss_of(model(x)), list(model.parameters())


@pytest.mark.parametrize("what", ["conv1.weight", "norm.weight", "norm.bias", "conv2.weight"])
def test_parameters_that_change_before_backward(what):
    """Refused where torch refuses and ours keeps it too; the gradient of before the change elsewhere."""
    torch.manual_seed(0)
    theirs = Changed(lambda self, y: self.act(y))
    ours = convert(copy.deepcopy(theirs))
    loss, wrt = _graph(theirs, pictures())
    expected = torch.autograd.grad(loss, wrt)
    refused = []
    for model in (ours, theirs):
        loss, wrt = _graph(model, pictures())
        with torch.no_grad():
            model.get_parameter(what).add_(1.0)
        try:
            assert_equal(torch.autograd.grad(loss, wrt), expected)
            refused.append(False)
        except RuntimeError as error:
            assert "modified by an inplace operation" in str(error)
            refused.append(True)
    # torch keeps the first weight for a gradient of the pictures that nobody asked for.
    assert refused == ([False, True] if what == "conv1.weight" else [refused[1]] * 2)


def test_a_parameter_that_is_only_added_may_change_before_backward():
    class Shifted(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8)
            self.shift = torch.nn.Parameter(torch.randn(1, 8, 1, 1))
            self.act, self.last = torch.nn.ReLU(), torch.nn.Conv2d(8, 4, 3)

        def forward(self, x):
            return self.last(self.act(self.norm(self.conv(x)) + self.shift))

    torch.manual_seed(0)
    theirs = Shifted()
    results = []
    for model in (convert(copy.deepcopy(theirs)), theirs):
        loss, wrt = _graph(model, pictures())
        with torch.no_grad():
            model.shift.add_(5.0)
        results.append(torch.autograd.grad(loss, wrt))
    assert_equal(*results)


def test_running_statistics_that_move_before_backward():
    torch.manual_seed(0)
    theirs = Changed(lambda self, y: self.act(y)).eval()
    ours = convert(copy.deepcopy(theirs))
    _, expected = gradients(theirs, pictures())
    x = pictures().requires_grad_()
    loss, wrt = _graph(ours, x)
    ours.train()(pictures(seed=9) * 5)  # moves them in place
    assert_equal(torch.autograd.grad(loss, [*wrt, x]), expected)


@each_model
def test_an_optimizer_that_steps_during_backward(cls):
    """Each parameter is updated as soon as its gradient is there, while earlier layers still wait."""
    ours, theirs = pair(cls)

    def step(p):
        with torch.no_grad():
            p.sub_(p.grad, alpha=0.1)
        p.grad = None

    for model in (ours, theirs):
        for p in model.parameters():
            p.register_post_accumulate_grad_hook(step)
        for i in range(3):
            torch.manual_seed(i)
            loss_of(model(pictures(seed=i))).backward()
    assert_equal(ours.state_dict().values(), theirs.state_dict().values())


def test_what_is_kept_and_then_written_over_is_refused():
    """After the forward pass nothing is watched: what backward relies on must be as it was."""

    class Two(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4)

        def forward(self, x):
            z = self.conv(x)
            return z, self.norm(z)

    model = convert(Two())
    z, y = model(pictures())
    with torch.no_grad():
        z.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss_of(y).backward()


@pytest.mark.parametrize("between", ["copy_", "view", "same"])
def test_what_is_kept_is_not_written_over_in_backward(between):
    """Made again, an activation may write over what was made for it alone; not over what is kept."""

    class Kept(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4)
            self.act, self.last = torch.nn.ReLU(), torch.nn.Conv2d(4, 4, 3)

        def forward(self, x):
            z = self.conv(x)
            kept = self.norm(z)  # keeps z
            if between == "copy_":
                other = (z * 1).copy_(z)
            elif between == "view":
                other = z.flatten(1).unflatten(1, z.shape[1:])
            else:
                other = z.contiguous()
            return self.last(self.act(other)) + self.last(self.act(kept))

    torch.manual_seed(0)
    theirs = Kept()
    ours = convert(copy.deepcopy(theirs))
    assert_same_run(ours, theirs, pictures())
    torch.manual_seed(0)
    loss, wrt = _graph(ours, pictures())
    first = torch.autograd.grad(loss, wrt, retain_graph=True)
    assert_equal(first, torch.autograd.grad(loss, wrt))


def test_hooks_see_and_replace():
    ours, theirs = pair(Residual)
    seen = {}
    for name, model in (("ours", ours), ("theirs", theirs)):
        model.blocks[1].bn1.register_forward_hook(lambda m, args, out: out * 1.5)
        model.blocks[1].conv2.register_forward_pre_hook(lambda m, args: (args[0] + 0.25,))
        model.blocks[2].bn2.register_forward_hook(lambda m, args, out: out.mul_(0.5))
        model.blocks[2].register_full_backward_hook(lambda m, d_in, d_out: (d_in[0] * 2,))

        def grab(m, args, out, name=name):
            out.register_hook(lambda g: seen.setdefault(name, []).append(g.clone()))
            out.retain_grad()

        model.blocks[0].bn3.register_forward_hook(grab)
    assert_same_run(ours, theirs, pictures())
    assert_equal(seen["ours"], seen["theirs"])


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
    assert is_sparing(type(mine)) and is_sparing(type(mine.inner))
    assert_same_run(mine, outer, pictures())


def test_model_of_a_million_sums():
    """A chain of origins longer than Python's stack allows is cut."""

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


def test_made_at_most_once():
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


def test_nothing_is_left_after_backward():
    ours, _ = pair(Residual)
    gc.collect()
    gc.disable()
    try:
        live = Live([*ours.parameters(), *ours.buffers()])
        with live:
            loss = loss_of(ours(pictures()))
            loss.backward()
            del loss
            for p in ours.parameters():
                p.grad = None
            assert live.now() == 0, [(m.op, m.nbytes) for m in live._made.values()]
    finally:
        gc.enable()


def test_a_graph_that_is_dropped_is_freed():
    ours, _ = pair(Residual)
    gc.collect()
    gc.disable()
    try:
        live = Live([*ours.parameters(), *ours.buffers()])
        with live:
            loss = loss_of(ours(pictures()))
            torch.autograd.grad(loss, ours.head.weight, retain_graph=True)
            del loss
            assert live.now() == 0, [(m.op, m.nbytes) for m in live._made.values()]
    finally:
        gc.enable()


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_exception_ends_the_watching(error):
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
    assert plain(type(convert(ours))) is Residual
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


def test_the_model_gives_back_plain_tensors():
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


def test_layers_alone_are_not_watched():
    assert not is_sparing(type(convert(torch.nn.Conv2d(3, 4, 3))))
    assert type(convert(torch.nn.ReLU())) is nn.ReLU
