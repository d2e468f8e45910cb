"""The battery must be able to fail: each fault planted here is caught by the test that is named."""

from dataclasses import replace

import ops
import pytest
import test_battery_memory
import test_battery_orders
import test_battery_regimes
import test_battery_values
import torch
from faults import SavedWithoutHistory
from torch.nn import functional as TF

from manualnn.autograd.activation import Activation
from manualnn.autograd.function import Function


def tanh(**formulas):
    """A tanh written like ours, with some of its formulas replaced by faulty ones."""
    right = {
        "g": lambda z: torch.tanh(z),
        "g_prime_a": lambda a: 1 - a * a,
        "kernel": torch.tanh,
        "kernel_prime_a": lambda da, a: da * (1 - a * a),
    }
    return type("Tanh", (Activation,), right | formulas).apply


def row(ours, torchs=torch.tanh, **changes):
    """A row of the registry for a faulty op."""
    template = next(op for op in ops.OPS if op.name == "tanh")
    return replace(template, ours=ours, torchs=torchs, **changes)


class StoredOnContext(torch.autograd.Function):
    """tanh that stores its output as an attribute of ctx: it leaks, and escapes the version check."""

    @staticmethod
    def forward(ctx, z):
        ctx.a = torch.tanh(z)
        return ctx.a

    @staticmethod
    def backward(ctx, da):
        return da * (1 - ctx.a * ctx.a)


class SavesTooMuch(Function):
    """tanh that saves its input as well as its output."""

    @staticmethod
    def forward(z):
        return torch.tanh(z)

    @staticmethod
    def setup_context(ctx, inputs, a):
        ctx.save_for_backward(*inputs, a)

    @staticmethod
    def backward(ctx, da):
        _, a = ctx.saved_tensors
        return da * (1 - a * a)


class OldStyle(torch.autograd.Function):
    """tanh in the style that torch.func refuses."""

    @staticmethod
    def forward(ctx, z):
        a = torch.tanh(z)
        ctx.save_for_backward(a)
        return a

    @staticmethod
    def backward(ctx, da):
        (a,) = ctx.saved_tensors
        return da * (1 - a * a)


class LinearOfOneDimension(Function):
    """A linear layer whose db sums over no dimension, which is over all, of a 1-D input."""

    @staticmethod
    def forward(x, W, b):
        return TF.linear(x, W, b)

    @staticmethod
    def setup_context(ctx, inputs, z):
        ctx.save_for_backward(*inputs[:2])

    @staticmethod
    def backward(ctx, dz):
        x, W = ctx.saved_tensors
        return dz @ W, torch.outer(dz, x), dz.sum(tuple(range(dz.dim() - 1)))

    @staticmethod
    def jvp(ctx, dx, dW, db):
        raise NotImplementedError


def float32_constant(z):
    return torch.tanh(z) + torch.tensor(0.1, dtype=torch.float32).to(z.dtype) - 0.1


def rounded_twice(z):
    return (torch.tanh(z).bfloat16() * 3).to(z.dtype) / 3


BATTERY = {
    name: test
    for module in (
        test_battery_memory,
        test_battery_orders,
        test_battery_regimes,
        test_battery_values,
    )
    for name, test in vars(module).items()
    if name.startswith("test_")
}
first = "test_first_derivative_against_finite_differences"
second = "test_second_derivative_against_finite_differences"
value = "test_value_and_gradient_equal_torchs"
FAULTS = {
    "sign": (row(tanh(kernel_prime_a=lambda da, a: -da * (1 - a * a))), first),
    "scale": (row(tanh(kernel_prime_a=lambda da, a: da * (1 - a * a) * 1.0008)), value),
    "scale of the formula": (row(tanh(g_prime_a=lambda a: (1 - a * a) * 1.0008)), value),
    "missing term": (row(tanh(kernel_prime_a=lambda da, a: da * (1 - a))), first),
    "from the wrong tensor": (row(tanh(g_prime=lambda z: 1 - z * z, g_prime_a=None)), first),
    "forward off": (row(tanh(kernel=lambda z: torch.tanh(z) * (1 + 1e-9))), value),
    "float32 constant": (row(float32_constant), value),
    "history": (
        row(lambda z: SavedWithoutHistory.apply(z)[0], lambda z: torch.tanh(z) ** 2),
        second,
    ),
    "history, in forward mode": (
        row(lambda z: SavedWithoutHistory.apply(z)[0], lambda z: torch.tanh(z) ** 2),
        "test_forward_over_reverse_without_torch_func",
    ),
    "stored on ctx, stale": (
        row(StoredOnContext.apply),
        "test_change_between_forward_and_backward_raises_or_is_harmless",
    ),
    "stored on ctx, leaked": (row(StoredOnContext.apply), "test_nothing_is_kept_after_backward"),
    "too much saved": (row(SavesTooMuch.apply), "test_keeps_no_more_bytes_than_torch"),
    "no jvp": (row(SavesTooMuch.apply), first),
    "old style": (row(OldStyle.apply), "test_torch_func"),
    "no vmap": (row(OldStyle.apply), "test_vmap_and_per_sample_gradients"),
    "kink": (
        row(
            lambda z: torch.where(z >= 0, z, 0 * z),
            torch.relu,
            kinks=(0.0,),
            inputs=ops.inputs(ops.normal(4, 6, away=(0.0,))),
        ),
        "test_kinks",
    ),
    "infinity": (row(lambda z: z * (z > 0), torch.relu), "test_special_values"),
    "sign of zero": (row(lambda z: torch.tanh(z) + 0.0), "test_special_values"),
    "precision": (row(rounded_twice), "test_error_against_float64_is_no_worse_than_torchs"),
    "autocast": (
        replace(
            next(op for op in ops.OPS if op.id == "linear-no-bias"),
            ours=lambda x, W: TF.linear(x, W).float(),
        ),
        "test_autocast",
    ),
    "1-D bias": (
        replace(
            next(op for op in ops.OPS if op.id == "linear-1d"), ours=LinearOfOneDimension.apply
        ),
        "test_each_input_alone",
    ),
    "graph break": (
        row(lambda z: torch.tanh(z) * (1 if z.sum().item() else 1)),
        "test_compile_fullgraph",
    ),
}
EXTRA = {
    value: {"dtype": torch.float64, "create_graph": False},
    "test_kinks": {"create_graph": False},
    "test_error_against_float64_is_no_worse_than_torchs": {"dtype": torch.float16},
    "test_autocast": {"dtype": torch.bfloat16},
    "test_change_between_forward_and_backward_raises_or_is_harmless": {"changed": "output"},
}


@pytest.mark.parametrize("fault", FAULTS)
def test_fault_is_caught(fault):
    op, name = FAULTS[fault]
    options = dict(EXTRA.get(name, {}))
    if fault == "scale of the formula":
        options["create_graph"] = True
    with pytest.raises(Exception) as caught:
        BATTERY[name](op, **options)
    assert not isinstance(caught.value, (TypeError, AttributeError, NameError)), caught.value


@pytest.mark.parametrize("name", sorted({name for _, name in FAULTS.values()}))
def test_the_right_op_passes(name):
    BATTERY[name](row(tanh()), **EXTRA.get(name, {}))
