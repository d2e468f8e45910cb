"""Memory overwritten where no version counter shows it, in forward and after: gradients are torch's."""

import numpy
import pytest
import torch
from recorded import Block, assert_same, inputs, pair_of
from torch import nn
from torch.nn import functional as F

keeps = pytest.mark.parametrize("keep", ["less", "all"])


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
        """all_reduce over one process changes nothing; this does what two would do, by the same way."""

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


class Binary(nn.Module):
    """BinaryConnect: forward computes with the signs of the weights; then the weights are put back."""

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
    """torch's convolutions and norms save the parameter itself, whose data is then another tensor."""
    assert_same(BinaryConvolution(), x=inputs(3, 2, 9), between=between, keep=keep)
    model = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.SiLU(), nn.Linear(8, 3))
    assert_same(model, between=between, keep=keep)


@keeps
@pytest.mark.parametrize("shape", [(6,), (12, 6), (3, 4, 6)], ids=str)
def test_both_derivatives_of_a_layer_whose_leaves_are_set_to_others(shape, keep):
    """torch's views of the weight, and of an input that is no matrix, have the numbers of forward."""
    results = []
    for model in pair_of(nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)), keep=keep):
        x = inputs(*shape).requires_grad_()
        out = model(x).square().sum()
        set_to_others(model, x)
        x.data = x.data * 3
        leaves = [x, *model.parameters()]
        first = torch.autograd.grad(out, leaves, create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), leaves)
        results.append([*first, *second])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


INPLACE = (F.silu, F.hardswish, F.mish, F.relu, F.elu, F.leaky_relu)
VIEWS = {
    "itself": lambda y: y,
    "with a dimension more": lambda y: y[..., None],
    "a part": lambda y: y[1:],
    "transposed": lambda y: y.transpose(0, 1),
}


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
@pytest.mark.parametrize(
    "write", WRITES[:-1], ids=lambda f: f.__name__
)  # the last is an error in backward
def test_in_place_on_a_view_of_memory_that_was_handed_out(write, view):
    """A placeholder for such a view must not be saved in its place: it has no numbers."""
    for act in INPLACE:

        def middle(self, h, act=act):
            y = h * 2
            write(y)
            act(view(y), inplace=True)
            return y

        assert_same(Block(middle), calls=2)
