"""Other labels, masks and ids: integers and bools that forward reads, and that backward may have forgotten.

They get no gradient, so no difference moves them: a mask of all True, or lengths that are all the same, hide
what is wrong for others. What others mean may be more than their range: an order has each number once, a mask
of padding ends each row. What the given ones have in common is kept (``redrawn``).
"""

import torch

from manualnn.tools.checks.departures import departs, is_nan, of_own
from manualnn.tools.checks.elsewhere import EARLIER, NOTHING, _is_asked
from manualnn.tools.checks.labels import passed_along, read_by
from manualnn.tools.checks.limits import limited
from manualnn.tools.checks.lines import line
from manualnn.tools.checks.redrawn import is_sorted, may_be_empty, redrawn, repeated_in_rows
from manualnn.tools.checks.report import NOTE, PASSED, Line
from manualnn.tools.checks.targets import INTEGERS, is_order

NAME = "other labels, masks and ids"
IGNORED = -100  # the label that PyTorch's losses leave out

WHERE = {
    "order": "where the integers stand in another order",
    "numbers": "for other integers of the same range",
    "mask": "for another mask",
    "alone": "where a row is masked throughout",
    "one": "for another number",
    "shifted": "for positions that begin elsewhere",
    "repeated": "where two of the integers in a row are the same: there it is a sum",
    "ignored": f"where a label is {IGNORED}, and ignored",
}


@line(NAME, after=(*EARLIER, "batch of another size", "other values", "indices that repeat"))
def other_integers(subject):
    """Integers and bools that are passed on, at other values of their kind, against differences."""
    if subject.alongside is None or subject.surrogate or not _is_asked(subject):
        return None
    given = passed_along(subject)
    varied = [(k, t) for k, t in enumerate(given) if t.numel() and _counts(t)]
    if not varied:
        return None
    seen, noted = 0, ""
    for k, t in varied:
        read = read_by(t, subject.inputs)
        linked = _are_linked(subject, given, k)
        for what, other, doubtful in _others(t, read, subject.inputs):
            there, where = _at(subject, k, other), WHERE[what]
            if there is None or (what == "ignored" and not _is_left_out(there, *read)):
                continue
            try:
                made = departs(NAME, there, where)
                if made is not None and is_nan(made) and not of_own(there):
                    continue
            except Exception:  # forward takes them; whether backward has to, nobody knows
                continue
            seen += 1
            if made is None:
                continue
            overwritten = what == "repeated" and made.error > NOTHING
            unsure = doubtful and not is_nan(made)
            if what == "alone":
                unsure = not is_nan(made) and not _more_zeros(subject, there)
            if linked or unsure or overwritten:
                noted = noted or f"another gradient {where}"
                continue
            return made
    if noted:
        return Line(NAME, NOTE, detail=noted)
    return Line(NAME, PASSED) if seen else None


def _counts(t):
    return t.dtype in INTEGERS or (t.dim() and t.dtype is torch.bool)


def _are_linked(subject, given, k):
    """Whether of two tensors one may be made of the other: an order and its inverse, lengths and a mask.

    Not where nothing is masked of labels, or none of their rows is shorter: then others are of the same kind.
    """
    others = [t for i, t in enumerate(given) if i != k and t.numel() > 1]
    whole = given[k].unique().numel() == 1 and bool(given[k].flatten()[0])
    if whole and given[k].numel() > 1:
        others = [t for t in others if read_by(t, subject.inputs) is None]
    return bool(others)


def _at(subject, k, other):
    """The subject with the k-th of these tensors another one; None where forward does not take it."""
    met = []

    def change(t):
        met.append(t)
        return other.to(t.dtype) if len(met) == k + 1 else t

    try:
        there = subject.near(subject.inputs, subject.alongside(change))
        with torch.no_grad(), limited():
            outputs = there.outputs(there.inputs)
        sound = all(o.isfinite().all() for o in outputs)
        return there if sound and len(outputs) == len(subject.differentiable) else None
    except Exception:  # outside its domain, a person's function may raise anything
        return None


def _others(t, read, inputs):
    """(what it is, another tensor of its kind, whether it may be against a promise)."""
    if t.dtype is torch.uint8 and t.dim() == 1:  # the state of a generator is no list of numbers
        return
    if not t.dim():
        for step in (1, -1):
            yield "one", t + step, False
        return
    sizes, mask, tried = [size for x in inputs for size in x.shape], t.dtype is torch.bool, [t]
    like = any(x.shape == t.shape for x in inputs) and min(t.shape) > 1
    paired = not mask and read is None and (_are_pairs(t, inputs) or _is_its_own_inverse(t))
    ways = [(None, paired)]
    if read is not None:  # labels need no order, and segments that rise do
        ways = [(None, False)] * is_sorted(t) + [(inputs[read[0]].shape[read[1]], is_sorted(t))]
    for classes, doubtful in ways:
        for seed in (0, 1):
            other = redrawn(t, classes, max(sizes, default=0), like, seed)
            if other is None or any(map(other.equal, tried)):
                continue
            tried.append(other)
            ordered = other.flatten().sort().values.equal(t.flatten().sort().values)
            yield ("mask" if mask else "order" if ordered else "numbers"), other, doubtful
            break
    if mask and t.dim() > 1 and may_be_empty(t):
        for value in (False, True):
            other = t.clone()
            other[0] = value
            if not other.equal(t):
                yield "alone", other, True
    if t.dim() == 1 and not mask and len(t) in sizes and t.equal(torch.arange(len(t)).to(t)):
        yield "shifted", t + 1, False
    found = repeated_in_rows(t)
    if found is not None:
        other, promised = found
        yield "repeated", other, promised or paired or _are_sorting(t, inputs)
    if classes is not None and classes < -IGNORED and t.min() >= 0 and len(t) > 1:
        other = t.long().clone()
        other.view(-1)[0] = IGNORED
        yield "ignored", other, False


def _are_pairs(t, inputs):
    """Whether it may hold the ends of edges, or coordinates: twice the same one, or one way, may not be."""
    beside = any(x.dim() == t.dim() and x.shape[0] == t.shape[0] for x in inputs)
    return t.dim() == 2 and 2 in t.shape and not beside


def _is_its_own_inverse(t):
    """Whether it is an order that swaps pairs: left and right, say. Of others nobody knows."""
    return t.dim() == 1 and is_order(t) and t.long()[t.long()].equal(torch.arange(len(t)))


def _are_sorting(t, inputs):
    """Whether they are where the largest or smallest of each row are: no two of those are the same."""
    for x in inputs:
        try:
            steps = x.gather(-1, t.long()).diff(dim=-1)
        except (RuntimeError, IndexError):
            continue
        if (steps <= 0).all() or (steps >= 0).all():
            return True
    return False


def _is_left_out(there, i, dim):
    """Whether what the first label stands for does not count."""
    inputs = list(there.inputs)
    x = inputs[i] = inputs[i].clone()
    place = tuple(slice(None) if k == dim else 0 for k in range(x.dim()))
    x[place] += 0.5 * torch.arange(1, x.shape[dim] + 1).to(x)
    with torch.no_grad():
        pairs = zip(there.outputs(there.inputs), there.outputs(inputs), strict=True)
        return all(a.allclose(b, 1e-12, 1e-14) for a, b in pairs)


def _more_zeros(subject, there):
    """Whether forward gives 0 for what is masked throughout: then it is meant to be taken."""
    with torch.no_grad():
        pairs = zip(subject.outputs(subject.inputs), there.outputs(there.inputs), strict=True)
        return any((b == 0).sum() > (a == 0).sum() for a, b in pairs)
