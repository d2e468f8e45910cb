"""What is recomputed is what was let go, whatever changes between: a frozen value, a copy, or an error."""

import numpy
import pytest
import torch
from recorded import Block, assert_same, inputs, pair_of, run
from torch import nn
from torch.nn import functional as F

import manualnn
from manualnn import RecomputationError, convert

keeps = pytest.mark.parametrize("keep", ["less", "all"])


# --- A recipe holds values --------------------------------------------------------------------------


def reads_running_mean(self, h):
    return F.relu(h - self.norm.running_mean)


def reads_it_and_moves_it_in_the_same_pass(self, h):
    y = F.relu(h - self.norm.running_mean)
    self.norm(y * 2)
    return y


def reads_a_view_of_running_var(self, h):
    return F.relu(h * self.norm.running_var[None, :])


def centre_moved_by_data(self, h):
    self.centre.data.add_(0.5)
    return F.relu(h - self.centre)


def centre_moved_in_place(self, h):
    y = F.relu(h - self.centre)
    self.centre.add_(0.5)
    return y


def list_reversed(self, h):
    order = [*range(1, 16), 0]
    y = h.t()[order].t()
    order.reverse()
    return y.relu()


def nested_list_changed(self, h):
    order = [3, 2, 1, 0] * 4
    y = h[:, order]
    order[:8] = [5] * 8
    return y.relu()


def array_changed(self, h):
    order = numpy.arange(16)[::-1].copy()
    y = h[:, order]
    order[:] = 0
    return y.relu()


def index_tensor_changed_unseen(self, h):
    order = torch.arange(15, -1, -1)
    y = h.index_select(1, order)
    order.numpy()[:] = 0
    return y.relu()


def shape_list_changed(self, h):
    shape = [-1, 4, 4]
    y = h.repeat(1, 1).reshape(shape)
    shape[1:] = [2, 8]
    return y.relu().flatten(1)


def padding_list_changed(self, h):
    widths = [1, 1]
    y = F.pad(h, widths)
    widths[:] = [2, 0]
    return y.relu()[:, 1:-1]


def eps_is_a_tensor(self, h):
    y = F.rms_norm(F.layer_norm(h, (16,), eps=self.number), (16,), eps=self.number)
    y = F.group_norm(y, 4, eps=self.number)
    self.number.mul_(3)
    return y.relu()


def alpha_of_a_layer_is_a_tensor(self, h):
    y = nn.ELU(self.number)(h) + nn.Threshold(self.number, 0.0)(h) + nn.Softplus(self.number)(h)
    self.number.mul_(3)
    return y.relu()


def bound_of_a_layer_is_set(self, h):
    act = manualnn.nn.ReLU6() if isinstance(self.first, manualnn.nn.Linear) else nn.ReLU6()
    y = act(h)
    act.max_val = 0.25
    return y + act(h * 1)


def option_is_a_tensor(self, h):
    y = F.leaky_relu(h, self.number)
    self.number.mul_(3)
    return y


def option_is_a_tensor_of_an_activation_in_place(self, h):
    y = F.elu(h * 1, alpha=float(self.number), inplace=True)
    return F.celu(y, self.number.item())


def factor_is_a_tensor(self, h):
    y = F.relu(h * self.number)
    self.number.data.mul_(3)
    return y


def alpha_of_add_is_a_tensor(self, h):
    y = F.relu(torch.add(h, self.centre, alpha=self.number.item()))
    self.number.data.mul_(3)
    return y


def noise_drawn_anew(self, h):
    noise = torch.empty_like(h).normal_()
    y = F.relu(h + noise)
    noise.data.normal_()
    return y


def statistic_overwritten(self, h):
    g = h.mean(1, keepdim=True)
    u = F.layer_norm(h, (16,)) + g
    g.detach().mul_(2.0)
    return F.relu(u)


def mask_changed(self, h):
    mask = h.detach() > 0
    y = torch.where(mask, h, self.centre.to(h.dtype))
    mask.data.logical_not_()
    return F.gelu(y)


FROZEN = [v for name, v in list(globals().items()) if callable(v) and hasattr(v, "__code__")]
FROZEN = [f for f in FROZEN if f.__module__ == __name__]


def second_forward(model, x):
    model(x * 3 + 1)


def moved_after_forward(model, x):
    model.centre.data.add_(2.0)
    model.number.data.add_(2.0)


@keeps
@pytest.mark.parametrize("between", [None, second_forward, moved_after_forward])
@pytest.mark.parametrize("middle", FROZEN, ids=lambda f: f.__name__)
def test_a_recipe_holds_values(middle, between, keep):
    assert_same(Block(middle), between=between, calls=2, keep=keep)


@pytest.mark.parametrize("write", ["data", "in place"])
def test_a_weight_that_autocast_has_cast_is_not_read_again(write):
    """A discriminator's optimizer steps between the generator's forward and backward pass."""

    def step(model, x):
        with torch.no_grad():
            for p in model.parameters():
                (p.data if write == "data" else p).mul_(3)

    x, results = inputs(dtype=torch.float32), []
    for model in pair_of(
        nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 1)), dtype=torch.float32
    ):
        leaf = x.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            out = model(leaf)
        step(model, x)
        results.append(torch.autograd.grad(out.float().sum(), leaf)[0])
    assert torch.equal(*results)


# --- Memory that is handed out -------------------------------------------------------------------------


def by_data(y):
    y.data.mul_(-2.0)


def by_detached(y):
    y.detach().data[:, 1] = 7.0


def by_numpy(y):
    y.detach().numpy()[0] *= -3


def by_asarray(y):
    numpy.asarray(y.detach())[:, ::2] = 1.0


def by_dlpack(y):
    torch.from_dlpack(y.detach()).mul_(-2.0)


def by_storage(y):
    y.detach().untyped_storage().fill_(0)


def where_no_mode_looks(y):
    with torch._C.DisableTorchFunction():
        y.data.mul_(-2.0)


WRITES = [by_data, by_detached, by_numpy, by_asarray, by_dlpack, by_storage, where_no_mode_looks]


@keeps
@pytest.mark.parametrize("grad", [True, False], ids=["", "no_grad"])
@pytest.mark.parametrize("write", WRITES, ids=lambda f: f.__name__)
@pytest.mark.parametrize(
    "op", [F.relu, torch.sigmoid, lambda h: h + 1], ids=["relu", "sigmoid", "add"]
)
def test_memory_written_by_ways_that_no_version_shows(op, write, grad, keep):
    """torch goes on with what was written, in what it saved before and after."""

    def middle(self, h):
        y = op(h)
        with torch.set_grad_enabled(grad):
            write(y)
        return y

    assert_same(Block(middle), calls=2, keep=keep)


def test_a_source_that_is_written_to_unseen_is_copied_first():
    def middle(self, h):
        y = F.relu(h)
        h.data.mul_(3.0)
        return y

    assert_same(Block(middle))
    assert_same(Block(middle, norm=False))


def test_a_collective_that_writes_over_an_activation(tmp_path):
    from torch import distributed

    distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1
    )

    class Doubles:
        """all_reduce over one process changes nothing; what two would do, by the same door."""

        def __call__(self, t):
            distributed.all_reduce(t)
            with torch._C.DisableTorchFunction():
                t.data.mul_(2)

    def middle(self, h):
        y = F.relu(h)
        Doubles()(y.detach())
        return y

    try:
        assert_same(Block(middle))
        assert_same(Block(middle, norm=False), calls=3)
    finally:
        distributed.destroy_process_group()


# --- And it is verified ---------------------------------------------------------------------------------


class Kept(Block):
    """Keeps what its recipes are made of where a test can reach it."""

    def __init__(self):
        super().__init__(None)

    def forward(self, x):
        h = self.first(x)
        self.reached = h.detach()
        return self.last(F.relu(self.norm(h)))


def write_unseen(change):
    def between(model, x):
        with torch._C.DisableTorchFunction():
            change(model.reached.data)

    return between


def test_what_comes_out_another_is_refused_and_says_where():
    ours, _ = pair_of(Kept())
    error = run(ours, inputs(), write_unseen(lambda t: t.mul_(-1)))
    assert isinstance(error, RecomputationError) and isinstance(error, RuntimeError)
    for part in (
        "saved by Linear in layer last (Linear)",
        "[float64 [12, 16]]",
        "ReLU",
        "keep='all'",
    ):
        assert part in str(error)


def test_without_it_the_number_is_another_one():
    """So that the test above can fail."""
    ours, theirs = pair_of(Kept(), verify=False)
    mine, other = (run(m, inputs(), write_unseen(lambda t: t.mul_(-1))) for m in (ours, theirs))
    assert not torch.equal(mine[3], other[3])


def test_in_full_one_element_is_enough():
    def one(t):
        t[5, 7] += 1.0

    full, _ = pair_of(Kept(), verify="full")
    assert isinstance(run(full, inputs(), write_unseen(one)), RecomputationError)
    assert_same(Kept(), verify="full")
    assert_same(Kept(), verify=False)


def test_a_tensor_that_changes_after_forward_where_torch_would_have_gone_on_with_it():
    class Outside(Block):
        def forward(self, x):
            self.reached = F.relu(self.norm(self.first(x)))
            return self.last(self.reached)

    ours, _ = pair_of(Outside(None))
    error = run(ours, inputs(), write_unseen(lambda t: t.mul_(3)))
    assert isinstance(error, RecomputationError) and "has been changed since" in str(error)


def test_the_model_says_how_it_verifies():
    with pytest.raises(ValueError, match="verify must be True, False or \"full\", not 'some'"):
        convert(nn.Sequential(nn.Linear(2, 2)), verify="some")


def test_a_mismatch_on_a_gpu_is_told_when_backward_ends(monkeypatch):
    """There a comparison would wait for the GPU; here the same way is taken on the CPU."""
    from manualnn.cache import saved, verify

    queued = []

    def compare(now, before, error):
        queued.append(True)
        verify._later.add(now, before, error)

    monkeypatch.setattr(saved, "compare", compare)
    ours, _ = pair_of(Kept())
    error = run(ours, inputs(), write_unseen(lambda t: t.mul_(-1)))
    assert queued and isinstance(error, RecomputationError)
    assert not verify._later.open
    queued.clear()
    assert_same(Kept())
    assert queued
    # Outside of a backward pass there is no end to wait for.
    out = ours(inputs())
    write_unseen(lambda t: t.mul_(-1))(ours, None)
    node = next(n for n in _nodes(out.grad_fn) if "ReLU" in type(n).__name__)
    with pytest.raises(RecomputationError):
        node.saved_tensors  # noqa: B018


def _nodes(node):
    yield node
    for n, _ in node.next_functions:
        if n is not None:
            yield from _nodes(n)


# --- Every shape, and what follows in place ------------------------------------------------------------------

IN_PLACE = {
    "SiLU": nn.SiLU(inplace=True),
    "ReLU": nn.ReLU(inplace=True),
    "ELU": nn.ELU(inplace=True),
    "Mish": nn.Mish(inplace=True),
    "Hardswish": nn.Hardswish(inplace=True),
    "Hardsigmoid": nn.Hardsigmoid(inplace=True),
    "LeakyReLU": nn.LeakyReLU(inplace=True),
    "Dropout": nn.Dropout(0.5, inplace=True),
    "Threshold": nn.Threshold(0.1, -1.0, inplace=True),
}
SHAPES = [(6,), (1, 6), (12, 6), (3, 4, 6), (2, 3, 2, 6), (2, 1, 3, 2, 6)]


@keeps
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", IN_PLACE)
def test_an_activation_in_place_on_inputs_of_any_dimension(name, shape, keep):
    act, plus = IN_PLACE[name], nn.Softplus()

    def middle(self, h):
        return plus(h) * act(plus(h) - 0.5)

    x = inputs(*shape, dtype=torch.float32)
    assert_same(Block(middle, norm=False), x=x, keep=keep, dtype=torch.float32)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_what_the_model_gives_back_may_be_overwritten(shape):
    class Returns(Block):
        def forward(self, x):
            h = self.first(x)
            return h, self.last(F.relu(h) * 2)

    results = []
    for model in pair_of(Returns(None)):
        h, out = model(inputs(*shape))
        with torch.no_grad():
            h.mul_(-1)
        results.append(torch.autograd.grad(out.sum(), list(model.parameters())[:2]))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_public_name():
    assert manualnn.RecomputationError is RecomputationError


class Binary(nn.Module):
    """BinaryConnect: the signs of the weights compute forward, and the weights are put back."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x):
        weight = self.last.weight.data
        self.last.weight.data = weight.sign()
        y = self.last(self.first(x).relu())
        self.last.weight.data = weight
        return y


@keeps
@pytest.mark.parametrize("shape", [(6,), (12, 6), (3, 4, 6)], ids=str)
def test_weights_whose_data_is_another_tensor_in_forward_alone(shape, keep):
    """torch's backward goes on with what forward saw."""
    assert_same(Binary(), x=inputs(*shape), keep=keep)


def _after(write):
    def middle(self, h):
        k = F.silu(h)
        parts = [
            self.part(k[:, :4]),
            self.part(k.view(2, -1, 4)).flatten(),
            self.part(k[:, None, 4:8]),
        ]
        write(k)
        return k + sum(p.sum() for p in parts)

    return middle


def _alias_before(alias, write):
    def middle(self, h):
        k = F.silu(h)
        other = alias(k)
        y = self.part(k.unsqueeze(0)[..., :4])
        z = F.relu(k) * 2
        write(other)
        return k + y.sum() + z

    return middle


VIEWED = {
    "data": _after(lambda k: k.data.mul_(2)),
    "numpy": _after(lambda k: k.detach().numpy().__imul__(2)),
    "dlpack": _after(lambda k: torch.from_dlpack(k.detach()).mul_(2)),
    "data before": _alias_before(lambda k: k.data, lambda a: a.mul_(2)),
    "numpy before": _alias_before(lambda k: k.detach().numpy(), lambda a: a.__imul__(2)),
}


@keeps
@pytest.mark.parametrize("name", VIEWED)
def test_memory_of_which_a_view_was_saved(name, keep):
    """torch saves the view, which shows what is written to the whole."""

    class Parts(Block):
        def __init__(self):
            super().__init__(VIEWED[name])
            self.part = nn.Linear(4, 8)

    assert_same(Parts(), calls=2, keep=keep)


class BinaryConvolution(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Conv1d(2, 4, 3), nn.Conv1d(4, 3, 3)

    def forward(self, x):
        weight = self.last.weight.data
        self.last.weight.data = weight.sign()
        y = self.last(F.silu(self.first(x)))
        self.last.weight.data = weight
        return y


def set_to_others(model, x):
    for p in model.parameters():
        p.data = p.data * 2


@keeps
@pytest.mark.parametrize("between", [None, set_to_others])
def test_leaves_whose_data_is_set(between, keep):
    """torch's convolutions and norms hold the parameter itself, whose data is then another."""
    assert_same(BinaryConvolution(), x=inputs(3, 2, 9), between=between, keep=keep)
    model = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.SiLU(), nn.Linear(8, 3))
    assert_same(model, between=between, keep=keep)
