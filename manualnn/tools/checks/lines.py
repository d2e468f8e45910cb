"""One function a kind of line: each takes a Subject and answers with a Line, or None where it does not
apply. What it raises becomes a line, too (``guarded``)."""

import re
from functools import wraps

import torch

from manualnn.tools.checks.numeric import apart, largest, place
from manualnn.tools.checks.report import FAILED, PASSED, SAME, UNSUPPORTED, Line

EXACT = 1e-10  # two computations in float64
BESIDE = 1e-3  # of the largest of all: below it a tensor is compared with that, not with itself
# What PyTorch, or a Function that leaves a method out, says when a regime is not there.
REFUSALS = (
    "not implemented",
    "not support",
    "does not have",
    "not yet support",
    "must implement",
    "must override",
    "must be overriden",
    "setup_context",
    "vmap staticmethod",
    "once_differentiable",
    "Unsupported",
    "unsupported",
    "does not require grad",
    "cannot be differentiated twice",
    "unsafe to autocast",
    "is incompatible with .grad()",  # a reentrant checkpoint
)

LINES = []  # every line that a check makes, in order: (name, function)


def line(name, regime="", after=()):
    """Registers a function as the maker of the line of that name.

    regime: what it means where it raises although the plain call does not: that is then not supported,
    and not wrong. after: lines whose failure explains a failure of this one.
    """

    def register(make):
        LINES.append((name, guarded(name, make, regime, after)))
        return make

    return register


def guarded(name, make, regime="", after=()):
    @wraps(make)
    def run(subject, **options):
        try:
            made = make(subject, **options)
        except Exception as error:  # what is checked is a person's code, which may raise anything
            made = raised(name, error, regime)
            if made.status == UNSUPPORTED and _refused_of_the_reference(subject, make):
                made = Line(name, UNSUPPORTED, detail=made.detail, refused_by="PyTorch")
        if made is None:
            return None
        return subject.reported_once(made, after)

    return run


def _refused_of_the_reference(subject, make):
    """Whether PyTorch's own layers, in the place of what is checked, are refused as well."""
    if subject.of_pytorch:
        return True
    twin = subject.twin()
    if twin is None:
        return False
    try:
        made = make(twin)
    except Exception:  # whatever it is: it is refused
        return True
    return made is not None and made.status == UNSUPPORTED


def raised(name, error, regime=""):
    """The line for an exception: not supported in a regime, or where PyTorch says so; else failed."""
    text = " ".join(str(error).split())
    kind = type(error).__name__
    refused = isinstance(error, NotImplementedError) or any(word in text for word in REFUSALS)
    short = text if len(text) <= 200 else text[:197] + "..."
    meaning = f"{regime}: " if regime and not refused else ""
    status = UNSUPPORTED if refused or regime else FAILED
    return Line(name, status, detail=f"{meaning}{kind}: {short}")


def reported_once(made, earlier, after):
    """The line, or "same cause" where it says again what one of the earlier lines reports."""
    if made.status not in (FAILED, UNSUPPORTED):
        return made
    for other in earlier:
        if other.status != FAILED:
            continue
        exception = _exception(other.detail)
        if exception and exception in _plain(made.detail):
            return Line(made.name, SAME, detail=f"as in {other.name!r}")
        if made.status == FAILED and other.name in after:
            return Line(made.name, SAME, made.error, made.where, f"as in {other.name!r}")
    return made


def _exception(detail):
    """The beginning of an exception's message out of a detail that ends in one; else nothing."""
    _, found, message = _plain(detail).partition("Error: ")
    return message[:60] if found else ""


def _plain(text):
    """Without the names of nodes: a compiler calls them otherwise."""
    return re.sub(r"\b\w+Backward\b", "backward", text)


def compared(name, ours, theirs, names, tolerance=EXACT, detail="", message="", size=0.0):
    """The line for two lists of tensors (None counts as zero) that should be the same.

    A tensor that is zero by nature, as the gradient of a bias before a norm, is rounding alone: it is
    compared with the size of the others, or with ``size``, which all of them may cancel out from.
    """
    worst, where = 0.0, ""
    floor = BESIDE * max((largest(t) for t in theirs if t is not None), default=0.0)
    floor = max(floor, size)
    for label, mine, other in zip(names, ours, theirs, strict=True):
        if mine is None and other is None:
            continue
        mine = torch.zeros_like(other) if mine is None else mine
        other = torch.zeros_like(mine) if other is None else other
        if mine.shape != other.shape:
            shapes = f"{label} has shape {tuple(mine.shape)}, not {tuple(other.shape)}"
            detail = f"{message}: {shapes}" if message else shapes
            return Line(name, FAILED, float("inf"), label, detail)
        error, at = apart(mine, other, floor)
        if error > worst:
            worst = error
            values = (mine.reshape(-1)[at].item(), other.reshape(-1)[at].item())
            where = f"{place(label, mine.shape, at)} is {values[0]:.9g}, not {values[1]:.9g}"
    if worst <= tolerance:
        return Line(name, PASSED, worst, detail=detail)
    return Line(name, FAILED, worst, where, message)


def gradient_names(subject):
    return [f"d{name}" if len(name) <= 2 else f"d({name})" for name in subject.names]


def output_names(outputs):
    return ["output"] if len(outputs) == 1 else [f"output {i}" for i in range(len(outputs))]
