"""``python -m manualnn kernel``: an activation's formulas, what they compute, and their C and Triton."""

import ast
import inspect
import textwrap
from typing import Any, NamedTuple

import torch

from manualnn import nn
from manualnn.autograd.activation import Activation
from manualnn.autograd.blockwise import TimesSlope, WithTensors
from manualnn.kernels import c, running, triton
from manualnn.kernels.c import Given
from manualnn.kernels.expressions import Expression
from manualnn.ops.catalogue import elementwise
from manualnn.tools.checks.command import Mistake, resolve

EPILOG = """
examples:
  python -m manualnn kernel silu
  python -m manualnn kernel softplus --options "2, 20" --only c
  python -m manualnn kernel mypackage:Snake

exit status: 0; 1 where a formula cannot be printed, and PyTorch's passes serve; 2 for a mistake
"""
PARTS = ("formula", "expression", "c", "triton")
DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16}
DTYPES |= {"float16": torch.float16}


class Printed(NamedTuple):
    """A formula of an activation, and what is made of it; None where PyTorch's passes serve."""

    title: str
    formula: str
    expression: Expression | None
    c: str | None
    triton: str | None


def add_arguments(parser):
    parser.add_argument(
        "target",
        help="one of manualnn's activations: silu, gelu, ...; or package.module:Name of your own",
    )
    parser.add_argument("--options", metavar="NUMBERS", help='of the activation, in order: "2, 20"')
    parser.add_argument(
        "--dtype", choices=DTYPES, default="float32", help="of the tensors (float32)"
    )
    parser.add_argument(
        "--only", action="append", choices=PARTS, help="print this part alone; once for each"
    )
    parser.set_defaults(run=run)


def run(arguments):
    """The exit status: 0, or 1 where there is something that is not printed."""
    cls = activation(arguments.target)
    options = options_of(cls, arguments.options)
    parts = arguments.only or PARTS
    formulas = printed(cls, options, DTYPES[arguments.dtype])
    for shown in formulas:
        print(f"=== {cls.__name__}: {shown.title}")
        for part in parts:
            text = getattr(shown, part)
            if text is None:
                text = "not printed: PyTorch's passes serve"
            print(f"\n--- {part}\n\n{str(text).rstrip()}")
        print()
    return 0 if all(shown.c for shown in formulas) else 1


def printed(cls: type[Activation], options: tuple[Any, ...], dtype: torch.dtype) -> list[Printed]:
    """The formulas of an activation with these options; of a learned one, whatever stands there."""
    names = [p.name for p in cls.options()]
    are_tensors = tuple(name in cls.learned for name in names)
    numbers = tuple(o for o, learned in zip(options, are_tensors, strict=True) if not learned)
    shown = []
    for title, slope, formula in _formulas(cls):
        takes = 1 if title == "a = g" else 2
        asked: Any = WithTensors(formula, takes, are_tensors) if any(are_tensors) else formula
        given = [Given(dtype)] * takes + [Given(dtype, True)] * sum(are_tensors)
        computed = torch.float64 if dtype is torch.float64 else torch.float32
        expression = running.expression_of(asked, computed, len(given), numbers)
        program = None if expression is None else c.program(expression, given, dtype)
        singles = tuple(g.single for g in given)
        shown.append(
            Printed(
                title,
                textwrap.dedent(inspect.getsource(slope)),
                expression,
                None if program is None else c.text([program]),
                None if expression is None else triton.source(expression, singles),
            )
        )
    return shown


def _formulas(cls):
    """(what it gives, the formula as it is written, the formula that is printed)."""
    yield "a = g", cls.g, cls.g
    named = {"dz = da ∗ g_prime": cls.g_prime, "dz = da ∗ g_prime_a": cls.g_prime_a}
    named |= {f"d_{name} = Σ da ∗ d_{name}": getattr(cls, f"d_{name}") for name in cls.learned}
    for title, slope in named.items():
        if slope is not None:
            yield title, slope, TimesSlope(slope)


def activation(text: str) -> type[Activation]:
    """The activation that a person names.

    Raises:
        Mistake: there is none.
    """
    if ":" in text:
        found, _ = resolve(text)
        if not (
            isinstance(found, type) and issubclass(found, Activation) and found is not Activation
        ):
            raise Mistake(f"{text} is no Activation: a kernel is printed from its formulas")
        return found
    ours = {cls.__name__.lower(): cls for cls in elementwise()}
    ours |= {cls.twin.function: cls for cls in reversed(elementwise())}
    if text.lower() not in ours:
        raise Mistake(f"{text!r} is none of {', '.join(sorted(ours))}, nor package.module:Name")
    return ours[text.lower()]


def options_of(cls: type[Activation], text: str | None) -> tuple[Any, ...]:
    """The options that a person gives, or those that the module has when it is given none.

    Raises:
        Mistake: they are no numbers, too few, or too many.
    """
    names = [p.name for p in cls.options()]
    if text is None:
        return _defaults(cls, names)
    try:
        found = ast.literal_eval(f"({text},)")
    except (SyntaxError, ValueError) as error:
        raise Mistake(f"--options {text!r} are no numbers") from error
    if len(found) != len(names):
        raise Mistake(
            f"{cls.__name__} takes {', '.join(names) or 'no options'}: {len(found)} given"
        )
    return found


def _defaults(cls, names):
    twin = cls.twin
    if twin is not None:
        needed = {k: v for k, v in cls.examples[0].options.items() if k != "inplace"}
        module = getattr(nn, twin.module)(**needed)
        return tuple(getattr(module, name) for name in (twin.attributes or names))
    try:
        return cls.defaults()
    except TypeError as error:
        raise Mistake(f"{error}: give --options, {', '.join(names)}") from error
