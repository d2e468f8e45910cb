"""Away from initial values: from a bias of zeros, a weight of ones, a running variance of ones.

Where all numbers of a tensor are the same, a term or a factor may be left out of a formula, and nobody sees it.
"""

import torch

from manualnn.tools.checks.departures import departs, is_nan, of_own
from manualnn.tools.checks.derivatives import DIFFERENCES
from manualnn.tools.checks.graph import own_nodes
from manualnn.tools.checks.lines import line
from manualnn.tools.checks.numeric import largest
from manualnn.tools.checks.report import FAILED, PASSED, Line
from manualnn.tools.checks.targets import is_constant

INITIAL = "away from initial values"
SIDES = (0, 1, -1)  # of the initial value: both of them, above, below
MEANINGS = {
    0.0: "a term that is 0 where it is 0 is missing, or wrong?",
    1.0: "a factor that is 1 where it is 1 is missing, or one too many?",
}


@line(INITIAL, after=("backward draws no random numbers", DIFFERENCES))
def initial_values(subject):
    """Inputs, parameters and buffers of which all numbers are the same, at other numbers."""
    if any(made.name == DIFFERENCES and made.status == FAILED for made in subject.lines):
        return None
    return away(INITIAL, subject)


def away(name, subject, where=""):
    """The failed line where a gradient is wrong at other values of what is constant; None without any."""
    if not own_nodes(subject.outputs(subject.leaves())):
        return None
    inputs = [i for i, t in enumerate(subject.inputs) if is_constant(t)]
    things = [*inputs, *_buffers_that_count(subject)]
    side, other = next(((s, o) for s in SIDES if (o := _moved(subject, things, s))), (0, None))
    if not things or other is None:
        return None
    made = _departs(name, other, where)
    if made is None:
        return Line(name, PASSED)
    for thing in things if len(things) > 1 else ():
        alone = _moved(subject, [thing], side)
        of_it = alone and _departs(name, alone, where)
        if of_it:
            things, made = [thing], of_it
            break
    labels = [subject.names[thing] if isinstance(thing, int) else thing for thing in things]
    what, why = f"where {' and '.join(labels)} are not as they were given", ""
    if len(things) == 1:
        (thing,) = things
        value = subject.constant.get(thing)
        value = subject.inputs[thing].flatten()[0].item() if value is None else value
        what = f"where {labels[0]} is not {value:g} throughout"
        why = f": {MEANINGS[value]}" if value in MEANINGS else ""
    message = f"{made.detail}{',' * bool(where)} {what}{why}"
    return Line(name, FAILED, made.error, made.where, message)


def _departs(name, subject, where):
    made = departs(name, subject, where.strip())
    return None if made is None or (is_nan(made) and not of_own(subject)) else made


def _buffers_that_count(subject):
    """The constant buffers that the outputs depend on: one by one, for the words."""
    if not subject.constant:
        return []
    found = []
    with torch.no_grad():
        now = subject.outputs(subject.inputs)
        for name in subject.constant:
            then = subject.outputs(subject.inputs, subject.shifted([name]))
            if any(a.shape != b.shape or not a.equal(b) for a, b in zip(now, then, strict=True)):
                found.append(name)
    return found


def _moved(subject, things, side):
    """The subject with these inputs and buffers at other numbers, or None where forward does not take them."""
    inputs = [_beside(t, side) if i in things else t for i, t in enumerate(subject.inputs)]
    buffers = [thing for thing in things if not isinstance(thing, int)]
    changes = {"function": subject.shifted(buffers)} if buffers else {}
    try:
        other = subject.at(inputs, reference=None, **changes)
        with torch.no_grad():
            sound = all(o.isfinite().all() for o in other.outputs(other.inputs))
    except Exception:  # outside its domain
        return None
    return other if sound else None


def _beside(t, side):
    """Random numbers on both sides of those of t, or on one."""
    generator = torch.Generator().manual_seed(29)
    size = max(1.0, largest(t))
    if not side:
        return t + 0.4 * size * torch.randn(t.shape, generator=generator, dtype=t.dtype)
    away = 0.1 + 0.5 * torch.rand(t.shape, generator=generator, dtype=t.dtype)
    return t + side * size * away
