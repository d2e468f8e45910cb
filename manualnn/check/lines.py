"""One function a kind of line: each takes a Subject and answers with a Line, or None where it does not
apply. What it raises becomes a line, too (``guarded``)."""

from functools import wraps

import torch

from manualnn.check.numeric import apart, place
from manualnn.check.report import FAILED, PASSED, UNSUPPORTED, Line

EXACT = 1e-10  # two computations in float64
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
    "does not require grad",
    "cannot be differentiated twice",
)

LINES = []  # every line that a check makes, in order: (name, function)


def line(name, raising=""):
    """Registers a function as the maker of the line of that name; ``raising``: what it means if it raises."""

    def register(make):
        LINES.append((name, guarded(name, make, raising)))
        return make

    return register


def guarded(name, make, raising):
    @wraps(make)
    def run(subject, **options):
        try:
            return make(subject, **options)
        except Exception as error:  # what is checked is a person's code, which may raise anything
            return raised(name, error, raising)

    return run


def raised(name, error, raising=""):
    """The line for an exception: not supported where PyTorch says so, else failed."""
    text = " ".join(str(error).split())
    kind = type(error).__name__
    refused = isinstance(error, NotImplementedError) or any(word in text for word in REFUSALS)
    short = text if len(text) <= 200 else text[:197] + "..."
    meaning = f"{raising}: " if raising and not refused else ""
    return Line(name, UNSUPPORTED if refused else FAILED, detail=f"{meaning}{kind}: {short}")


def compared(name, ours, theirs, names, tolerance=EXACT, detail="", told=""):
    """The line for two lists of tensors (None counts as zero) that should be the same."""
    worst, where = 0.0, ""
    for label, mine, other in zip(names, ours, theirs, strict=True):
        if mine is None and other is None:
            continue
        mine = torch.zeros_like(other) if mine is None else mine
        other = torch.zeros_like(mine) if other is None else other
        if mine.shape != other.shape:
            shapes = f"{label} has shape {tuple(mine.shape)}, not {tuple(other.shape)}"
            return Line(name, FAILED, float("inf"), label, shapes)
        error, at = apart(mine, other)
        if error > worst:
            worst = error
            values = (mine.reshape(-1)[at].item(), other.reshape(-1)[at].item())
            where = f"{place(label, mine.shape, at)} is {values[0]:.9g}, not {values[1]:.9g}"
    if worst <= tolerance:
        return Line(name, PASSED, worst, detail=detail)
    return Line(name, FAILED, worst, where, told)


def gradient_names(subject):
    return [f"d{name}" if len(name) <= 2 else f"d({name})" for name in subject.names]


def output_names(outputs):
    return ["output"] if len(outputs) == 1 else [f"output {i}" for i in range(len(outputs))]
