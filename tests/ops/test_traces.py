"""torch.jit.trace, and the ONNX export that goes through it: every op, and models with norms."""

import contextlib
import io
import warnings

import pytest
import torch
from battery import assert_close, call, each, leaves, sample

from manualnn import convert, nn

pytestmark = pytest.mark.filterwarnings("ignore")


# The rows of MLP are modules whose weights are handed in, which nothing that is traced may do.
@each(lambda op: not op.random and op.name != "MLP")
@pytest.mark.parametrize("needs", [(), None], ids=["frozen", "trained"])
def test_a_trace_computes_what_was_traced(op, needs):
    tensors = tuple(leaves(op, sample(op), needs))
    traced = torch.jit.trace(lambda *t: op.ours(*t), tensors, check_trace=False)
    others = tuple(t.detach() for t in leaves(op, sample(op, seed=1)))
    assert_close(traced(*others), call(op, op.torchs, others), torch.float64, 5)


# torch.jit.trace traces again without gradients, and compares the two graphs.
@each(lambda op: not op.random and op.name != "MLP")
def test_a_trace_is_the_same_without_gradients(op):
    tensors = tuple(leaves(op, sample(op)))

    def behind_another(*given):
        return op.ours(*(t * 1 if t.is_floating_point() else t for t in given))

    torch.jit.trace(behind_another, tensors)


@pytest.mark.parametrize("activation", ["relu", "silu", "leaky_relu"])
def test_a_trace_of_an_mlp(activation):
    mlp, x = nn.MLP([4, 6, 3], activation), torch.randn(5, 4)
    traced, other = torch.jit.trace(mlp, x), torch.randn(7, 4)
    torch.testing.assert_close(traced(other), mlp(other))


def model(layers):
    torch.manual_seed(0)
    return torch.nn.Sequential(
        layers.Conv2d(3, 8, 3),
        layers.BatchNorm2d(8),
        layers.ReLU(inplace=True),
        layers.Conv2d(8, 4, 3),
        layers.InstanceNorm2d(4, affine=True),
        layers.SiLU(inplace=True),
        layers.GroupNorm(2, 4),
        layers.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(),
        layers.LayerNorm(4),
        layers.Linear(4, 3),
    )


MODELS = {
    "layers": lambda: model(nn),
    "converted, less": lambda: convert(model(torch.nn)),
    "converted, all": lambda: convert(model(torch.nn), keep="all"),
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("made", MODELS)
def test_a_traced_model(made, training):
    x = torch.randn(4, 3, 12, 12)
    ours, theirs = MODELS[made]().train(training), model(torch.nn).train(training)
    traced = torch.jit.trace(ours, x, check_trace=False)
    torch.jit.save(traced, io.BytesIO())  # which it could not be with our Functions in it
    torch.testing.assert_close(traced(x), theirs(x))
    traced(x).square().sum().backward()
    theirs(x).square().sum().backward()
    pairs = zip(ours.parameters(), theirs.parameters(), strict=True)
    assert all(torch.allclose(a.grad, b.grad, rtol=1e-4, atol=1e-5) for a, b in pairs)


class Called(torch.nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *tensors):
        return self.function(*tensors)


def operators(exported, tensors):
    """The ONNX operators of the exported program; None where PyTorch knows none for one of its own."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            graph = torch.onnx.utils._model_to_graph(exported, tensors)[0]
        except (torch.onnx.errors.OnnxExporterError, RuntimeError):
            return None
    return [node.kind() for node in graph.nodes() if node.kind() != "onnx::Identity"]


@each(lambda op: not op.random)
def test_an_op_as_onnx(op):
    tensors = tuple(leaves(op, sample(op, torch.float32)))
    if operators(Called(op.torchs), tensors) is not None:
        assert operators(Called(op.ours), tensors) is not None


@pytest.mark.parametrize("made", MODELS)
def test_a_model_as_onnx(made):
    x = (torch.randn(4, 3, 12, 12),)
    ours, theirs = (operators(exported.eval(), x) for exported in (MODELS[made](), model(torch.nn)))
    assert ours == theirs is not None
    file = io.BytesIO()
    torch.onnx.export(MODELS[made]().eval(), x, file, dynamo=False)
    assert file.getvalue()
