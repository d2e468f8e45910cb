"""A recipe holds values: a change after the recorded call does not reach what is recomputed."""

import numpy
import pytest
import torch
from recorded import Block, assert_same, inputs, pair_of
from torch import nn
from torch.nn import functional as F

import manualnn
from manualnn.memory.fingerprint import FINGERPRINTS, differ

keeps = pytest.mark.parametrize("keep", ["less", "all"])


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


class Padded(nn.Module):
    """Autocast on a CPU pads in float32 where it mirrors or repeats."""

    def __init__(self, mode, dims, own):
        super().__init__()
        conv = getattr(nn, f"Conv{dims}d")
        self.first, self.mode, self.dims = conv(2, 4, 3, padding=1), mode, dims
        self.last = conv(4, 4, 3) if own else conv(4, 4, 3, padding=1, padding_mode=mode)
        self.own = own

    def forward(self, x):
        h = F.relu(self.first(x))
        if self.own:
            h = F.pad(h, (1,) * 2 * self.dims, mode=self.mode)
        return self.last(torch.cat([h[:, :2], h[:, 2:] * 2], 1))


@keeps
@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular", "constant"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_padding_under_autocast(mode, dims, own, dtype, keep):
    mode = "zeros" if mode == "constant" and not own else mode
    ours, theirs = pair_of(Padded(mode, dims, own), keep=keep, dtype=torch.float32)
    x = inputs(2, 2, *(5,) * dims, dtype=torch.float32)
    grads = []
    for model in (ours, theirs):
        with torch.autocast("cpu", dtype):
            y = model(x)
        y.float().square().sum().backward()
        grads.append([y, *(p.grad for p in model.parameters())])
    assert all(map(torch.equal, *grads))


@keeps
@pytest.mark.parametrize("middle", [lambda self, h: F.gelu(h), lambda self, h: F.relu(h + 1) * 2])
def test_backward_in_inference_mode(middle, keep):
    ours, theirs = pair_of(Block(middle), keep=keep)
    for model in (ours, theirs):
        loss = model(inputs()).square().sum()
        with torch.inference_mode():
            loss.backward()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)


class TimesItself(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x):
        h = self.first(x).tanh()
        return self.last(torch.matmul(h, h) + h.exp())


@pytest.mark.parametrize("keep", ["less", "all"])
def test_a_matrix_times_itself_that_others_read(keep):
    """The order in which three gradients are added is that of torch's nodes."""
    gradients = []
    for made in (lambda m: m, lambda m: manualnn.convert(m, keep=keep)):
        torch.manual_seed(0)
        model, x = made(TimesItself()), torch.randn(2, 8, 8, requires_grad=True)
        loss = model(x).square().sum()
        gradients.append(torch.autograd.grad(loss, [x, *model.parameters()]))
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [3, 1000])
@pytest.mark.parametrize("name", [True, "full"])
def test_a_fingerprint_takes_nan_for_nan_and_nothing_else(dtype, size, name):
    take = FINGERPRINTS[name]
    width = {2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
    t = torch.ones(size, dtype=dtype)
    t[0], t[-1] = torch.nan, torch.inf
    same, other, without = t.clone(), t.clone(), t.clone()
    same.view(width)[0] = -1  # NaN by other bits
    other[-1] = torch.nan
    without[0] = torch.inf
    assert not differ(take(same), take(t), dtype)
    assert not differ(take(t), take(same), dtype)
    for changed in (other, without, -t, t + 1):
        assert differ(take(changed), take(t), dtype)
        assert differ(take(t), take(changed), dtype)


@pytest.mark.parametrize(
    "dtype", [torch.float8_e4m3fn, torch.complex32, torch.complex64, torch.int8]
)
@pytest.mark.parametrize("size", [3, 100])
def test_a_fingerprint_of_other_dtypes(dtype, size):
    """Of which there may be no operation but on their bits."""
    take = FINGERPRINTS[True]
    t = torch.ones(size).to(dtype)
    other = torch.full((size,), 2.0).to(dtype)
    assert not differ(take(t), take(t.clone()), dtype)
    assert differ(take(t), take(other), dtype)
