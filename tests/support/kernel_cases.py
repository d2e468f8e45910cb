"""The formulas that the tests of kernels run: of every activation with its options, and of a user's own."""

from contextlib import contextmanager
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch
from snake import Snake
from torch.utils._python_dispatch import TorchDispatchMode

from manualnn.autograd import blockwise
from manualnn.autograd.blockwise import TimesSlope, WithTensors, _once
from manualnn.kernels import build, library, running
from manualnn.kernels.c import Given
from manualnn.ops.activations import pointwise

DEFAULTS = {
    "lo": -1.0,
    "hi": 1.0,
    "s": 0.01,
    "alpha": 1.0,
    "lambd": 0.5,
    "beta": 1.0,
    "threshold": 20.0,
}


class Case(NamedTuple):
    """A formula of `tensors` tensors as large as the first, then `singles` that are one number."""

    name: str
    formula: object
    options: tuple
    tensors: int
    singles: int = 0
    first: bool = True  # of its activation's examples

    def given(self, dtype):
        return (Given(dtype),) * self.tensors + (Given(dtype, True),) * self.singles

    def values(self, dtype, *shape, seed=0):
        """Random tensors, with special values among them."""
        g = torch.Generator().manual_seed(seed)
        made = []
        for _ in range(self.tensors):
            t = torch.randn(shape, generator=g, dtype=torch.float64) * 4
            special = [
                0.0,
                -0.0,
                float("inf"),
                float("-inf"),
                float("nan"),
                1e-40,
                0.5,
                -0.5,
                200.0,
                1.0,
                -1.0,
            ]
            at = torch.randint(0, max(t.numel(), 1), (min(len(special), t.numel()),), generator=g)
            t.view(-1)[at] = torch.tensor(special[: len(at)], dtype=torch.float64)
            made.append(t.to(dtype))
        return made + [
            torch.tensor(0.7 + i, dtype=dtype).expand(*shape) for i in range(self.singles)
        ]

    def run(self, *tensors):
        return blockwise.evaluate(self.formula, *tensors, options=self.options)


def options_of(cls, example):
    given = [v for k, v in example.options.items() if k not in ("inplace", "approximate")]
    names = [p.name for p in cls.options()]
    return tuple(given) if len(given) == len(names) else tuple(DEFAULTS[n] for n in names)


def _cases():
    made = {}
    for name in pointwise.__all__:
        cls = getattr(pointwise, name)
        for i, example in enumerate(cls.examples):
            options = options_of(cls, example)
            for which, tensors in (("g", 1), ("g_prime", 2), ("g_prime_a", 2)):
                formula = getattr(cls, which)
                if formula is not None:
                    formula = formula if tensors == 1 else TimesSlope(formula)
                    label = "-".join([name, which, *map(str, options)])
                    made[label] = Case(label, formula, options, tensors, first=i == 0)
    for formula in (
        pointwise._log_sigmoid,
        pointwise._log_sigmoid_prime,
        pointwise._tanhshrink_prime,
    ):
        count = formula.__code__.co_argcount
        made[formula.__name__] = Case(formula.__name__, formula, (), count)
    made["softsign_prime"] = Case("softsign_prime", pointwise._softsign_in_steps, (), 2)
    made["Snake-g"] = Case("Snake-g", WithTensors(Snake.g, 1, (True,)), (), 1, 1)
    for which in ("g_prime", "d_alpha"):
        formula = WithTensors(TimesSlope(getattr(Snake, which)), 2, (True,))
        made[f"Snake-{which}"] = Case(f"Snake-{which}", formula, (), 2, 1)
    return made


CASES = _cases()


@contextmanager
def switched_off():
    before, running.enabled = running.enabled, False
    try:
        yield
    finally:
        running.enabled = before


def make(cases, dtype):
    """The kernels of some cases, made together."""
    wanted = [running.Wanted(_once, c.formula, c.given(dtype), c.options) for c in cases]
    return running.make(wanted)


def here():
    """Whether kernels of every kind can be made on this machine."""
    return build._compiler() is not None and library.width(torch.float32) > 1


need_every_kind = pytest.mark.skipif(
    not here(), reason="no C compiler, or none of the vectors for which SLEEF's functions are known"
)


def by_aten(case, *tensors):
    with switched_off(), torch.no_grad():
        return case.run(*tensors)


def by_kernel(case, *tensors):
    """What evaluate gives, and it must have been a kernel that gave it."""
    found = []

    def seen(*args):
        found.append(running.run(*args))
        return found[-1]

    kernels = blockwise.kernels
    blockwise.kernels = SimpleNamespace(run=seen, is_large=running.is_large)
    try:
        with torch.no_grad():
            out = case.run(*tensors)
    finally:
        blockwise.kernels = kernels
    if found == [None] and not here():
        pytest.skip("no C compiler, or none of the vectors for which SLEEF's functions are known")
    assert found and found[-1] is out and out is not None, "ATen has served"
    return out


def kernels_run(monkeypatch, call):
    """How many calls a kernel has answered."""
    count = []

    def seen(*args):
        found = running.run(*args)
        count.append(found is not None)
        return found

    monkeypatch.setattr(blockwise, "kernels", SimpleNamespace(run=seen, is_large=running.is_large))
    call()
    return sum(count)


def answers(monkeypatch, module, names, call):
    """Whether each question to these functions of a module, in order, was answered by a kernel."""
    found = []

    def seen(of):
        def ask(*args):
            found.append(of(*args))
            return found[-1]

        return ask

    for name in names:
        monkeypatch.setattr(module, name, seen(getattr(module, name)))
    call()
    return [f is not None for f in found]


class Looks(TorchDispatchMode):
    """A mode that sees each operation."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))
