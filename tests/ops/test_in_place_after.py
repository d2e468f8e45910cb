"""Every op, its input of one to five dimensions, and something in place afterwards: as torch's twin.

What torch allows is allowed, with the same numbers; what it refuses is refused. In place on the output, also
past autograd's eyes, through ``.data``; and on the input.
"""

import pytest
import torch
from battery import assert_close, call, each_op, leaves, sample
from ops import OPS

import manualnn
from manualnn import functional

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def add_(t):
    t.add_(torch.linspace(-1, 1, t.numel(), dtype=t.dtype).view(t.shape))


def write_data(t):
    t.data.mul_(0.5).clamp_(-0.6, 0.6)


# By the number of dimensions, so that every op meets each of them.
AFTERWARDS = {
    1: lambda t: t.mul_(2),
    2: torch.relu_,
    3: lambda t: t.clamp_(-0.5, 0.5),
    4: lambda t: t.__setitem__((..., 0) if t.dim() else (), 0.25),
    5: torch.relu_,
}


def of_dims(op, dims, trailing):
    """The row's inputs with those that carry a batch of so many dimensions: others added or taken away."""
    made = list(sample(op))
    carrying = op.batch or (0,)
    more = dims - made[carrying[0]].dim()
    for i in carrying:
        for _ in range(more):
            halves = made[i], made[i].flip(-1) if made[i].dim() else made[i]
            made[i] = torch.stack(halves, -1 if trailing else 0)
        for _ in range(-more):
            if not made[i].dim():
                return None
            made[i] = made[i].select(-1 if trailing else 0, 0).clone()
    return made


def outcome(op, function, tensors, after, changed):
    """Output and gradients, or the refusal."""
    wrt = leaves(op, tensors)
    given = [t * 1 if t.requires_grad else t for t in wrt]
    try:
        out = call(op, function, given)
        after(given[changed] if changed is not None else out)
        d_out = torch.linspace(-1, 1.3, out.numel(), dtype=out.dtype).view(out.shape)
        grads = torch.autograd.grad(
            out, [t for t in wrt if t.requires_grad], d_out, allow_unused=True
        )
    except RuntimeError as error:
        assert "in-place" in str(error) or "inplace" in str(error), error
        return str(error)
    return [out.detach(), *(g for g in grads if g is not None)]


def taken(op):
    """The inputs of one to five dimensions that torch's twin takes."""
    for dims in range(1, 6):
        for trailing in (False, True):
            tensors = of_dims(op, dims, trailing)
            if tensors is None:
                continue
            try:
                call(op, op.torchs, tensors)
            except (RuntimeError, ValueError, IndexError, AssertionError):
                continue
            yield dims, tensors
            break


def assert_as_torch(op, ours, theirs, where):
    assert not isinstance(ours, str) and not isinstance(theirs, str), f"{where}: {ours} {theirs}"
    for mine, other in zip(ours, theirs, strict=True):
        assert_close(mine, other, torch.float64, 5 * op.torch_off)


@each_op
def test_in_place_on_the_output(op):
    allowed = 0
    for dims, tensors in taken(op):
        for after in (add_, write_data, AFTERWARDS[dims]):
            ours = outcome(op, op.ours, tensors, after, None)
            theirs = outcome(op, op.torchs, tensors, after, None)
            if isinstance(ours, str) and isinstance(theirs, str):
                continue
            assert_as_torch(op, ours, theirs, f"{dims} dimensions")
            allowed += 1
    assert allowed


# They keep an input as it was given, and refuse it when it was written over. torch keeps another tensor, of
# its own making: what is saved in place of the input.
KEEPS_THE_INPUT = {
    "tanhshrink": "tanh z",
    "cross_entropy": "the smoothed target",
    "mse_loss": "the difference, where there are weights",
    "matmul": "a copy of a strided operand",
    "scaled_dot_product_attention": "scaled copies of q and k",
    "instance_norm": "a copy, with examples and channels as one dimension",
    "rms_norm": "xhat",
}


@each_op
def test_in_place_on_an_input(op):
    """Past autograd's eyes torch itself gives numbers of no meaning; not so here, where it refuses."""
    for dims, tensors in taken(op):
        for i in range(min(len(tensors), 2)):
            if not tensors[i].is_floating_point():
                continue
            ours = outcome(op, op.ours, tensors, add_, i)
            theirs = outcome(op, op.torchs, tensors, add_, i)
            refused = isinstance(ours, str) and op.name in KEEPS_THE_INPUT
            if not isinstance(theirs, str) and not refused:
                assert_as_torch(op, ours, theirs, f"{dims} dimensions, input {i}")


def test_ops_take_the_dimensions_that_they_should():
    """So that nothing above was left out in silence."""
    want = dict.fromkeys(
        ("relu", "gelu", "linear", "softmax", "mse_loss", "layer_norm"), {1, 2, 3, 4, 5}
    )
    want |= {"batch_norm": {2, 3, 4, 5}, "conv2d": {3, 4}, "max_pool2d": {3, 4}}
    found = {}
    for op in OPS:
        if op.name in want:
            found.setdefault(op.name, set()).update(d for d, _ in taken(op))
    assert found == want


def is_view(out):
    return [t is not None and t._is_view() for t in (out if isinstance(out, tuple) else (out,))]


@each_op
def test_nothing_comes_out_as_a_view_where_torchs_is_none(op):
    """A view cannot be detached in place, say."""
    for dims in (1, 3, 5):
        tensors = of_dims(op, dims, trailing=False)
        try:
            theirs = tensors and call(op, op.torchs, leaves(op, tensors))
        except (RuntimeError, ValueError, IndexError, AssertionError):
            continue
        if tensors:
            mine = is_view(call(op, op.ours, leaves(op, tensors)))
            assert all(other or not view for view, other in zip(mine, is_view(theirs), strict=True))


def test_a_weight_vector_gives_no_view():
    x, w = torch.randn(2, 3, 4, requires_grad=True), torch.randn(4, requires_grad=True)
    z = functional.linear(x, w)
    z.detach_()
    assert torch.equal(z, torch.nn.functional.linear(x, w))


# torch's rrelu has no rule for vmap.
ONE_OF_EACH = list({op.name: op for op in reversed(OPS) if op.name != "rrelu"}.values())


@pytest.mark.parametrize("op", ONE_OF_EACH, ids=lambda op: op.id)
def test_in_place_after_vmap(op):
    """Some of PyTorch's rules for vmap give out a view: as a Function's output nobody could write over it."""
    tensors = sample(op)
    at = next(i for i, t in enumerate(tensors) if t.is_floating_point())
    found = []
    for function in (op.reference, op.ours):
        x = tensors[at].clone().requires_grad_()
        torch.manual_seed(0)

        def run(x, function=function):
            return function(*(x if i == at else t for i, t in enumerate(tensors)))

        out = torch.func.vmap(run, randomness="same")(torch.stack([x, x * 0.5 + 0.1]))
        out.tanh_()
        d_out = torch.linspace(0.5, 1, out.numel(), dtype=out.dtype).view(out.shape)
        try:
            grads = torch.autograd.grad(out, x, d_out)
        except RuntimeError as error:  # it keeps its output, which is written over
            assert "inplace operation" in str(error)
            grads = ()
        found.append([out.detach(), *grads])
    torch.testing.assert_close(found[1], found[0], rtol=1e-9, atol=1e-10)


class Halves(manualnn.Function):
    """The input's first half, a view of it: what is written to it must be seen, or refused."""

    @staticmethod
    def forward(x):
        return x[: len(x) // 2]

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, d):
        return torch.cat([d, torch.zeros_like(d)])


def test_a_view_of_the_input_out_of_vmap_stays_one():
    x = torch.randn(2, 4, requires_grad=True)
    out = torch.func.vmap(Halves.apply)(x * 1)
    with pytest.raises(RuntimeError, match="is a view"):
        out.mul_(2)


@pytest.mark.parametrize("keep", ["less", "all"])
@pytest.mark.parametrize("name", ["Mish", "SiLU", "Hardtanh", "ReLU", "LeakyReLU"])
def test_a_hook_on_a_view_that_is_written_over_is_given_tensors(name, keep):
    given = []

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.g = getattr(torch.nn, name)(inplace=True)

        def forward(self, x):
            _, part = x.transpose(0, 1).reshape(-1).tensor_split(2, -1)
            part.register_hook(lambda g: given.append(g) or g * 1.5)
            return self.g(part)

    torch.manual_seed(0)
    x = torch.randn(2, 2, 2, requires_grad=True)
    theirs, ours = Net(), manualnn.convert(Net(), keep=keep)
    expected, found = (torch.autograd.grad(net(x).sum(), x)[0] for net in (theirs, ours))
    assert torch.equal(found, expected) and all(isinstance(g, torch.Tensor) for g in given)
