"""Is this backward right? A report that anyone can run on any Function, function, module or model.

    report = manualnn.check(MyFunction, x, W, b, reference=torch.nn.functional.linear)
    print(report)
    report.raise_for_failures()     # in a test

``python -m manualnn check package.module:Name`` does the same on the command line.
"""

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch

# The order of these imports is the order of the lines.
from manualnn.tools.checks import (  # noqa: F401  # isort: skip
    passed_on,
    attributes,
    derivatives,
    initial,
    incoming,
    calls,
    values,
    elsewhere,
    integers,
    parameters,
    batches,
    orders,
    regimes,
    dtypes,
    safety,
)
from manualnn.tools.checks.generators import generators_kept
from manualnn.tools.checks.lines import LINES
from manualnn.tools.checks.model import NAME as LAYERS
from manualnn.tools.checks.model import layer_line
from manualnn.tools.checks.report import FAILED, CheckError, Line, Report
from manualnn.tools.checks.targets import CannotRun, called_once, subject_of
from manualnn.tools.old_names import line_names, with_old_names

RUNS = "forward"  # the only line where it cannot be called at all

__all__ = ["CheckError", "Line", "Report", "check"]


@with_old_names(CheckError=CheckError, Report=Report)
def check(
    target: Any,
    *inputs: Any,
    reference: Callable[..., Any] | None = None,
    kinks: Iterable[float] | None = None,
    surrogate: str | Mapping[str, str] | None = None,
    names: Sequence[str] | None = None,
    not_variables: Sequence[str] = (),
    kwargs: Mapping[str, Any] | None = None,
    skip: Iterable[str] = (),
    only: Iterable[str] | None = None,
    seed: int = 0,
    **keywords: Any,
) -> Report:
    """Checks a hand-written backward in every regime and names the first thing that is wrong.

    Everything is computed in float64, whatever the dtype of the inputs (in float32, and to its precision,
    where the target refuses float64). Of a large input some elements are moved one by one and all along
    random directions, so that a check takes seconds. The global random state is left as it was.

    Args:
        target: an autograd.Function class, a function of tensors, an activation of manualnn's, or a
            torch.nn.Module (its parameters are checked like inputs; a model is also compared layer by
            layer with its converted or unconverted twin).
        inputs: what it is called with. Floating and complex tensors are differentiated, also those in
            lists and dicts; everything else is passed on. May be left out for an activation, or where the
            target has ``example_inputs()``.
        reference: a function (or module) that computes the same in another way.
        kinks: numbers at which the derivative jumps; random inputs are kept away from them and they are
            checked apart. By default ``target.kinks``, or none.
        surrogate: a reason why the gradient is deliberately not the true derivative (a string, or a
            dict of input name to string). By default ``target.surrogate``, or none.
        names: of the inputs; by default those of the signature.
        not_variables: names of floating inputs that are passed on and not differentiated, as
            ``("running_mean",)``.
        kwargs, keywords: keyword arguments that it is called with; those whose names check itself takes
            stand in ``kwargs``.
        skip, only: names of lines to leave out, or to make alone.
        seed: of all random numbers.

    Returns:
        Report: true where everything passed.

    Raises:
        TypeError: the target cannot be checked, or needs inputs.
        ValueError: ``skip`` or ``only`` names a line that there is not, or ``not_variables`` an input.

    >>> class Half(torch.autograd.Function):
    ...     @staticmethod
    ...     def forward(ctx, x):
    ...         return x / 2
    ...
    ...     @staticmethod
    ...     def backward(ctx, dz):
    ...         return dz
    >>> report = check(Half, torch.randn(3), only=["backward against central differences"])
    >>> bool(report), report.failures[0].detail
    (False, 'dx is 2× too large: a factor too many')
    """
    known = [name for name, _ in LINES] + [LAYERS]
    skip = line_names(skip, 4)
    only = None if only is None else line_names(only, 4)
    for name in (*skip, *(only or ())):
        if name not in known:
            raise ValueError(f"no line is called {name!r}; known: {', '.join(known)}")
    wanted = [n for n in known if n not in skip and (only is None or n in only)]
    keywords = {**(kwargs or {}), **keywords}
    settings = {"kinks": kinks, "surrogate": surrogate, "seed": seed}
    # In a region of the caller's, what is checked would be something else.
    with (
        warnings.catch_warnings(),
        torch.enable_grad(),
        torch.autocast("cpu", enabled=False),
        generators_kept(target, reference, inputs, keywords),
    ):
        warnings.simplefilter("ignore")
        try:
            made, by = [], ""
            target, reference = (
                called_once(t, inputs, keywords, seed) for t in (target, reference)
            )
            if LAYERS in wanted and isinstance(target, torch.nn.Module):
                made, target, reference, by = layer_line(target, inputs, keywords, reference)
            subject = subject_of(
                target, inputs, keywords, reference, not_variables, names, settings
            )
            subject.made = by
            for name, make in LINES:
                if name in wanted:
                    line = make(subject)
                    made += [line] if line is not None else []
            called = subject.name
        except CannotRun as error:
            called = getattr(target, "__qualname__", None) or type(target).__name__
            message = f"it raises with these inputs: {error}"
            if len(inputs) == 1 and type(inputs[0]) in (list, tuple):
                message += " (is the list meant as several inputs? they are given one by one)"
            made = [*made, Line(RUNS, FAILED, detail=message)]
    return Report(called, made)
