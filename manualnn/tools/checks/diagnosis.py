"""From a gradient and what it should have been, the kind of mistake, in words.

Each diagnosis takes the Case and answers with a sentence, or None where its pattern is not there.
The first that answers is reported.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from manualnn.tools.checks.numeric import apart

CLOSE = 1e-5  # relative: two gradients that show the same pattern


@dataclass(frozen=True)
class Case:
    """A wrong gradient.

    name: d and the input's name; given: the gradient, or None; true: what it should be, at the same
    elements; x: the input; whole: whether all elements were looked at; batch: the number of examples, or
    None; sizes: other dimensions of the inputs; complex: whether the last dimension is (real, imaginary);
    close: how near (relative) two gradients of the same pattern are;
    listed: whether the input stands in a list or dict; incoming: asks for what is wrong with the use of
    the incoming gradient; uniform: likewise, of its elements; others: asks for (name, gradient) of the
    other inputs of that shape; moves: asks for the buffers that a call of the module changes.
    """

    name: str
    given: torch.Tensor | None
    true: torch.Tensor
    x: torch.Tensor
    whole: bool
    batch: int | None = None
    sizes: tuple = ()
    complex: bool = False
    close: float = CLOSE
    listed: bool = False
    incoming: Callable = lambda: None
    uniform: Callable = lambda: None
    others: Callable = lambda: ()
    moves: Callable = lambda: ()


def diagnose(case):
    for pattern in PATTERNS:
        message = pattern(case)
        if message:
            return message
    return ""


def missing(case):
    if case.given is None or not case.given.any():
        what = "None" if case.given is None else "all zeros"
        if case.true.any():
            hint = ": apply does not look into lists and dicts" if case.listed else ""
            if case.given is None and not hint:
                hint = " (a detach() on purpose, as of a teacher? then say so: surrogate=)"
            return (
                f"{case.name} is missing: backward returns {what} although the output depends on it"
                f"{hint}"
            )
    return None


def not_a_number(case):
    for kind, ours, theirs in (
        ("NaN", case.given.isnan(), case.true.isnan()),
        ("infinite", case.given.isinf(), case.true.isinf()),
    ):
        wrong = ours & ~theirs
        if wrong.any():
            return f"{case.name} is {kind} at {int(wrong.sum())} of {wrong.numel()} elements"
    return None


def use_of_the_incoming_gradient(case):
    message = case.incoming()
    return message and f"{case.name} {message}"


def mixed_up(case):
    message = case.uniform()
    return message and f"{case.name} {message}"


def nearly(case):
    error, _ = apart(case.given, case.true)
    if error < 1e-3:
        return (
            f"{case.name} is right to {error:.0e} only: it is rounded to half precision inside, or a small "
            "term (an eps) is missing"
        )
    return None


def factor(case):
    ratio = _constant_ratio(case.given, case.true, case.close)
    if ratio is None:
        return None
    if abs(ratio + 1) < case.close:
        return f"{case.name} has the wrong sign"
    size, inverse = abs(ratio), 1 / abs(ratio)
    sign = " and has the wrong sign" if ratio < 0 else ""
    if abs(size - 1) < 0.05:
        return f"{case.name} is off by a constant factor of {ratio:.6g}"
    if inverse > 1:
        text = f"{case.name} is {inverse:.6g}× too small{sign}"
        cause = _size_in_words(inverse, case, "divided by {} twice?") or "a factor is missing"
    else:
        text = f"{case.name} is {size:.6g}× too large{sign}"
        cause = _size_in_words(size, case, "not divided by {}?") or "a factor too many"
    return f"{text}: {cause}"


def conjugated(case):
    if not case.complex or not case.whole:
        return None
    turned = case.given * torch.tensor([1.0, -1.0], dtype=case.given.dtype)
    if apart(turned, case.true)[0] < case.close:
        return f"{case.name} is the conjugate of what it should be"
    if not case.given[..., 1].any() and case.true[..., 1].any():
        return f"{case.name} has no imaginary part: it is dropped"
    return None


def transposed(case):
    if not case.whole or case.given.dim() != 2:
        return None
    rows, columns = case.given.shape
    for other, how in (
        (case.given.t(), "transposed"),
        (case.given.reshape(columns, rows).t(), "laid out transposed: reshaped, not transposed"),
    ):
        if other.shape == case.true.shape and rows > 1 and apart(other, case.true)[0] < case.close:
            return f"{case.name} is {how}"
    return None


def summed_over_the_wrong_dimension(case):
    longer = [n for n in case.given.shape if n > 1]
    if not case.whole or len(longer) != 1:
        return None
    given, true = case.given.reshape(-1), case.true.reshape(-1)
    total_given, total = given.sum(), true.sum()
    if (given == given[0]).all() and (total_given / len(given) - total).abs() < case.close * max(
        1.0, total.abs()
    ):
        return f"{case.name} is summed over all dimensions: every element is the sum over the others, too"
    in_order = apart(given.sort().values, true.sort().values)[0] < case.close
    if not in_order and (total_given - total).abs() < case.close * max(1.0, total.abs().item()):
        return f"{case.name} is summed over the wrong dimension: its total is right, its elements are not"
    return None


def of_another_input(case):
    for name, gradient in case.others():
        if case.given is not None and apart(case.given, gradient)[0] < case.close:
            return f"{case.name} is {name}: the gradients are returned in the wrong order"
    return None


def in_another_order(case):
    given, true = case.given.reshape(-1), case.true.reshape(-1)
    if (
        case.whole
        and len(given) > 2
        and apart(given.sort().values, true.sort().values)[0] < case.close
    ):
        return f"{case.name} holds the right numbers in the wrong order"
    return None


def flat(case):
    wrong = _differ(case)
    scale = case.given[wrong].abs().max() if wrong.any() else 0
    if wrong.any() and case.true[wrong].abs().max() < 1e-6 * scale:
        return (
            f"the function is flat at {int(wrong.sum())} of {wrong.numel()} elements, where {case.name} "
            "is not zero: a straight-through estimator? (then say so: surrogate=)"
        )
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
            f"or a constant is rounded{_of_state(case)}"
        )
    return None


def whole_numbers(case):
    if case.true.abs().max() > 1.5 and torch.equal(case.given, case.true.trunc()):
        return f"{case.name} is cut to whole numbers: it is gathered in an integer dtype"
    return None


def last_elements(case):
    """Right up to some element, and zero from there."""
    given, wrong = case.given.reshape(-1), _differ(case).reshape(-1)
    if wrong.all() or not wrong.any():
        return None
    first = int(wrong.nonzero()[0])
    tail = given[first:]
    if len(tail) > 1 and first > 0 and not tail.any():
        return f"{case.name} is zero from some element on: the last block is never written"
    return None


def some_elements(case):
    wrong = _differ(case)
    share = f"{int(wrong.sum())} of {wrong.numel()}"
    hint = " (complex: is a conjugate missing?)" if case.complex else ""
    if wrong.all():
        return (
            f"{case.name} is wrong everywhere, by no constant factor: a term is missing or wrong"
            f"{hint}{_of_state(case)}"
        )
    return f"{case.name} is wrong at {share} elements: a term or a case is missing{hint}"


PATTERNS = (
    missing,
    not_a_number,
    float32,
    use_of_the_incoming_gradient,
    factor,
    nearly,
    conjugated,
    transposed,
    whole_numbers,
    summed_over_the_wrong_dimension,
    of_another_input,
    in_another_order,
    last_elements,
    flat,
    mixed_up,
    one_sided,
    some_elements,
)


def _of_state(case):
    """What a call computes from the input, saves, and counts as a constant is the usual suspect."""
    return counted_as_constant(case.moves())


def counted_as_constant(moves):
    names = ", ".join(moves)
    return names and (
        f"; the call changes {names}: is what it computes for that counted as constant? "
        "(on purpose: surrogate=)"
    )


def _constant_ratio(given, true, close):
    used = true.abs() > 1e-3 * true.abs().max()
    if not used.any() or not given.isfinite().all():
        return None
    ratios = given[used] / true[used]
    ratio = ratios.median().item()
    if abs(ratio) < 1e-12 or apart(given, ratio * true)[0] > close * min(1.0, abs(1 - ratio)):
        return None
    return ratio


def _size_in_words(number, case, sentence):
    """The sentence with what has that size: the batch only where it is the batch."""

    def is_size(size):
        return size and size > 1 and abs(number - size) < case.close * size

    if is_size(case.batch):
        return sentence.format("the batch")
    if any(is_size(size) for size in case.sizes):
        return sentence.format(f"{number:.6g}, a size of the inputs,")
    return None


def _differ(case):
    return ~((case.given - case.true).abs() <= case.close * case.true.abs().max().clamp(min=1e-30))
