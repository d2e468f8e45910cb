"""From a gradient and what it should have been, the kind of mistake, in words.

Each diagnosis takes the Case and answers with a sentence, or None where its pattern is not there.
The first that answers is told.
"""

from dataclasses import dataclass

import torch

from manualnn.check.numeric import apart

CLOSE = 1e-5  # relative: two gradients that show the same pattern


@dataclass(frozen=True)
class Case:
    """A wrong gradient.

    name: d and the input's name; given: the gradient, or None; true: what it should be, at the same
    elements; x: the input, whole: whether all elements were looked at; sizes: dimensions of the inputs,
    by what they could be (a factor of one of them was probably divided by).
    """

    name: str
    given: torch.Tensor | None
    true: torch.Tensor
    x: torch.Tensor
    whole: bool
    sizes: tuple


def diagnose(case):
    for pattern in PATTERNS:
        told = pattern(case)
        if told:
            return told
    return ""


def missing(case):
    if case.given is None or not case.given.any():
        what = "None" if case.given is None else "all zeros"
        if case.true.any():
            return (
                f"{case.name} is missing: backward returns {what} although the output depends on it"
            )
    return None


def not_a_number(case):
    wrong = case.given.isnan() & ~case.true.isnan()
    if wrong.any():
        return f"{case.name} is NaN at {int(wrong.sum())} of {wrong.numel()} elements"
    return None


def factor(case):
    ratio = _constant_ratio(case.given, case.true)
    if ratio is None:
        return None
    if abs(ratio + 1) < CLOSE:
        return f"{case.name} has the wrong sign"
    size, inverse = abs(ratio), 1 / abs(ratio)
    sign = " and has the wrong sign" if ratio < 0 else ""
    if abs(size - 1) < 0.05:
        return f"{case.name} is off by a constant factor of {ratio:.6g}"
    if inverse > 1:
        text = f"{case.name} is {inverse:.6g}× too small{sign}"
        cause = (
            "divided by the batch twice?"
            if _is_size(inverse, case.sizes)
            else "a factor is missing"
        )
    else:
        text = f"{case.name} is {size:.6g}× too large{sign}"
        cause = (
            "the mean's division is missing?" if _is_size(size, case.sizes) else "a factor too many"
        )
    return f"{text}: {cause}"


def transposed(case):
    if not case.whole or case.given.dim() != 2:
        return None
    rows, columns = case.given.shape
    for other, how in (
        (case.given.t(), "transposed"),
        (case.given.reshape(columns, rows).t(), "laid out transposed: reshaped, not transposed"),
    ):
        if other.shape == case.true.shape and rows > 1 and apart(other, case.true)[0] < CLOSE:
            return f"{case.name} is {how}"
    return None


def summed_over_the_wrong_dimension(case):
    if not case.whole or case.given.dim() != 1 or case.given.numel() < 2:
        return None
    total_given, total = case.given.sum(), case.true.sum()
    if (case.given == case.given[0]).all() and (
        total_given / len(case.given) - total
    ).abs() < CLOSE * max(1.0, total.abs()):
        return f"{case.name} is summed over all dimensions: every element is the sum over the others, too"
    if (total_given - total).abs() < CLOSE * max(1.0, total.abs().item()):
        return f"{case.name} is summed over the wrong dimension: its total is right, its elements are not"
    return None


def one_sided(case):
    """Right where the input is positive and wrong where it is negative, or the other way round."""
    x, wrong = case.x, _differ(case)
    if x.shape != wrong.shape or wrong.all() or not wrong.any():
        return None
    for side, where in (("negative", x < 0), ("positive", x > 0)):
        if where.any() and (wrong == where).all():
            return f"{case.name} is right except where the input is {side}"
    for bound in (x[wrong].abs().min(), x[~wrong].abs().max()):
        if (wrong == (x.abs() >= bound)).all():
            return f"{case.name} is right except where |input| is {bound:.3g} or more"
    return None


def float32(case):
    error, _ = apart(case.given, case.true)
    if error < 1e-5:
        return (
            f"{case.name} is right to {error:.0e} only: something inside is computed in float32, "
            "or a constant is rounded"
        )
    return None


def some_elements(case):
    wrong = _differ(case)
    share = f"{int(wrong.sum())} of {wrong.numel()}"
    if wrong.all():
        return f"{case.name} is wrong everywhere, by no constant factor: a term is missing or wrong"
    return f"{case.name} is wrong at {share} elements: a term or a case is missing"


PATTERNS = (
    missing,
    not_a_number,
    float32,
    factor,
    transposed,
    summed_over_the_wrong_dimension,
    one_sided,
    some_elements,
)


def _constant_ratio(given, true):
    used = true.abs() > 1e-3 * true.abs().max()
    if not used.any() or not given.isfinite().all():
        return None
    ratios = given[used] / true[used]
    ratio = ratios.median().item()
    if abs(ratio) < 1e-12 or apart(given, ratio * true)[0] > CLOSE * min(1.0, abs(1 - ratio)):
        return None
    return ratio


def _is_size(number, sizes):
    return any(size > 1 and abs(number - size) < CLOSE * size for size in sizes)


def _differ(case):
    return (case.given - case.true).abs() > CLOSE * case.true.abs().max().clamp(min=1e-30)
