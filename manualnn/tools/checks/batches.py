"""More examples than a kernel has threads; and a batch of one that stands in two inputs."""

import time

import torch

from manualnn.tools.checks.departures import departs, is_nan
from manualnn.tools.checks.elsewhere import (
    EARLIER,
    LONG,
    LONGER,
    _follow,
    _graded,
    _is_asked,
    _steps,
    belong_together,
)
from manualnn.tools.checks.lines import line
from manualnn.tools.checks.parameters import agrees
from manualnn.tools.checks.report import NOTE, PASSED, Line
from manualnn.tools.checks.targets import of_length, resized

NAME = "batch of many"
SIZE = "batch of another size"
NUMBERS = 200_000  # in a batch of so many rows, at the most
FAST = 2e-3  # seconds of a call with a batch of LONG: pairs of rows would take 240 times as many
CLEAR = 1e-2  # an error beyond it is not of the rounding that so many rows add up to


@line(NAME, after=(*EARLIER, SIZE))
def many(subject):
    """A batch of one, where others are as long; and a batch of a thousand, of what passed with fewer."""
    if not subject.batched or not subject.batch or subject.alongside is None:
        return None
    if subject.surrogate or not _is_asked(subject):
        return None
    tried = [_shared(subject), _long(subject)]
    found = [made for made in tried if made is not None]
    return next((made for made in found if made.status != PASSED), *found[:1] or [None])


def _shared(subject):
    """The line for three examples in each input that had one; other lines take some of these for weights."""
    count = len(subject.inputs) if subject.arguments is None else subject.arguments
    alike = [
        i
        for i, t in enumerate(subject.inputs)
        if i < count and i not in subject.batched and t.dim() > 2 and len(t) == 1
    ]
    return _of(subject, 3, alike) if subject.batch == 1 and alike else None


def _long(subject):
    """The line for more rows than a block of threads has."""
    passed = [made for made in subject.lines if made.name == SIZE and made.status == PASSED]
    if not passed or not passed[0].detail.endswith(str(LONG)):
        return None
    row = sum(subject.inputs[i].numel() for i in subject.batched) / subject.batch
    if row * LONGER > NUMBERS:
        return None
    fewer = _grown(subject, LONG, (), False)
    if fewer is None:
        return None
    # The best of five: a busy machine says nothing of the function.
    if min(_seconds(fewer) for _ in range(5)) > FAST:
        return None
    return _of(subject, LONGER, ())


def _seconds(subject):
    begun = time.perf_counter()
    with torch.no_grad():
        subject.outputs(subject.inputs)
    return time.perf_counter() - begun


def _of(subject, count, alike):
    """The line for a batch of ``count``; None where forward does not take it."""
    made = None
    for ordered in (False, True):
        other = _grown(subject, count, alike, ordered)
        try:
            if other is None or not _follow(subject, other, count):
                continue
            if agrees(other):
                return Line(NAME, PASSED, detail=f"of {count}")
            made = departs(NAME, other, f"for a batch of {count}")
        except Exception:  # the sizes belong together in some other way
            return None
        if made is None or is_nan(made) or made.error < CLEAR:
            return None
    if made is not None and belong_together(subject):
        return Line(NAME, NOTE, detail=f"{made.detail}, with integers that may not be so")
    return made


def _grown(subject, count, alike, ordered):
    lengthened = _unlike if alike else _graded
    inputs = [
        lengthened(of_length(t, count)) if i in subject.batched or i in alike else t
        for i, t in enumerate(subject.inputs)
    ]
    try:
        function = subject.alongside(lambda t: resized(t, count, subject.batch, ordered))
        other = subject.near(inputs, function)
        with torch.no_grad():
            sound = all(o.isfinite().all() for o in other.outputs(inputs))
    except Exception:  # forward does not take them
        return None
    return other if sound else None


def _unlike(t):
    """Rows that differ by so much that the first one cannot stand for all."""
    return t * (1 - 0.2 * _steps(t))
