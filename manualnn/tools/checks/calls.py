"""Called in other company: other inputs frozen, another call in between, another mode, no examples."""

from functools import partial
from itertools import combinations

import torch

from manualnn.tools.checks.crashes import CrashesRefused, crashes
from manualnn.tools.checks.departures import departs, is_nan, of_own
from manualnn.tools.checks.derivatives import DIFFERENCES
from manualnn.tools.checks.diagnosis import counted_as_constant
from manualnn.tools.checks.graph import own_nodes
from manualnn.tools.checks.incoming import TWICE, beside
from manualnn.tools.checks.initial import INITIAL, away
from manualnn.tools.checks.labels import places
from manualnn.tools.checks.lines import gradient_names, line, output_names, raised
from manualnn.tools.checks.numeric import are_knots
from manualnn.tools.checks.raisers import of_pytorch
from manualnn.tools.checks.report import FAILED, NOTE, PASSED, UNSUPPORTED, Line
from manualnn.tools.checks.subject import same

SUBSETS = 40  # of needed gradients, at the most
EARLIER = ("backward draws no random numbers", INITIAL, TWICE)


@line("each input alone", after=EARLIER)
def each_alone(subject):
    """The same gradient whichever of the others need one: every subset, of many a choice."""
    name, labels = "each input alone", gradient_names(subject)
    together = subject.gradients(subject.leaves())
    count = len(together)
    if count == 1:
        return None
    sizes = range(1, count) if count <= 4 else (1, 2, count - 1)
    subsets = [s for size in sizes for s in combinations(range(count), size)]
    for needs in subsets[:SUBSETS]:
        what = (
            " and ".join(labels[i] for i in needs) if len(needs) < 4 else f"{len(needs)} gradients"
        )
        try:
            alone = subject.gradients(subject.leaves(needs=needs))
        except Exception as error:
            message = f"{what} cannot be computed alone: {type(error).__name__}: {error}"
            return Line(name, FAILED, where=what, detail=message)
        message = (
            f"the gradient depends on whether another input needs one (wrong for {what} alone): "
            "ctx.needs_input_grad is misread"
        )
        of, it = [labels[i] for i in needs], [together[i] for i in needs]
        floor = [t for i, t in enumerate(together) if i not in needs]  # the size of the others
        made = subject.compared(
            name,
            [*alone, *floor],
            [*it, *floor],
            [*of, *("" for _ in floor)],
            subject.tolerance(1e-10),
            message=message,
        )
        if made.status == FAILED:
            return made
    return Line(name, PASSED, 0.0)


@line("calls side by side", after=(*EARLIER, "each input alone"))
def side_by_side(subject):
    """Two calls before the first backward, other numbers at the second call, the same tensor given twice."""
    name, labels = "calls side by side", gradient_names(subject)
    exact = subject.tolerance(1e-10)
    others = [_other(t) for t in subject.inputs]
    try:
        with torch.no_grad():
            outputs = subject.outputs(subject.inputs)
            before = [o.clone() for o in outputs]
            subject.outputs(others)
    except Exception:  # outside its domain
        return None
    if not all(same(a, b) for a, b in zip(outputs, before, strict=True)):
        message = "the next call overwrites the output of this one: it is given out in memory that calls share"
        return Line(name, FAILED, detail=message)
    made = _remembered(subject, others)
    if made is not None:
        return made
    true = subject.gradients(subject.leaves())
    its = subject.gradients(subject.leaves(inputs=others))
    leaves, other_leaves = subject.leaves(), subject.leaves(inputs=others)
    outputs, other_outputs = subject.outputs(leaves), subject.outputs(other_leaves)
    first = subject.backward(outputs, leaves)
    second = subject.backward(other_outputs, other_leaves)
    message = (
        "another call between forward and backward changes the gradient: something is stored on the class or "
        "the module, where calls share it, and not on ctx"
    )
    made = subject.compared(
        name, [*first, *second], [*true, *its], [*labels, *labels], exact, message=message
    )
    if made.status == FAILED:
        return made
    if not subject.wrong and not subject.surrogate:
        made = departs(name, subject.at(others), "at other values than those of the first call")
        if made is not None:
            message = f"{made.detail}: something is remembered from an earlier call"
            if subject.moves():
                message = made.detail + counted_as_constant(subject.moves())
            return Line(name, FAILED, made.error, made.where, message)
    for i, j in combinations(range(min(len(subject.inputs), 4)), 2):
        a, b = subject.inputs[i], subject.inputs[j]
        if a.shape == b.shape and not subject.writes:
            made = _same_twice(subject, i, j)
            if made is not None:
                return made
    return Line(name, PASSED)


def _remembered(subject, inputs):
    """The failed line where a module that was called before answers otherwise than a fresh copy of it."""
    if subject.fresh is None:
        return None
    with torch.no_grad():
        used, fresh = subject.outputs(inputs), subject.outputs(inputs, subject.fresh())
    message = (
        "the module remembers something of an earlier call: a fresh copy of it gives another output"
    )
    exact = subject.tolerance(1e-10)
    made = subject.compared(
        "calls side by side", used, fresh, output_names(used), exact, message=message
    )
    return made if made.status == FAILED else None


def _same_twice(subject, i, j):
    name = "calls side by side"
    inputs = list(subject.inputs)
    inputs[j] = inputs[i].clone()
    apart_, shared = subject.leaves(inputs=inputs), subject.leaves(inputs=inputs)
    shared[j] = shared[i]
    try:
        grads = subject.gradients(apart_)
        outputs = subject.outputs(shared)
    except Exception:  # these numbers may be outside the domain
        return None
    (ours,) = subject.backward(outputs, shared, wrt=[shared[i]])
    parts = [g for g in (grads[i], grads[j]) if g is not None]
    if not parts:
        return None
    message = f"where {subject.names[i]} and {subject.names[j]} are the same tensor"
    # Beside the parts: what cancels in their sum is rounding.
    made = subject.compared(
        name,
        beside([ours], parts[:1]),
        beside([sum(parts)], parts[:1]),
        gradient_names(subject)[i : i + 1],
        subject.tolerance(1e-9),
        message=f"wrong {message}",
    )
    return made if made.status == FAILED else _smooth(name, subject, inputs, (i, j), message)


def _smooth(name, subject, inputs, pair, message):
    """The failed line where the two parts are the same each time, and do not add up to the slope.

    Where two inputs are equal there may be a kink, as of their maximum; along both of them there is none.
    """
    if subject.surrogate or subject.wrong:
        return None
    i, j = pair

    def merged(tensors):
        return [tensors[i] if k == j else t for k, t in enumerate(tensors)]

    def function(*tensors):
        return subject.function(*merged(tensors))

    holding = getattr(subject.function, "holding", None)
    if holding is not None:
        function.holding = lambda tensors, run: holding(merged(tensors), run)
    try:
        other = subject.at(inputs, function=function, reference=None)
        if not own_nodes(other.outputs(other.leaves())):
            return None
        made = departs(name, other, message)
    except Exception:  # these numbers may be outside the domain
        return None
    if made is None or is_nan(made):
        return made if made is not None and of_own(other) else None
    why = "at a tie each of them gets the whole gradient, or none does?"
    return Line(name, FAILED, made.error, made.where, f"{made.detail}: {why}")


def _other(t):
    """Other numbers of the same range; those that all rise, as knots do, go on rising."""
    return (t if are_knots(t) or t.numel() < 2 else t.flip(tuple(range(t.dim())))) * 0.9


@line("training and evaluation", after=(DIFFERENCES, *EARLIER, "calls side by side"))
def other_mode(subject):
    """A module in its other mode, against differences."""
    name = "training and evaluation"
    if subject.other_mode is None or subject.wrong:
        return None
    where = "in the other mode (evaluation, or training)"
    shifted = partial(subject.shifted, other_mode=True) if subject.shifted else None
    other = subject.at(
        subject.inputs,
        function=subject.other_mode,
        reference=None,
        other_mode=None,
        shifted=shifted,
    )
    made = departs(name, other, where) or away(name, other, f" {where}")
    return made or Line(name, PASSED)


@line("empty batch")
def empty(subject):
    """No examples: outputs without elements, gradients of the parameters that are zero."""
    if not crashes(subject.outputs(subject.leaves())):
        return _empty(subject)
    with CrashesRefused():
        return _empty(subject)


def _empty(subject):
    name = "empty batch"
    if not subject.batched:
        return None
    inputs = [t[:0] if i in subject.batched else t for i, t in enumerate(subject.inputs)]

    def forward(function=None):
        leaves = subject.leaves(inputs=inputs)
        return leaves, subject.outputs(leaves, function)

    theirs = None
    if subject.reference is not None:
        try:
            leaves, outputs = forward(subject.reference)
            theirs = [*outputs, *subject.backward(outputs, leaves)]
        except Exception as error:  # whatever it is: the reference is a person's, and may refuse
            return Line(
                name, NOTE, detail=f"the reference refuses it: {type(error).__name__}: {error}"
            )
    try:
        leaves, outputs = forward()
    except Exception as error:  # likewise; what it says is reported
        said = f"{type(error).__name__}: {error}"
        if theirs is None:  # nobody says that it has to accept one
            return Line(name, NOTE, detail=f"refused: {said}")
        return Line(
            name, FAILED, detail=f"an empty batch is refused, which the reference takes: {said}"
        )
    try:
        ours = [*outputs, *subject.backward(outputs, leaves)]
    except Exception as error:
        made = raised(name, error)
        message = f"an empty batch, which forward takes, is refused by backward: {made.detail}"
        if of_pytorch(error, outputs):
            return Line(name, UNSUPPORTED, detail=message, refused_by="PyTorch")
        # Integers that say where do not change with the batch: what they point at is not there.
        return Line(name, NOTE if places(subject) else made.status, detail=message)
    if theirs is None:
        return Line(name, PASSED)
    labels = [*("output" for _ in ours[len(inputs) :]), *gradient_names(subject)]
    return subject.compared(name, ours, theirs, labels)
