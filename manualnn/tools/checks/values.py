"""At NaN, at infinity, and where numbers grow so large that a formula overflows."""

import torch

from manualnn.tools.checks.graph import own_nodes
from manualnn.tools.checks.incoming import TWICE
from manualnn.tools.checks.lines import gradient_names, line, output_names
from manualnn.tools.checks.numeric import largest
from manualnn.tools.checks.report import FAILED, NOTE, PASSED, Line

LARGE = (50.0, -50.0, 100.0, -100.0)  # e⁵⁰ is within float32, its square and e¹⁰⁰ are not
FINITE = 1e37  # what float32 can hold


@line("NaN and infinity", after=("forward against the reference",))
def special_values(subject):
    """A NaN or an infinity in the input: as the reference's output; without one, NaN must stay NaN."""
    name, first = "NaN and infinity", subject.inputs[0]
    if not first.numel():
        return None
    spot = _read(subject)
    for value in (float("nan"), float("inf"), -float("inf"), -0.0, 1e4, -1e4):
        if subject.reference is None and (spot is None or abs(value) != value and value == value):
            continue
        at = first.clone()
        where = 0 if spot is None or subject.reference is not None else spot
        at[torch.unravel_index(torch.tensor(where), at.shape)] = value  # whatever its strides
        try:
            ours = subject.outputs([at, *subject.inputs[1:]])
        except Exception as error:
            # Outside its domain, said in any words: the reference says so, too, or nobody knows.
            if subject.reference is not None:
                try:
                    subject.outputs([at, *subject.inputs[1:]], subject.reference)
                except type(error):
                    continue
                raise
            continue
        if subject.reference is None:
            if value != value and not (subject.surrogate or any(t.isnan().any() for t in ours)):
                message = "a NaN in the input disappears: a diverging network would look healthy"
                if subject.of_pytorch or not own_nodes(subject.outputs(subject.leaves())):
                    return Line(
                        name, NOTE, detail="a NaN in the input disappears, as PyTorch has it"
                    )
                return Line(name, FAILED, where=f"{subject.names[0]} = nan", detail=message)
            continue
        theirs = subject.outputs([at, *subject.inputs[1:]], subject.reference)
        message, exact = f"for an input of {value:g}", subject.tolerance(1e-9)
        made = subject.compared(name, ours, theirs, output_names(ours), exact, message=message)
        if made.status == FAILED:
            return made
        if value != value or subject.surrogate:  # the slope at NaN is nobody's promise
            continue
        pairs = [
            subject.gradients(subject.leaves(inputs=[at, *subject.inputs[1:]]), function)
            for function in (None, subject.reference)
        ]
        message = f"the gradient for an input of {value:g}"
        made = subject.compared(
            name, *pairs, gradient_names(subject), subject.tolerance(1e-7), message=message
        )
        if made.status == FAILED:
            return made
    return Line(name, PASSED)


def _read(subject):
    """The element of the first input that the output depends on most, or None: not every one is read."""
    (grad, *_) = subject.gradients(subject.leaves())
    if grad is None or not grad.numel() or not largest(grad):
        return 0 if subject.surrogate or subject.reference is not None else None
    return int(grad.abs().nan_to_num(0.0, 0.0, 0.0).argmax())


@line("large values", after=("NaN and infinity", "forward against the reference", TWICE))
def large_values(subject):
    """Where exp overflows in float32: what float64 finds finite must be finite, and the same."""
    name = "large values"
    if subject.random or subject.dtype is not torch.float64 or subject.complex:
        return None
    labels = gradient_names(subject)
    # Parameters are not large in a model that works: an exponent of 50 overflows by itself.
    count = subject.arguments or len(subject.inputs)
    chosen = [[0], list(range(count))] if count > 1 else [[0]]
    what = "inputs" if subject.arguments != 0 else f"numbers of {subject.names[0]}"
    before = _all(subject, subject.inputs, torch.float64)
    for size in LARGE:
        for which in chosen:
            inputs = [
                (t * (size / (largest(t) or 1.0))).float().double()
                if i in which
                else t.float().double()
                for i, t in enumerate(subject.inputs)
            ]
            exact = _all(subject, inputs, torch.float64)
            ours = _all(subject, inputs, torch.float32)
            if exact is None or ours is None:
                continue
            outputs = len(exact) - len(labels)
            names = [*(["output"] * outputs), *labels]
            sound = all(
                t is None or t.isfinite().all() and largest(t) < FINITE for t in exact[:outputs]
            )
            if not sound:
                continue
            for k, (label, mine, true) in enumerate(zip(names, ours, exact, strict=True)):
                mine, true = (_but_for(t, before and before[k]) for t in (mine, true))
                message = _overflow(label, mine, true, f"{what} up to {abs(size):g}")
                if message and not _theirs(subject, inputs, k):
                    return Line(name, FAILED, where=f"{what} up to {abs(size):g}", detail=message)
    return Line(name, PASSED)


def _but_for(t, before):
    """t without what was not finite at the inputs that were given: 0 stays 0, however large the rest."""
    if t is None or before is None or t.shape != before.shape:
        return t
    return torch.where(before.isfinite(), t, 0.0)


def _overflow(label, mine, true, at):
    if mine is None or true is None:
        return ""
    if true.isnan().any():
        return (
            f"{label} is NaN at large values ({at}), where the function is finite: "
            "a formula overflows"
        )
    if not true.isfinite().all() or largest(true) > FINITE:
        return ""
    if not mine.isfinite().all():
        kind = "NaN" if mine.isnan().any() else "infinite"
        return (
            f"{label} is {kind} in float32 at large values ({at}), and finite in "
            "float64: a formula overflows"
        )
    lost = (mine == 0) & (true.abs() > 1e-2)
    if lost.any():
        return (
            f"{label} is 0 in float32 at large values ({at}), and not in float64: "
            "a formula overflows, and that is hidden"
        )
    return ""


def _theirs(subject, inputs, k):
    """Whether the reference does it, too."""
    if subject.reference is None:
        return False
    exact, theirs = (
        _all(subject, inputs, d, subject.reference) for d in (torch.float64, torch.float32)
    )
    return exact is None or theirs is None or bool(_overflow("", theirs[k], exact[k], ""))


def _all(subject, inputs, dtype, function=None):
    """Outputs and gradients, or None where it refuses."""
    try:
        leaves = subject.leaves(dtype, inputs=inputs)
        outputs = subject.outputs(leaves, function)
        return [*(o.detach() for o in outputs), *subject.backward(outputs, leaves)]
    except Exception:  # outside its domain, or not in float32, which another line reports
        return None
