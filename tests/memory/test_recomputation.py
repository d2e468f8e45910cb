"""What backward recomputes is what forward dropped, and that is verified; in every shape and in place."""

import pytest
import torch
from recorded import Block, assert_same, inputs, pair_of, run
from torch import nn
from torch.nn import functional as F

import manualnn
from manualnn import RecomputationError, convert
from manualnn.memory import fingerprint
from manualnn.memory.backward_pass import BackwardPass

keeps = pytest.mark.parametrize("keep", ["less", "all"])


class Reached(Block):
    """Lets a test reach a source of its recipes."""

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


def test_a_recomputed_tensor_that_differs_is_refused_and_says_where():
    ours, _ = pair_of(Reached())
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
    """This shows that the test above can fail."""
    ours, theirs = pair_of(Reached(), verify=False)
    mine, other = (run(m, inputs(), write_unseen(lambda t: t.mul_(-1))) for m in (ours, theirs))
    assert not torch.equal(mine[3], other[3])


def test_in_full_one_element_is_enough():
    def one(t):
        t[5, 7] += 1.0

    full, _ = pair_of(Reached(), verify="full")
    assert isinstance(run(full, inputs(), write_unseen(one)), RecomputationError)
    assert_same(Reached(), verify="full")
    assert_same(Reached(), verify=False)


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


@pytest.fixture
def compared_as_on_a_gpu(monkeypatch):
    """There a comparison would wait for the GPU, so it is made when backward ends."""
    compare, queued = BackwardPass.compare, []

    def later(backward, now, before, dtype, error):
        queued.append(True)
        compare(backward, torch.tensor(now), torch.tensor(before), dtype, error)

    monkeypatch.setattr(BackwardPass, "compare", later)
    return queued


def test_a_mismatch_on_a_gpu_is_an_error_when_backward_ends(compared_as_on_a_gpu):
    queued = compared_as_on_a_gpu
    ours, _ = pair_of(Reached())
    error = run(ours, inputs(), write_unseen(lambda t: t.mul_(-1)))
    assert queued and isinstance(error, RecomputationError)
    queued.clear()
    assert_same(Reached())
    assert queued
    # Outside of a backward pass there is no end to wait for: the error comes at once.
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
def test_what_the_model_returns_may_be_overwritten(shape):
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


PARTS = {
    "columns": lambda h: h[:, :13],
    "every other column": lambda h: h[:, ::2],
    "every other row": lambda h: h[1::2],
    "transposed": lambda h: h.t(),
}


@pytest.mark.parametrize("op", [F.silu, F.mish, F.hardswish], ids=lambda f: f.__name__)
@pytest.mark.parametrize("part", PARTS)
def test_an_activation_in_place_on_a_part(part, op):
    def middle(self, h):
        h = h.clone()
        op(PARTS[part](h), inplace=True)
        return h

    x = inputs(37, 6, dtype=torch.float32)
    assert_same(Block(middle), x=x, dtype=torch.float32)


class Static(Block):
    @staticmethod
    def forward(x):
        return x.tanh().square()


class ByProperty(Block):
    @property
    def forward(self):
        return super().forward


@pytest.mark.parametrize("kind", [Static, ByProperty])
def test_forward_in_other_shapes(kind):
    ours, theirs = pair_of(kind(lambda self, h: F.relu(h)))
    assert torch.equal(ours(inputs()), theirs(inputs()))


STRIDED = {
    "permuted": lambda t: t.permute(0, 2, 3, 1),
    "channels last": lambda t: t.contiguous(memory_format=torch.channels_last),
    "with gaps": lambda t: t[:, ::2, 1:, ::3],
    "expanded": lambda t: t[:, :1].expand(-1, 5, -1, -1),
    "transposed": lambda t: t.flatten(1).t(),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.complex64])
@pytest.mark.parametrize("layout", STRIDED)
def test_a_fingerprint_is_of_the_elements_wherever_they_lie(layout, dtype):
    t = STRIDED[layout](torch.randn(4, 8, 6, 6, generator=torch.manual_seed(0)).to(dtype))
    there = fingerprint.sample(t)
    assert there == fingerprint.sample(t.contiguous())
    places = torch.tensor(fingerprint._places(t.numel()))
    assert there == tuple(fingerprint.bits_of(t.contiguous()).take(places).tolist())
    changed = t.clone()
    changed[(0,) * t.dim()] = 7
    assert there != fingerprint.sample(changed)
