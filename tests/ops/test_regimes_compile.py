"""torch.compile and torch.export: one graph, any batch size, the numbers of torch's twin."""

import copy
import io

import pytest
import torch
from battery import EVERY_ROW, not_another_dimension
from regimes_cases import (
    ACTIVATIONS,
    CASES,
    LAYERS,
    LOSSES,
    WRITING,
    assert_same,
    blocks,
    each,
    incoming,
    network,
    step,
)
from torch._dynamo.testing import CompileCounterWithBackend

from manualnn import convert, functional, nn

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")


@pytest.fixture(autouse=True)
def nothing_compiled_before():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


COMPILED = [c for c in CASES if c.kwargs.get("reduction") != "none"]
if not EVERY_ROW:
    COMPILED = [c for c in {c.name: c for c in COMPILED}.values() if not_another_dimension(c.name)]
COMPILED += WRITING[:2] + WRITING[-3:]


@each(COMPILED)
@pytest.mark.one_in(3)
def test_every_module_compiles_once_for_all_batch_sizes(case):
    # In evaluation: a compiler draws numbers of its own, test_randomness.py looks at those.
    mine, other = case.pair(training=False)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(mine, fullgraph=True, dynamic=True, backend=counter)
    counts = []
    for batch in (8, 11):  # no other dimension's size, which Dynamo would take for the same
        assert_same(step(compiled, case.sample(batch)), step(other, case.sample(batch)), case.close)
        counts.append(counter.frame_count)
    assert counts[0] == counts[-1]


@each(ACTIVATIONS + LAYERS)
@pytest.mark.one_in(3)
def test_every_module_compiles_where_no_input_needs_a_gradient(case):
    mine, other = case.pair(training=False)
    compiled = torch.compile(mine, fullgraph=True, backend="eager")
    with torch.no_grad():
        out = compiled(*case.sample())
        assert not out.requires_grad
        assert_same([out], [other(*case.sample())], case.close)


def test_a_converted_model_compiles_once_for_all_batch_sizes():
    mine, other = blocks()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(mine, fullgraph=True, dynamic=True, backend=counter)
    counts = []
    for batch in (9, 11):
        x = torch.randn(batch, 6, dtype=torch.float64)
        assert_same(step(compiled, [x], needs_input=False), step(other, [x], needs_input=False))
        counts.append(counter.frame_count)
    assert counts[0] == counts[1]


@pytest.mark.parametrize(
    "mode", [torch.no_grad, torch.inference_mode], ids=["no_grad", "inference"]
)
def test_a_converted_model_compiles_without_gradients(mode):
    mine, other = blocks()
    x = torch.randn(4, 6, dtype=torch.float64)
    compiled = torch.compile(mine, fullgraph=True, backend="aot_eager")
    with mode():
        out = compiled(x)
        assert not out.requires_grad
        assert_same([out], [other(x)])


def train(model, loss, compiled=None, autocast=None):
    """Three steps of SGD; the losses and the parameters reached."""
    torch.manual_seed(3)
    x, y = torch.randn(8, 6), torch.randint(0, 3, (8,))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)

    def objective(x, y):
        with torch.autocast("cpu", autocast or torch.bfloat16, enabled=autocast is not None):
            return loss(model(x), y)

    run = torch.compile(objective, fullgraph=True, backend=compiled) if compiled else objective
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        value = run(x, y)
        value.backward()
        assert all(p.grad.dtype is p.dtype for p in model.parameters())
        optimizer.step()
        losses.append(value.detach())
    assert losses[-1] < losses[0]
    return *losses, *(p.detach() for p in model.parameters())


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_a_training_step_with_cross_entropy(backend):
    case = network([6, 5, 3], "GELU")
    mine, other = case.pair(torch.float32)
    ours = train(mine, nn.CrossEntropyLoss(label_smoothing=0.1), backend)
    assert_same(ours, train(other, torch.nn.CrossEntropyLoss(label_smoothing=0.1)), 2e-6)


def test_a_compiled_training_step_under_autocast():
    mine, other = network([6, 5, 3], "ReLU").pair(torch.float32)
    eager = train(copy.deepcopy(mine), nn.CrossEntropyLoss(), autocast=torch.bfloat16)
    ours = train(mine, nn.CrossEntropyLoss(), "aot_eager", torch.bfloat16)
    theirs = train(other, torch.nn.CrossEntropyLoss(), "aot_eager", torch.bfloat16)
    assert_same(ours, theirs, 1e-5)
    assert_same(ours, eager, 1e-5)


def test_inductor_with_a_converted_model():
    theirs = torch.nn.Sequential(
        torch.nn.Linear(6, 8), torch.nn.ReLU(), torch.nn.Dropout(0.5), torch.nn.Softmax(-1)
    )
    theirs.double().eval()
    mine = convert(copy.deepcopy(theirs), strict=True)
    x = torch.randn(4, 6, dtype=torch.float64)
    compiled = torch.compile(mine, fullgraph=True, backend="inductor")
    assert_same(step(compiled, [x]), step(theirs, [x]))


# --- export ------------------------------------------------------------------------------------

BATCH = torch.export.Dim("batch", min=2, max=64)
each_mode = pytest.mark.parametrize("strict", [True, False], ids=["strict", "non-strict"])


def exported_agrees(mine, other, x, other_x, strict, close=1e-12):
    program = torch.export.export(mine, (x,), dynamic_shapes=({0: BATCH},), strict=strict)
    saved = io.BytesIO()
    torch.export.save(program, saved)
    saved.seek(0)
    for module in (program.module(), torch.export.load(saved).module()):
        for z in (x, other_x):
            assert_same([module(z.clone())], [other(z.clone())], close)
        if not strict:
            assert_same(by_name(module, x), by_name(other, x), close)
    return program


def by_name(module, x):
    """Gradients of the input and the parameters: autograd goes through the ops of the program."""
    x = x.clone().requires_grad_()
    params = dict(sorted(module.named_parameters()))
    out = module(x)
    return torch.autograd.grad(out, [x, *params.values()], incoming(out))


@each(ACTIVATIONS)
@pytest.mark.one_in(3)
def test_strict_export(case):
    mine, other = case.pair(training=False)
    exported_agrees(mine, other, *case.sample(8), *case.sample(11), True, case.close)


@each(ACTIVATIONS)
@pytest.mark.one_in(3)
def test_export(case):
    mine, other = case.pair(training=False)
    exported_agrees(mine, other, *case.sample(8), *case.sample(11), False, case.close)


@each_mode
@pytest.mark.parametrize("options", [("ReLU", 0.0), ("Tanh", 0.4)], ids=str)
def test_export_of_a_network(options, strict):
    activation, dropout = options
    case = network([6, 5, 3], activation, dropout=dropout)
    mine, other = case.pair(training=False)
    program = exported_agrees(mine, other, *case.sample(8), *case.sample(11), strict)
    assert set(program.state_dict) == set(other.state_dict())


@each_mode
def test_export_of_a_converted_model(strict):
    mine, other = blocks(p=0.4)
    x = torch.randn(11, 6, dtype=torch.float64)
    exported_agrees(mine.eval(), other.eval(), x[:8], x, strict)


@each([c for c in LOSSES if c.kwargs.get("reduction") != "none"])
def test_export_of_a_loss(case):
    mine, other = case.pair()
    tensors = case.sample()
    program = torch.export.export(mine, tensors)
    assert_same([program.module()(*tensors)], [other(*tensors)])


def test_an_exported_program_holds_only_torchs_ops():
    program = torch.export.export(nn.MLP([6, 5, 3], "gelu"), (torch.randn(4, 6),))
    ops = {str(n.target) for n in program.graph.nodes if n.op == "call_function"}
    assert ops and all(op.startswith("aten.") for op in ops), ops


class Product(torch.autograd.Function):
    """A Function as PyTorch's manual writes one."""

    @staticmethod
    def forward(x, w):
        return x * w

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, d):
        x, w = ctx.saved_tensors
        return d * w, (d * x).sum(0)


class Scale(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(6))

    def forward(self, x):
        return Product.apply(x, self.weight)


@pytest.mark.parametrize("module", [Scale(), nn.Linear(6, 6)], ids=["plain Function", "ours"])
def test_strict_export_leaves_no_gradient_in_any_custom_function(module):
    """PyTorch's: the strict program runs a Function's forward under no_grad; the other is differentiable."""
    x = torch.randn(4, 6)
    for strict in (True, False):
        program = torch.export.export(module, (x,), strict=strict)
        assert program.module()(x).requires_grad is not strict


@pytest.mark.parametrize("name", ["celu", "elu", "leaky_relu", "hardtanh", "softplus"])
@pytest.mark.one_in(3)
def test_an_option_that_changes_from_call_to_call(name):
    """After the second one Dynamo takes it for an input."""
    torch._dynamo.reset()
    function = getattr(functional, name)
    compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
    for option in (1.0, 0.7, 1.9) if name != "hardtanh" else (-1.0, -0.5, -0.2):
        found = []
        for f in (compiled, function):
            x = torch.linspace(-3, 3, 12).requires_grad_()
            f(x, option).sum().backward()
            found.append(x.grad)
        torch.testing.assert_close(*found)
