"""Called in other company: other inputs frozen, another call in between, another mode, no examples."""

from itertools import combinations

import torch

from manualnn.check.derivatives import DIFFERENCES, budget
from manualnn.check.incoming import TWICE, beside
from manualnn.check.lines import gradient_names, line, output_names, raised
from manualnn.check.numeric import WRONG, gradient, place
from manualnn.check.raisers import of_pytorch
from manualnn.check.report import FAILED, NOTE, PASSED, UNSUPPORTED, Line
from manualnn.check.subject import same

SUBSETS = 40  # of needed gradients, at the most
EARLIER = ("backward draws no random numbers", TWICE)


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
            told = f"{what} cannot be computed alone: {type(error).__name__}: {error}"
            return Line(name, FAILED, where=what, detail=told)
        told = (
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
            told=told,
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
        told = "the next call overwrites the output of this one: it is given out in memory that calls share"
        return Line(name, FAILED, detail=told)
    made = _remembered(subject, others)
    if made is not None:
        return made
    true = subject.gradients(subject.leaves())
    its = subject.gradients(subject.leaves(inputs=others))
    leaves, other_leaves = subject.leaves(), subject.leaves(inputs=others)
    outputs, other_outputs = subject.outputs(leaves), subject.outputs(other_leaves)
    first = subject.backward(outputs, leaves)
    second = subject.backward(other_outputs, other_leaves)
    told = (
        "another call between forward and backward changes the gradient: something is kept on the class or "
        "the module, where calls share it, and not on ctx"
    )
    made = subject.compared(
        name, [*first, *second], [*true, *its], [*labels, *labels], exact, told=told
    )
    if made.status == FAILED:
        return made
    if not subject.wrong and not subject.surrogate:
        made = departs(name, subject.at(others), "at other values than those of the first call")
        if made is not None:
            told = f"{made.detail}: something is remembered from an earlier call"
            return Line(name, FAILED, made.error, made.where, told)
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
    told = (
        "the module remembers something of an earlier call: a fresh copy of it gives another output"
    )
    exact = subject.tolerance(1e-10)
    made = subject.compared("calls side by side", used, fresh, output_names(used), exact, told=told)
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
    told = f"wrong where {subject.names[i]} and {subject.names[j]} are the same tensor"
    # Beside the parts: what cancels in their sum is rounding.
    made = subject.compared(
        name,
        beside([ours], parts[:1]),
        beside([sum(parts)], parts[:1]),
        gradient_names(subject)[i : i + 1],
        subject.tolerance(1e-9),
        told=told,
    )
    return made if made.status == FAILED else None


def _other(t):
    """Other numbers of the same range."""
    return (t.flip(tuple(range(t.dim()))) if t.numel() > 1 else t) * 0.9


@line("training and evaluation", after=(DIFFERENCES, *EARLIER, "calls side by side"))
def other_mode(subject):
    """A module in its other mode, against differences."""
    name = "training and evaluation"
    if subject.other_mode is None or subject.wrong:
        return None
    other = subject.at(subject.inputs, function=subject.other_mode, reference=None, other_mode=None)
    made = departs(name, other, "in the other mode (evaluation, or training)")
    return made or Line(name, PASSED)


def departs(name, subject, where):
    """The failed line where a gradient does not agree with differences along random directions; or None."""
    for label, question in zip(gradient_names(subject), subject.questions(), strict=True):
        if subject.declared(subject.names[question.i]) or not question.x.numel():
            continue
        generator = torch.Generator().manual_seed(subject.seed + 7)
        direction = torch.randn(question.x.numel(), generator=generator).to(question.x.dtype)
        if question.towards(direction)[0] != WRONG:
            continue
        true = gradient(question, min(budget(subject), 60))
        if not true.wrong:
            continue
        k = true.wrong[0]
        shown, value = true.of(question.claims)[k].item(), true.values[k].item()
        at = place(label, true.shape, int(true.index[k]))
        error = abs(shown - value) / max(abs(value), 1e-30)
        return Line(
            name,
            FAILED,
            error,
            f"{at}: analytic {shown:.9g}, numeric {value:.9g}",
            f"{label} is wrong {where}",
        )
    return None


@line("empty batch")
def empty(subject):
    """No examples: outputs without elements, gradients of the parameters that are zero."""
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
    except Exception as error:  # likewise; what it says is told
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
        told = f"an empty batch, which forward takes, is refused by backward: {made.detail}"
        if of_pytorch(error, outputs):
            return Line(name, UNSUPPORTED, detail=told, refused_by="PyTorch")
        return Line(name, made.status, detail=told)
    if theirs is None:
        return Line(name, PASSED)
    labels = [*("output" for _ in ours[len(inputs) :]), *gradient_names(subject)]
    return subject.compared(name, ours, theirs, labels)
