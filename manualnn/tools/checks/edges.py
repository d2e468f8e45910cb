"""Where a function has no derivative: at a kink that PyTorch gives NaN for, at the edge of its domain."""

import math
from dataclasses import replace

import torch

from manualnn.tools.checks.numeric import _side
from manualnn.tools.checks.tolerated import of_pytorch_alone

FEW = 24  # elements that are asked about


def without_edges(subject, question, true):
    """(the Numeric without the elements that have no derivative, how many those are).

    Only of numbers that are not finite, where PyTorch's own formulas give them: log 0 is nobody's fault. Of a
    backward that is written by hand a NaN is reported, and so is what is not finite where the slope is.
    """
    claims = question.claims
    asked = [k for k in true.wrong if not math.isfinite(claims[true.index[k]].item())]
    pytorchs = of_pytorch_alone(subject.outputs(subject.leaves()))
    if not pytorchs:  # an infinite slope may be the true one, a NaN is none
        asked = [k for k in asked if math.isinf(claims[true.index[k]].item())]
    if not asked:
        return true, 0
    edge = pytorchs and _at_the_edge(subject)
    none = {k for k in asked[:FEW] if edge or _has_none(question, int(true.index[k]))}
    if len(none) == FEW:  # and so are the others
        none = set(asked)
    values = true.values.clone()
    for k in none:
        values[k] = claims[true.index[k]]
    wrong = tuple(k for k in true.wrong if k not in none)
    return replace(true, wrong=wrong, values=values), len(none)


def _has_none(question, at):
    """Whether the two sides of an element have other slopes, or one of them none that settles."""
    along, steps = question.one(at)
    left, right = (_side(along, side, steps, question.noise) for side in (-1, 1))
    if left is None or right is None:  # the edge of the domain: is the slope there infinite?
        one = 1 if left is None else -1
        slopes = [abs(along(one * h) - along(0.0)) / h for h in steps[:5]]
        grows = all(b > a + 1e-3 * abs(a) for a, b in zip(slopes, slopes[1:], strict=False))
        return grows or not all(map(math.isfinite, slopes))
    (a, doubt), (b, other) = left, right
    return abs(a - b) > 3 * (doubt + other) + 1e-3 * max(abs(a), abs(b))


def _at_the_edge(subject):
    """Whether there is no finite number close by."""
    for k in range(4):
        generator = torch.Generator().manual_seed(subject.seed + 61 + k)
        moved = [
            t + 1e-6 * torch.randn(t.shape, generator=generator, dtype=t.dtype)
            for t in subject.inputs
        ]
        try:
            with torch.no_grad():
                if not all(o.isfinite().all() for o in subject.outputs(moved)):
                    return True
        except Exception:  # it says so
            return True
    return False
