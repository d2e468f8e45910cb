"""Other parameters: from an identity, a slope that is positive, a kernel of one 1, to numbers of both signs.

A module begins where its initialisation puts it, and training leaves that place. There W and its transpose may
be the same, or a number and its absolute value. Whether an input has to be symmetric, nobody knows.
"""

import math

import torch

from manualnn.tools.checks.departures import departs, is_nan, of_own
from manualnn.tools.checks.elsewhere import EARLIER, _is_asked
from manualnn.tools.checks.lines import line
from manualnn.tools.checks.numeric import RIGHT, are_knots, judge
from manualnn.tools.checks.report import NOTE, PASSED, Line

NAME = "other parameters"


@line(NAME, after=(*EARLIER, "training and evaluation", "batch of another size", "other values"))
def other_parameters(subject):
    """A module's parameters at random numbers of both signs, and what is symmetric where it is not."""
    if subject.surrogate or not _is_asked(subject):
        return None
    count = len(subject.inputs) if subject.arguments is None else subject.arguments
    parameters = [i for i, t in enumerate(subject.inputs) if i >= count and t.numel()]
    made = _departs_at(subject, parameters, "where the parameters are other numbers")
    if made is not None and made.status != PASSED:
        return made
    symmetric = [i for i, t in enumerate(subject.inputs) if i < count and is_symmetric(t)]
    where = f"where {' and '.join(subject.names[i] for i in symmetric)} is not symmetric"
    other = _departs_at(subject, symmetric, where)
    if other is not None and other.status != PASSED:
        return Line(NAME, NOTE, detail=f"another gradient {where}")
    return made or other


def _departs_at(subject, which, where):
    """The line for other numbers in the place of these inputs; None where forward takes none."""
    doubted = None
    for signs in ("of both signs", "") if which else ():
        inputs = [
            other_numbers(t, bool(signs), subject.seed + i) if i in which else t
            for i, t in enumerate(subject.inputs)
        ]
        try:
            other = subject.at(inputs, reference=None)
            with torch.no_grad():
                if not all(o.isfinite().all() for o in other.outputs(other.inputs)):
                    continue
        except Exception:  # outside its domain
            continue
        if agrees(other):
            return doubted or Line(NAME, PASSED)
        made = departs(NAME, other, ", ".join(filter(None, (where, signs))))
        if made is None:
            return doubted or Line(NAME, PASSED)
        if (is_nan(made) and not of_own(other)) or _follows(other):
            return doubted
        if not signs or not any(_of_one_sign(subject.inputs[i]) for i in which):
            return made
        # A scale or a clipping level may be promised to be positive: as it was given, it has to be right.
        doubted = Line(
            NAME, NOTE, detail=f"another gradient {where}, {signs}: is one of them never negative?"
        )
    return doubted


def other_numbers(t, both, seed):
    """Random numbers as large as those of t: of both signs, the first of another than here; or of the same."""
    generator = torch.Generator().manual_seed(31 + seed)
    size = t.norm().item() / math.sqrt(t.numel())
    size = size if math.isfinite(size) and size > 0 else 0.5
    made = (0.3 + torch.randn(t.shape, generator=generator, dtype=t.dtype).abs()) * size / 1.2
    signs = torch.where(t < 0, -1.0, 1.0).to(t)
    if both:
        others = torch.randint(0, 2, t.shape, generator=generator).to(t) * 2 - 1
        others.view(-1)[:2] = torch.tensor([-1.0, 1.0], dtype=t.dtype)[: t.numel()]
        signs = signs * others
    return _ordered_as(t, made * signs)


def _of_one_sign(t):
    return bool((t > 0).all() or (t < 0).all())


def _ordered_as(t, other):
    """Of numbers that all rise, as knots do, others that rise."""
    return other.sort().values if are_knots(t) else other


def is_symmetric(t):
    """Whether it is its own transpose, and not one number throughout."""
    if t.dim() < 2 or t.shape[-1] != t.shape[-2] or t.shape[-1] < 2:
        return False
    return t.equal(t.mT) and bool(t.ne(t.flatten()[0]).any())


def agrees(subject):
    """Whether the slope along one direction of all inputs together is the one that backward gives."""
    questions = subject.questions()
    generator = torch.Generator().manual_seed(subject.seed + 7)
    ways = [torch.randn(t.shape, generator=generator, dtype=t.dtype) for t in subject.inputs]
    ways = [
        torch.zeros_like(way) if subject.declared(name) else way
        for way, name in zip(ways, subject.names, strict=True)
    ]
    parts = torch.cat(
        [q.claims * way.reshape(-1).double() for q, way in zip(questions, ways, strict=True)]
    )
    known = {}

    def at(step):
        if step not in known:
            moved = [t + step * way for t, way in zip(subject.inputs, ways, strict=True)]
            try:
                known[step] = float(questions[0].loss(moved))
            except Exception:  # outside its domain
                known[step] = math.nan
        return known[step]

    precision, size = subject.precision, parts.norm().item()
    verdict, _ = judge(
        at, parts.sum().item(), precision.steps, precision.close * size, questions[0].noise
    )
    return verdict == RIGHT


def _follows(subject):
    """Whether what is moved by a call counts, as an estimate of the largest singular value: it would follow."""
    names = subject.moves()
    if not names or subject.shifted is None:
        return False
    with torch.no_grad():
        now = subject.outputs(subject.inputs)
        then = subject.outputs(subject.inputs, subject.shifted(names))
    return any(not a.equal(b) for a, b in zip(now, then, strict=True))
