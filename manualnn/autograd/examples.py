"""What an op stands for, and what it is tried with: by tests, ``check`` without arguments, benchmarks."""

from dataclasses import dataclass, field
from typing import NamedTuple

import torch


class Twin(NamedTuple):
    """What of torch's an op stands for.

    function: its name in torch.nn.functional; module: in torch.nn. attributes: those of the module that are
    the op's options, in order; None: they have the options' names. where: attributes that must have these
    values for the module to be this op. others: further modules of torch.nn that run it.
    """

    function: str
    module: str
    attributes: tuple | None = None
    where: dict = {}
    others: tuple = ()


@dataclass(frozen=True)
class Example:
    """One call that an op is tried with: ``function(*inputs(dtype), **options)``.

    kinks: values of the first input at which the derivative jumps; random inputs are kept away. function: of
    manualnn.functional, if it is not that of the op's twin. label: what is special about it. not_variables:
    inputs that are given and not differentiated. has_twin: whether torch's function of that name has the same.
    batch: the inputs that carry the batch as their first dimension. random: draws random numbers.
    """

    inputs: object
    options: dict = field(default_factory=dict)
    kinks: tuple = ()
    function: str = ""
    label: str = ""
    not_variables: tuple = ()
    has_twin: bool = True
    batch: tuple = (0,)
    random: bool = False


def tried(*kinks, **options):
    """The example of an elementwise op: (4, 6) numbers of both signs, away from its kinks."""
    return Example(inputs(normal(4, 6, away=kinks)), options, kinks)


def inputs(*makers):
    """What makes the inputs: each maker takes the dtype."""
    return lambda dtype: tuple(make(dtype) for make in makers)


def normal(*shape, away=(), scale=2.0):
    """Both signs, and at least 0.05 away from every kink, so that a finite difference does not cross."""

    def make(dtype):
        z = torch.randn(*shape, dtype=torch.float64) * scale
        for kink in away:
            near = (z - kink).abs() < 0.05
            z = torch.where(near, z + 0.2, z)
        for kink in away:
            assert ((z - kink).abs() > 0.01).all()
        return z.to(dtype)

    return make


def classes(*shape, high=5, ignore=None):
    def make(dtype):
        y = torch.randint(0, high, shape)
        if ignore is not None:
            y.view(-1)[0] = ignore
        return y

    return make


def probabilities(*shape, dim=None, low=0.05):
    def make(dtype):
        y = torch.rand(*shape, dtype=torch.float64) * (1 - 2 * low) + low
        return (y if dim is None else y / y.sum(dim, keepdim=True)).to(dtype)

    return make


def weights(*shape):
    return lambda dtype: (torch.rand(*shape, dtype=torch.float64) + 0.5).to(dtype)


def fixed(value):
    """An input that is no tensor, or the same each time."""
    return lambda dtype: value


# Signals, images and volumes: how many dimensions, two of two channels, and a window in them.
SIGNALS = (
    (1, normal(2, 2, 5), (2,)),
    (2, normal(2, 2, 5, 4), (2, 2)),
    (3, normal(2, 2, 5, 4, 1), (2, 2, 1)),
)
