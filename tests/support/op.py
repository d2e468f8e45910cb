"""What a row of the registry is, and what makes one: an op with one choice of options, and its inputs."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch.nn import functional as TF

from manualnn import functional as F
from manualnn.autograd.examples import classes, inputs, normal, probabilities, weights

__all__ = ["Op", "classes", "inputs", "normal", "pair", "probabilities", "row", "weights"]


@dataclass(frozen=True)
class Op:
    """One op with one choice of options.

    name: of the function in manualnn.functional (or of the module, for MLP).
    ours, torchs: take the tensors that ``inputs(dtype)`` makes.
    kinks: values of the first input at which the derivative jumps; random inputs are kept away.
    random: draws random numbers; seeded before each call.
    batch: the inputs that carry the batch as their first dimension.
    differentiable: the inputs that may require a gradient; all floating ones if None.
    keeps_more: why it keeps more bytes than torch; empty for all that do not.
    keeps_inputs: keeps its inputs as they were given, where torch keeps copies of its own making.
    parameters: the inputs that a module owns: alive anyway, so they do not count as kept.
    exact: the op composed of torch's elementary ones, where torch's own backward has constants that
        are rounded to float32 even in float64 (its error is then torch_off · 1e-12).
    """

    name: str
    option: str
    ours: Callable
    torchs: Callable
    inputs: Callable
    kinks: tuple = ()
    random: bool = False
    batch: tuple = (0,)
    differentiable: tuple | None = None
    pointwise: bool = False
    exact: Callable | None = None
    torch_off: float = 5.0
    parameters: tuple = ()
    keeps_more: str = ""
    keeps_inputs: bool = False

    @property
    def reference(self):
        return self.exact or self.torchs

    @property
    def id(self):
        return f"{self.name}-{self.option}" if self.option else self.name


def pair(
    name, option, make, batch=(0,), kinks=(), random=False, torchs=None, exact=None, **options
):
    ours, theirs = getattr(F, name), torchs or getattr(TF, name)
    return Op(
        name,
        option,
        partial(ours, **options),
        partial(theirs, **options),
        make,
        kinks,
        random,
        batch,
        exact=exact,
    )


def row(name, option, call, make, batch, differentiable=None, keeps_more=""):
    """A row whose weights are tensors too: call(module of functions, *tensors)."""
    return Op(
        name,
        option,
        partial(call, F),
        partial(call, TF),
        make,
        batch=batch,
        differentiable=differentiable,
        keeps_more=keeps_more,
    )
