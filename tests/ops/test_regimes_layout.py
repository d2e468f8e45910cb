"""Layouts and sizes of the input: channels_last, expanded, nothing at all; as torch's twins."""

import pytest
import torch
from battery import call, each_op, leaves, sample
from regimes_cases import (
    CASES,
    WRITING,
    Case,
    assert_same,
    each,
    each_case,
    incoming,
    network,
    same_outcome,
    step,
)

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
POINTWISE = [c for c in CASES + WRITING if c.pointwise]
IMAGES = POINTWISE + [c for c in CASES if c.name in ("Dropout2d", "Softmax2d")]
IMAGES += [Case("PReLU", (3,)), Case("Softmax", (1,)), Case("LogSoftmax", (1,)), Case("GLU", (2,))]
LAYOUTS = {
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "transposed": lambda x: x.transpose(1, 3),
    "strided": lambda x: torch.stack((x, x), -1)[..., 0],
    "offset": lambda x: torch.cat((x, x))[2:],
    "expanded": lambda x: x[:1].expand(3, -1, -1, -1),
}


def strided_step(module, x):
    """Output and gradient, and how they lie in memory."""
    x = x.detach().requires_grad_()
    z = x * 1 if x.is_contiguous() else x.clone(memory_format=torch.preserve_format)
    torch.manual_seed(7)
    out = module(z)
    # A d_out as a layer above would give: laid out as the output.
    d_out = torch.empty_like(out).copy_(incoming(out))
    grads = torch.autograd.grad(out, [x, *module.parameters()], d_out)
    return [out.detach(), *grads]


def images():
    """Dropout's in-place form is a copy over the input: CopyBackwards adds contiguous zeros first."""
    lost = pytest.mark.xfail(strict=True, reason="CopyBackwards adds zeros that are contiguous")
    for case in IMAGES:
        for layout in LAYOUTS:
            writes = case in WRITING and case.name == "Dropout"
            marks = lost if writes and layout in ("channels_last", "transposed") else ()
            yield pytest.param(case, layout, marks=marks, id=f"{case.id}-{layout}")


@pytest.mark.parametrize("case, layout", list(images()))
def test_memory_layout_of_the_output_and_its_gradient(case, layout):
    mine, other = case.pair()
    torch.manual_seed(2)
    x = LAYOUTS[layout](torch.randn(2, 3, 4, 6, dtype=torch.float64))
    if case.args == (3,) and layout == "transposed":
        x = x[:, :3]
    ours, theirs = strided_step(mine, x), strided_step(other, x)
    assert_same(ours, theirs, case.close)
    strides, their_strides = ([t.stride() for t in ts[:2]] for ts in (ours, theirs))
    assert strides == their_strides
    if layout == "channels_last" and case.pointwise and case.name not in ("RReLU", "LogSigmoid"):
        # torch's these two neither
        assert ours[0].is_contiguous(memory_format=torch.channels_last)


@each([c for c in POINTWISE if c.kwargs.get("inplace") is None and True not in c.args])
def test_the_input_itself_may_be_expanded(case):
    """Read where it lies, one row for all; the gradient is the sum over the rows."""
    mine, other = case.pair()
    row = torch.randn(1, 6, dtype=torch.float64)

    def run(module):
        leaf = row.clone().requires_grad_()
        torch.manual_seed(7)
        out = module(leaf.expand(5, 6))
        return out.detach(), torch.autograd.grad(out, leaf, incoming(out))[0]

    assert_same(run(mine), run(other), case.close)


@each(WRITING)
def test_writing_over_an_expanded_input_is_refused_as_torch_does(case):
    mine, other = case.pair()
    row = torch.randn(1, 6, dtype=torch.float64)
    if case.name == "Threshold":  # torch's alone does not look
        with pytest.raises(RuntimeError, match="more than one element of the written-to tensor"):
            mine(row.expand(5, 6))
        return
    got = same_outcome(lambda: mine(row.expand(5, 6)), lambda: other(row.clone().expand(5, 6)))
    assert got is None


@each_op
def test_expanded_inputs(op):
    """The first row of the batch for all: no memory of its own behind the others."""
    tensors = sample(op)

    def run(function):
        made, given = leaves(op, tensors), []
        for i, t in enumerate(made):
            given.append(
                t[:1].expand(t.shape)
                if i in op.batch and t.dim()
                else t * 1
                if t.is_floating_point()
                else t
            )
        out = call(op, function, given)
        wrt = [t for t in made if t.requires_grad]
        return [out.detach(), *torch.autograd.grad(out, wrt, incoming(out), allow_unused=True)]

    assert_same(run(op.ours), run(op.reference), 1e-12 * op.torch_off)


# --- nothing at all ----------------------------------------------------------------------------


@each(CASES + WRITING)
def test_an_empty_batch(case):
    mine, other = case.pair()
    tensors = tuple(t[:0] for t in case.sample(4))
    both = same_outcome(lambda: step(mine, tensors), lambda: step(other, tensors))
    if case.name.startswith("InstanceNorm") and case.kwargs:
        assert both is None  # torch's kernel looks for the first of no gamma
        return
    assert both is not None
    assert_same(*both)


SHAPES = [(0,), (4, 0), (0, 0), (2, 0, 3), (2, 3, 0, 4), ()]


def sized():
    for case in CASES + WRITING:
        for shape in SHAPES if not case.loss and case.name not in ("Linear", "MLP") else ():
            yield pytest.param(case, shape, id=f"{case.id}-{shape}")


@pytest.mark.parametrize("case, shape", list(sized()))
def test_shapes_of_size_zero(case, shape):
    mine, other = case.pair()
    x = torch.randn(shape, dtype=torch.float64)
    both = same_outcome(lambda: step(mine, [x]), lambda: step(other, [x]))
    if both is not None:
        assert_same(*both, case.close)


@each([c for c in CASES if c.loss])
@pytest.mark.parametrize("shape", [(4, 0), (0, 6), (0, 6, 2)], ids=str)
def test_losses_of_nothing(case, shape):
    mine, other = case.pair()
    if case.name in ("CrossEntropyLoss", "NLLLoss"):
        y = torch.zeros(shape[:1] + shape[2:], dtype=torch.int64)
    else:
        y = torch.rand(shape, dtype=torch.float64)
    x = torch.rand(shape, dtype=torch.float64)
    both = same_outcome(lambda: step(mine, [x, y]), lambda: step(other, [x, y]))
    if both is not None:
        assert_same(*both)


EMPTY = [
    (Case("Linear", (0, 3)), (4, 0)),
    (Case("Linear", (3, 0)), (4, 3)),
    (Case("Linear", (0, 0)), (4, 0)),
    (Case("Linear", (6, 3)), (0, 6)),
    (Case("Linear", (6, 3)), (2, 0, 6)),
    (network([0, 3, 2], "ReLU"), (4, 0)),
    (network([3, 0, 2], "Tanh"), (4, 3)),
    (network([3, 2, 0], "GELU", dropout=0.4), (4, 3)),
    (network([3, 4, 2], "GELU", dropout=0.4), (0, 3)),
    (network([3, 4, 2], "ReLU"), (2, 0, 3)),
]


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize(
    "case, shape", EMPTY, ids=lambda v: v.id if isinstance(v, Case) else str(v)
)
def test_layers_without_units_and_batches_without_samples(case, shape):
    mine, other = case.pair()
    x = torch.randn(shape, dtype=torch.float64)
    assert_same(step(mine, [x]), step(other, [x]))


@each_case
def test_a_batch_of_one(case):
    mine, other = case.pair()
    assert_same(step(mine, case.sample(1)), step(other, case.sample(1)), case.close)


def laid(t):
    """The tensor, or one like it, in other layouts."""
    yield torch.stack((t, t), -1)[..., 0]
    if t.dim() > 1:
        yield t.transpose(0, -1).contiguous().transpose(0, -1)
        yield t[:1].expand(t.shape)
    if t.dim() > 2:
        yield t.transpose(1, 2).contiguous().transpose(1, 2)
    if t.dim() == 4:
        yield t.contiguous(memory_format=torch.channels_last)
    if t.dim() == 5:
        yield t.contiguous(memory_format=torch.channels_last_3d)


@each_op
def test_the_output_lies_in_memory_as_torchs(op):
    given, *rest = sample(op)
    for x in laid(given):
        if x.dim() == 4 and "3d" in op.name and not x.is_contiguous():
            continue  # an example without a batch, of which torch's kernel knows no such format
        for needs in ((), None):
            strides = []
            for function in (op.ours, op.torchs):
                flags = [t.requires_grad for t in leaves(op, [given, *rest], needs)]
                tensors = [
                    t.detach().requires_grad_(flag)
                    for t, flag in zip([x, *rest], flags, strict=True)
                ]
                strides.append(call(op, function, tensors).stride())
            assert strides[0] == strides[1], (x.shape, x.stride(), needs)
