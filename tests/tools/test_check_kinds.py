"""What manualnn.check takes, what it says of torch's own, and that one cause is reported once."""

import json
import os

import numpy
import pytest
import torch
from catalogue import normal
from torch import nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional as TF

import manualnn
from manualnn.tools.checks.report import (
    DECLARED,
    FAILED,
    NOTE,
    PASSED,
    SAME,
    UNSUPPORTED,
    Line,
    Report,
)

DIFFERENCES, SECOND = "backward against central differences", "second backward"
QUICK = ("compile", "time, forward and backward")
SEEDS = int(os.environ.get("CHECK_SEEDS", "2"))  # 200 of them took half an hour


def only(target, *inputs, line=DIFFERENCES, **options):
    return manualnn.check(target, *inputs, only=[line], **options)[line]


def wrong(report):
    return [line for line in report.lines if line.status == FAILED]


def linear(backward):
    """A linear layer in the older style with that backward of (x, W, dz)."""

    class Linear(Function):
        @staticmethod
        def forward(ctx, x, W, b):
            ctx.save_for_backward(x, W)
            return x @ W.T + b

        @staticmethod
        def backward(ctx, dz):
            return backward(*ctx.saved_tensors, dz)

    return Linear


# Models of torch's own layers.


def normalised():
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh()), torch.randn(8, 4)


def convolutional():
    layers = nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()
    return nn.Sequential(*layers, nn.Linear(27, 5)), torch.randn(4, 1, 8, 8)


@pytest.mark.parametrize("build", [normalised, convolutional])
@pytest.mark.one_in(2)
def test_a_plain_model_is_right_whatever_its_numbers(build):
    for seed in range(SEEDS):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model, x = build()
        report = manualnn.check(model, x, seed=seed, skip=QUICK)
        assert report and not wrong(report), f"seed {seed}\n{report}"


def test_what_pytorch_refuses_of_its_own_is_not_supported_and_no_fault():
    report = manualnn.check(nn.BatchNorm1d(3), normal(5, 3), only=["vmap", "per-sample gradients"])
    assert [line.status for line in report.lines] == [UNSUPPORTED, UNSUPPORTED]
    assert all(line.refused_by == "PyTorch" for line in report.lines)
    assert report and not report.failures
    assert str(report).splitlines()[0] == "BatchNorm1d: right (2 refused by PyTorch)"


class Twice(Function):
    """Its backward takes an empty batch."""

    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, dz):
        return 2 * dz


class Largest(Twice):
    """Its backward asks for the largest of nothing."""

    @staticmethod
    def backward(ctx, dz):
        return 2 * dz + 0 * dz.max()


class OneRow(Twice):
    """Its backward gives a row to an empty batch, which PyTorch then refuses."""

    @staticmethod
    def backward(ctx, dz):
        return 2 * dz if len(dz) else dz.new_zeros(1, *dz.shape[1:])


def divided(x):
    """A hook of somebody's own, which asks for the largest of nothing."""
    y = 2 * x
    if y.requires_grad:
        y.register_hook(lambda dy: dy + 0 * dy.max())
    return y


@pytest.mark.parametrize(
    ("function", "status"),
    [
        (lambda x: TF.pixel_shuffle(x, 2), UNSUPPORTED),
        (lambda x: TF.pixel_shuffle(Twice.apply(x), 2), UNSUPPORTED),
        (lambda x: torch.sin(Largest.apply(x)), FAILED),
        (lambda x: torch.sin(OneRow.apply(x)), FAILED),
        (divided, FAILED),
    ],
    ids=["torch", "torch behind a function", "raises", "another shape", "a hook"],
)
def test_who_refuses_an_empty_batch(function, status):
    line = only(function, normal(2, 4, 2, 2), line="empty batch")
    assert line.status == status and "refused by backward" in line.detail, line
    assert line.refused_by == ("PyTorch" if status == UNSUPPORTED else "")


def test_what_pytorch_cannot_vmap_is_reported_with_its_dimensions():
    def added(x, b):
        return (b * 1).add_(x)

    line = only(added, normal(4, 3), normal(4, 3), line="vmap")
    assert line.status == UNSUPPORTED and "not with in_dims=(0, None)" in line.detail


def test_a_lazy_module_stays_as_it_was():
    def lazy():
        return nn.Sequential(nn.LazyLinear(3), nn.LazyBatchNorm1d())

    model, state = lazy(), torch.get_rng_state()
    report = manualnn.check(model, normal(4, 3), reference=lazy(), only=[DIFFERENCES])
    assert report, report
    assert model[0].has_uninitialized_params() and torch.equal(torch.get_rng_state(), state)
    report = manualnn.check(nn.LazyConv2d(3, 3), normal(3))
    assert "it raises with these inputs" in report.failures[0].detail


# What people have.


def test_generators_among_the_arguments_are_left_where_they_were():
    def noisy(x, *, generators):
        mask = torch.rand(x.shape, generator=generators[0]) > 0.5
        return x * mask * float(generators[1].random())

    generators = [torch.Generator().manual_seed(3), numpy.random.default_rng(3)]
    before = generators[0].get_state(), generators[1].bit_generator.state
    report = manualnn.check(noisy, normal(4, 3), generators=generators, skip=QUICK)
    assert not wrong(report), report
    assert torch.equal(generators[0].get_state(), before[0])
    assert generators[1].bit_generator.state == before[1]


def test_token_ids_alone():
    model = nn.Sequential(nn.Embedding(11, 6), nn.Tanh(), nn.Linear(6, 11))
    report = manualnn.check(model, torch.tensor([1, 2, 3, 1]), skip=QUICK)
    assert not wrong(report) and report[DIFFERENCES].status == PASSED


def test_complex_numbers():
    z = torch.randn(3, dtype=torch.complex128)
    assert not wrong(manualnn.check(lambda z: z * z.conj(), z, skip=QUICK))

    class Square(Function):
        @staticmethod
        def forward(ctx, z):
            ctx.save_for_backward(z)
            return z * z

        @staticmethod
        def backward(ctx, dz):
            (z,) = ctx.saved_tensors
            return 2 * z * dz

    line = only(Square, z)
    assert line.status == FAILED and "complex" in line.detail
    Square.backward = staticmethod(lambda ctx, dz: 2 * ctx.saved_tensors[0].conj() * dz)
    assert only(Square, z).status == PASSED


def test_statistics_that_are_no_variables():
    def norm(x, running_mean, running_var):
        return TF.batch_norm(x, running_mean, running_var, training=True)

    x, statistics = normal(5, 3), (torch.zeros(3), torch.ones(3))
    report = manualnn.check(
        norm, x, *statistics, not_variables=("running_mean", "running_var"), skip=QUICK
    )
    assert not wrong(report), report
    assert [t.tolist() for t in statistics] == [[0.0] * 3, [1.0] * 3]
    with pytest.raises(ValueError, match="no input is called 'mean'"):
        manualnn.check(norm, x, *statistics, not_variables=("mean",))


def test_keyword_arguments():
    def scaled(x, *, scale, seed=0):
        return x * scale + seed

    for keywords in ({"scale": normal(3)}, {"kwargs": {"scale": normal(3), "seed": 5}}):
        report = manualnn.check(scaled, normal(4, 3), only=[DIFFERENCES], **keywords)
        assert report, report
    Product = linear(lambda x, W, dz: (dz @ W, dz.T @ x, 2 * dz.sum(0)))
    line = only(Product, normal(4, 3), b=normal(5), W=normal(5, 3))
    assert line.status == FAILED and line.detail.startswith("db is 2× too large")


class InFloat32(Function):
    @staticmethod
    def forward(ctx, x):
        if x.dtype is not torch.float32:
            raise RuntimeError("expected scalar type Float")
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    def backward(ctx, dz):
        return dz * ctx.saved_tensors[0].cos() * InFloat32.factor

    factor = 1.0


def test_a_kernel_that_takes_float32_alone(monkeypatch):
    report = manualnn.check(InFloat32, normal(4, 3), skip=QUICK)
    assert not wrong(report), report
    assert "checked in float32" in report["precision"].detail
    monkeypatch.setattr(InFloat32, "factor", 2.0)
    line = only(InFloat32, normal(4, 3))
    assert line.status == FAILED and "× too large" in line.detail


def test_float32_inside_is_named_and_held_to_its_precision():
    class Tanh(Function):
        slope = 1.0

        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return torch.tanh(x.float()).to(x.dtype)

        @staticmethod
        def backward(ctx, dz):
            a = torch.tanh(ctx.saved_tensors[0].float())
            return (dz.float() * (1 - a * a)).to(dz.dtype) * Tanh.slope

    report = manualnn.check(Tanh, normal(4, 3), skip=QUICK)
    assert not wrong(report) and "float32 inside" in report["precision"].detail
    Tanh.slope = 1.01
    assert only(Tanh, normal(4, 3)).status == FAILED


def test_what_a_call_changes_and_counts_as_constant():
    """torch's spectral norm moves u and v by a step of the power method, and differentiates without it."""
    torch.manual_seed(0)
    model, x = nn.utils.parametrizations.spectral_norm(nn.Linear(5, 4)), torch.randn(3, 5)
    weight = "parametrizations.weight.original"
    line = only(model, x)
    assert line.status == FAILED and "the call changes parametrizations.weight.0._u" in line.detail
    assert "surrogate=" in line.detail
    assert manualnn.check(model, x, surrogate={weight: "u and v count as constants"}, skip=QUICK)
    assert "the call changes" not in only(model.eval(), x).detail


def test_what_cannot_be_called_is_a_report():
    report = manualnn.check(torch.matmul, normal(4, 3), normal(4, 3))
    assert not report and report.failures[0].name == "forward"
    assert "it raises with these inputs: RuntimeError" in report.failures[0].detail


def test_numpy_with_a_backward_of_its_own():
    class Sine(Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return torch.from_numpy(numpy.asarray(numpy.sin(x.detach().numpy())))

        @staticmethod
        @once_differentiable
        def backward(ctx, dz):
            return dz * torch.from_numpy(ctx.saved_tensors[0].cos().numpy())

    report = manualnn.check(Sine, normal(4, 3), skip=QUICK)
    assert not wrong(report), report


# Kinks, ties and edges.


@pytest.mark.parametrize(
    ("function", "at"),
    [
        (torch.log, [1e-3, 1.0]),
        (torch.sqrt, [1e-3, 1.0]),
        (torch.acos, [0.9995, 0.1]),
        (lambda p: TF.binary_cross_entropy(p, torch.ones_like(p)), [1e-3, 0.4]),
        (torch.relu, [0.0, 0.0, 1.0]),
        (torch.abs, [0.0, -1.0]),
        (lambda x: TF.max_pool1d(x[None], 2), [0.0, 0.0, 1.0, 2.0]),
        (torch.floor, [1.0, 0.5]),
    ],
)
def test_kinks_and_edges_are_no_faults(function, at):
    report = manualnn.check(function, torch.tensor(at), only=[DIFFERENCES, SECOND, "forward mode"])
    assert not wrong(report), report


def test_labels_at_both_ends_of_their_domain():
    p, y = torch.tensor([0.2, 0.7, 0.4]), torch.tensor([0.0, 1.0, 1.0])
    report = manualnn.check(TF.binary_cross_entropy, p, y, skip=QUICK)
    assert not wrong(report), report


def test_beside_a_kink_the_slope_counts():
    def doubled(x):
        return 2 * torch.relu(x)

    class Wrong(Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x.clamp(min=0)

        @staticmethod
        def backward(ctx, dz):
            (x,) = ctx.saved_tensors
            return dz * torch.where(x == 0, 3.0, (x > 0).to(x.dtype))

    x = torch.tensor([5e-4, -3e-4, 0.0, 1.0])
    assert only(doubled, x).status == PASSED and "a kink is here" in only(doubled, x).detail
    line = only(Wrong, x)
    assert line.status == FAILED and line.where.startswith("dx[2]")


@pytest.mark.parametrize(
    "function",
    [lambda x: x.clamp(min=0), lambda x: torch.where(x > 0, x, 0.1 * x), lambda x: x.sort().values],
)
def test_the_second_derivative_near_a_kink(function):
    assert only(function, torch.tensor([5e-4, 1.0, -2e-4]), line=SECOND).status == PASSED


# Surrogates.


def test_a_declared_input_is_left_alone_in_every_line():
    def loss(p, y):
        return TF.binary_cross_entropy_with_logits(p, y.detach())

    surrogate = {"y": "a label"}
    report = manualnn.check(
        loss, normal(4), torch.rand(4), surrogate=surrogate, reference=lambda p, y: loss(p, y)
    )
    assert not wrong(report) and report[DIFFERENCES].status == DECLARED


# One cause once, in the right words.


def test_what_backward_raises_everywhere_is_reported_once():
    Linear = linear(lambda x, W, dz: (dz @ W, dz.T @ x, dz.sum(0).squeeze(0)))
    report = manualnn.check(Linear, normal(4, 3), normal(1, 3), normal(1))
    lines = [line for line in report.lines if "invalid gradient" in line.detail]
    assert [line.name for line in lines] == [DIFFERENCES]
    assert lines[0].detail.startswith("RuntimeError: ")
    assert any(line.status == SAME for line in report.lines)


def test_a_factor_is_the_batch_only_if_it_is_the_batch():
    inputs = normal(4, 3), normal(5, 3), normal(5)
    for factor, words in (
        (1 / 4, "4× too small: divided by the batch twice?"),
        (1 / 3, "3× too small: divided by 3, a size of the inputs, twice?"),
        (1 / 7, "7× too small: a factor is missing"),
        (4.0, "4× too large: not divided by the batch?"),
    ):
        Linear = linear(lambda x, W, dz, k=factor: (dz @ W, k * dz.T @ x, dz.sum(0)))
        assert only(Linear, *inputs).detail == f"dW is {words}"


@pytest.mark.parametrize("shape", [(5,), (1, 5)])
def test_a_sum_over_all_dimensions_is_named_for_columns_too(shape):
    Linear = linear(lambda x, W, dz: (dz @ W, dz.T @ x, dz.sum().expand(shape)))
    detail = only(Linear, normal(4, 3), normal(5, 3), normal(*shape)).detail
    assert detail.startswith("db is summed over all dimensions")


def test_wrong_and_not_supported_are_counted_apart():
    def report(*statuses):
        return str(Report("Op", [Line(f"l{i}", s) for i, s in enumerate(statuses)]))

    assert report(UNSUPPORTED, PASSED).startswith("Op: 0 wrong, 1 not supported; first: l0")
    assert report(UNSUPPORTED, FAILED).startswith("Op: 1 wrong, 1 not supported; first: l1")
    assert report(FAILED, SAME, NOTE).startswith("Op: 1 wrong; first: l0")
    right = linear(lambda x, W, dz: (dz @ W, dz.T @ x, dz.sum(0)))
    checked = manualnn.check(right, normal(4, 3), normal(5, 3), normal(5), skip=["autocast"])
    assert "Linear: 0 wrong, 4 not supported; first: forward mode" in str(checked)
    assert json.loads(checked.to_json())["passed"] is False


# In place.


def test_a_function_that_works_in_place():
    class AddTo(Function):
        @staticmethod
        def forward(ctx, a, b):
            a[1:2] += b
            ctx.mark_dirty(a)
            return a

        @staticmethod
        def backward(ctx, dz):
            return dz, dz[1:2]

    report = manualnn.check(AddTo, torch.ones(2), torch.ones(1), skip=QUICK)
    assert not wrong(report), report
    AddTo.backward = staticmethod(lambda ctx, dz: (dz, dz[0:1]))
    assert only(AddTo, torch.ones(2), torch.ones(1)).status == FAILED


@pytest.mark.parametrize("inside", [False, True], ids=["last", "inside a model"])
def test_an_incoming_gradient_that_is_overwritten(inside):
    class ReLU(Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x.clamp(min=0)

        @staticmethod
        @once_differentiable
        def backward(ctx, dz):
            dz = dz.contiguous()
            dz[ctx.saved_tensors[0] < 0] = 0
            return dz

    def model(x):
        return 3 * ReLU.apply(2 * x)

    report = manualnn.check(model if inside else ReLU, normal(4, 3), skip=QUICK)
    assert len(wrong(report)) == 1
    assert "overwrites the incoming gradient" in wrong(report)[0].detail
