"""Is the value right, and is its derivative?"""

import time

import torch

from manualnn.tools.checks.diagnosis import CLOSE, Case, diagnose
from manualnn.tools.checks.edges import without_edges
from manualnn.tools.checks.generators import seeded
from manualnn.tools.checks.graph import own_nodes
from manualnn.tools.checks.lines import gradient_names, line, output_names
from manualnn.tools.checks.numeric import WRONG, along, apart, gradient, judge, place, search
from manualnn.tools.checks.report import DECLARED, FAILED, NOTE, PASSED, Line
from manualnn.tools.checks.tolerated import ROUNDING, of_pytorch_alone

ELEMENTS = 200  # of an input that are moved one by one, at the most
SECONDS = 1.0  # for the differences of one line, about
DIFFERENCES = "backward against central differences"


@line("precision")
def precision(subject):
    """What it is checked in, where that is not float64."""
    if subject.refused:
        message = f"checked in float32, to its precision; float64 is refused: {subject.refused}"
        return Line("precision", NOTE, detail=message)
    if subject.rounded:
        return Line("precision", NOTE, detail="it is computed in float32 inside: held to that")
    return None


@line("forward against the reference")
def forward(subject):
    if subject.reference is None:
        return None
    name = "forward against the reference"
    with torch.no_grad():
        ours = subject.outputs(subject.inputs)
        theirs = subject.outputs(subject.inputs, subject.reference)
    tolerance = 1e-4 if subject.dtype is torch.float32 else 1e-10
    made = subject.compared(name, ours, theirs, output_names(ours), tolerance)
    if made.status == FAILED and made.error is not None and made.error < 1e-5:
        message = f"right to {made.error:.0e} only: something inside is computed in float32"
        return Line(made.name, FAILED, made.error, made.where, message)
    return made


@line("inputs are left as they were")
def inputs_unchanged(subject):
    """An operation that works in place says so: what comes out is what went in."""
    name = "inputs are left as they were"
    changed = _changed(subject, subject.dtype)
    if not changed and subject.dtype is torch.float64:
        try:  # x.float() copies in float64, and is x itself there
            changed = _changed(subject, torch.float32)
        except Exception:  # refused: another line says so
            changed = ""
    if changed:
        message = (
            f"{changed} is changed in place by forward, unknown to autograd (mark_dirty says it)"
        )
        return Line(name, FAILED, where=changed, detail=message)
    return Line(name, PASSED)


def _changed(subject, dtype):
    """The input that forward has written to without a word, or an empty name."""
    made = [t * 1 for t in subject.leaves(dtype)]
    before, history = [t.detach().clone() for t in made], [t.grad_fn for t in made]
    out_of = {t.data_ptr() for t in subject._raw(made)}
    for label, t, was, node in zip(subject.names, made, before, history, strict=True):
        same = (t.detach() == was) | (t.detach().isnan() & was.isnan())
        known = t.data_ptr() in out_of and t.grad_fn is not node  # it is the output, autograd says
        if not same.all() and not known:
            return label
    return ""


@line("backward draws no random numbers")
def backward_redraws(subject):
    """What was drawn in forward must be remembered, not drawn again."""
    name, results = "backward draws no random numbers", []
    if not (subject.random or own_nodes(subject.outputs(subject.leaves()))):
        return None
    try:
        for seed in (1, 2):
            leaves = subject.leaves()
            outputs = subject.outputs(leaves)
            seeded(seed, subject.own)
            results.append(subject.backward(outputs, leaves))
    except Exception:  # a person's backward may raise anything, and the next line says what
        if subject.random:
            raise
        return None
    message = (
        "the random mask is drawn again in backward: it differs from the one that forward used"
    )
    if not subject.random:
        message = "backward draws random numbers, and forward none: each time another gradient"
    made = subject.compared(name, *results, gradient_names(subject), tolerance=0, message=message)
    return made if subject.random or made.status == FAILED else None


@line(DIFFERENCES, after=("backward draws no random numbers",))
def backward_differences(subject):
    """dL/d(input) of a weighted sum of the outputs: element by element, and along random directions."""
    questions = subject.questions()
    worst, departs, kinks_met, edges_met = 0.0, None, 0, []
    cut_off = _not_differentiable(subject)
    if cut_off:
        return Line(DIFFERENCES, FAILED, detail=cut_off)
    for i, (label, question) in enumerate(zip(gradient_names(subject), questions, strict=True)):
        true, edges = without_edges(subject, question, gradient(question, budget(subject)))
        found = None if true.complete or true.wrong or edges else search(question)
        kinks_met += len(true.kinks)
        edges_met += [f"{label} at {edges} elements"] if edges else []
        if not true.wrong and not found:
            found = _tie(question, true)
            if not found:
                error = apart(true.of(question.claims), true.values)[0]
                worst = max(worst, error if error == error and error < 1 else 0.0)
                continue
        made = _wrong(subject, question, label, true, found)
        rounding = made.error < ROUNDING and not subject.moves()
        if rounding and of_pytorch_alone(subject.outputs(subject.leaves())):
            message = f"a rounding of PyTorch's own: {made.detail}"
            departs = departs or Line(DIFFERENCES, NOTE, made.error, made.where, message)
            continue
        subject.wrong[i] = made
        reason = subject.declared(subject.names[i])
        if reason:
            message = f"{label} is not the true derivative, as declared: {reason}"
            departs = departs or Line(DIFFERENCES, DECLARED, made.error, made.where, message)
            continue
        return made
    detail = f"a kink is here, at {kinks_met} elements: between its two slopes" if kinks_met else ""
    if edges_met:
        message = (
            f"not finite, as PyTorch has it, where there is no derivative: {', '.join(edges_met)}"
        )
        return departs or Line(DIFFERENCES, NOTE, detail=message)
    return departs or Line(DIFFERENCES, PASSED, worst, detail=detail)


def _not_differentiable(subject):
    """Of a Function whose output gets no gradient, although it depends on the inputs: what to say."""
    if not subject.is_function or all(subject.differentiable) or subject.surrogate:
        return None
    with torch.no_grad():
        outputs = subject.outputs(subject.inputs)
    cotangents = subject.cotangents(outputs)
    for k, flows in enumerate(subject.differentiable):
        if flows:
            continue

        def loss(tensors, k=k, c=cotangents[k]):
            with torch.no_grad():
                return (c * subject.outputs(tensors)[k]).sum()

        noise = 4 * subject.precision.eps * outputs[k].abs().sum().item()
        for i, (x, name) in enumerate(zip(subject.inputs, subject.names, strict=True)):
            at = along(
                loss, subject.inputs, i, torch.ones_like(x) + 0.3 * subject.cotangents([x])[0]
            )
            verdict, _ = judge(at, 0.0, subject.precision.steps, 0.0, noise)
            if verdict == WRONG:
                return (
                    f"output {k} is declared not differentiable, although it depends on {name}: "
                    "no gradient comes back from it"
                )
    return None


def _tie(question, true):
    """Of elements at a kink, each between its two slopes: (None, slope) where they are wrong together."""
    at = true.index[list(true.kinks)]
    values = question.x.flatten()[at]
    for value in values.unique():
        tied = at[values == value]
        if len(tied) < 2:
            continue
        direction = question.x.new_zeros(question.x.numel())
        direction[tied] = 1
        verdict, slope = question.towards(direction)
        if verdict == WRONG:
            return "tie", slope, (question.claims * direction.double()).sum().item()
    return None


def _wrong(subject, question, label, true, found):
    """The failed line: where, both values, and the kind of mistake."""
    if found and found[0] == "tie":
        _, value, given = found
        message = (
            f"{label} is wrong at a kink: moved together, the elements that are equal (a tie) give "
            f"{value:.6g}, not {given:.6g}; each of them gets the whole gradient?"
        )
        return Line(
            DIFFERENCES, FAILED, abs(given - value) / max(abs(value), 1e-30), label, message
        )
    if found:
        at, value = found
        shown = question.claims[at].item()
        where = f"{place(label, true.shape, at)}: analytic {shown:.9g}, numeric {value:.9g}"
        message = (
            f"{label} is wrong at some elements (found along a random direction of all "
            f"{true.shape.numel()}): not written, or written twice?"
        )
        return Line(
            DIFFERENCES, FAILED, abs(shown - value) / max(abs(value), 1e-30), where, message
        )
    i, given = question.i, question.given
    shown = true.of(question.claims)
    error, _ = apart(shown, true.values)
    departure = (shown - true.values)[list(true.wrong)].abs().nan_to_num(float("inf"))
    k = true.wrong[int(departure.argmax())]
    where = (
        f"{place(label, true.shape, int(true.index[k]))}: analytic {shown[k].item():.9g}, "
        f"numeric {true.values[k].item():.9g}"
    )
    x, values = true.of(question.x).double(), true.values
    if true.complete:  # in the shape of the input; of a sample there is no shape
        x, values, shown = x.view(true.shape), values.view(true.shape), shown.view(true.shape)
    batch, sizes = _sizes(subject)
    case = Case(
        label,
        None if given is None else shown,
        values,
        x,
        true.complete,
        batch,
        sizes,
        i in subject.complex,
        max(CLOSE, 5 * subject.precision.close),
        "[" in subject.names[i],
        lambda: _incoming(subject, i),
        lambda: _uniform(subject, i),
        lambda: _others(subject, i),
        subject.moves,
    )
    return Line(DIFFERENCES, FAILED, error, where, diagnose(case))


def _sizes(subject):
    """(the batch, or None where nothing says that it is one; all other sizes)."""
    sizes = {n for t in subject.inputs for n in (*t.shape, t.numel())}
    many = subject.batched and subject.inputs[0].dim() > 1
    return (subject.batch if many else None), tuple(sizes)


def _incoming(subject, i):
    """What is wrong with the way in which the incoming gradient is used, if that is it."""
    with torch.no_grad():
        outputs = subject.outputs(subject.inputs)
    cotangents = subject.cotangents(outputs)
    once, twice = (
        subject.gradients(subject.leaves(), cotangents=[times * c for c in cotangents])[i]
        for times in (1.0, 2.0)
    )
    if once is None or not once.any():
        return None
    if apart(twice, once)[0] < 1e-6:
        return "is not multiplied by the incoming gradient: twice as much comes out the same"
    bent = (twice - 2 * once).abs() > 1e-3 * twice.abs().max()
    if bent.double().mean() > 0.5:
        return "is not linear in the incoming gradient"
    return _one_output(subject, i, cotangents)


def _one_output(subject, i, cotangents):
    """Of several outputs: that what comes back from one of them is right, and from another not."""
    flowing = [k for k, flows in enumerate(subject.differentiable) if flows]
    if len(flowing) < 2:
        return None
    wrong, empty = [], []
    for k in flowing:
        alone = [c if j == k else torch.zeros_like(c) for j, c in enumerate(cotangents)]
        question = subject.questions(alone)[i]
        if gradient(question, 50).wrong:
            wrong.append(k)
            if not question.claims.any():
                empty.append(k)
    if empty and wrong == empty:
        return f"is missing what comes back from output {empty[0]}: its gradient is left out"
    if wrong and len(wrong) < len(flowing):
        return f"is wrong in what comes back from output {wrong[0]}, and right from the others"
    return None


def _uniform(subject, i):
    """Whether the elements of the incoming gradient are mixed up: it is right where they are all the same."""
    with torch.no_grad():
        outputs = subject.outputs(subject.inputs)
    cotangents = subject.cotangents(outputs)
    if max(o.numel() for o in outputs) > 1:
        same = [torch.ones_like(c) for c in cotangents]
        question = subject.questions(same)[i]
        if question.given is not None and not gradient(question, 50).wrong:
            return (
                "is right only where the incoming gradient is uniform, as that of sum() is: "
                "one number (the first element?) is read of it, or its elements get mixed up"
            )
    return None


def _others(subject, i):
    for j, (name, question) in enumerate(
        zip(gradient_names(subject), subject.questions(), strict=True)
    ):
        if j != i and question.x.shape == subject.inputs[i].shape:
            true = gradient(question, budget(subject))
            if true.complete:
                yield name, true.values.view(true.shape)


@line("backward against the reference", after=(DIFFERENCES,))
def backward_reference(subject):
    if subject.reference is None:
        return None
    name = "backward against the reference"
    ours = subject.gradients(subject.leaves())
    theirs = subject.gradients(subject.leaves(), subject.reference)
    made = subject.compared(name, ours, theirs, gradient_names(subject), subject.tolerance(1e-9))
    if made.status == FAILED and subject.surrogate:
        places = [k for k, n in enumerate(subject.names) if not subject.declared(n)]
        labels = gradient_names(subject)
        pairs = [[grads[k] for k in places] for grads in (ours, theirs)]
        undeclared = subject.compared(
            name, *pairs, [labels[k] for k in places], subject.tolerance(1e-9)
        )
        if undeclared.status == FAILED:
            return undeclared
        return Line(name, DECLARED, made.error, made.where, "as declared")
    return made


@line("kinks")
def kinks(subject):
    """At each declared kink: the reference's gradient, or one between the two one-sided slopes."""
    name = "kinks"
    if not subject.kinks:
        return None
    reason = subject.declared(subject.names[0])
    for kink in subject.kinks:
        first, *rest = subject.inputs
        at = [torch.full_like(first, kink), *rest]
        (ours, *_) = subject.gradients(subject.leaves(inputs=at))
        ours = torch.zeros_like(first) if ours is None else ours
        if subject.reference is not None and not reason:
            (theirs, *_) = subject.gradients(subject.leaves(inputs=at), subject.reference)
            theirs = torch.zeros_like(first) if theirs is None else theirs
            made = subject.compared(
                name,
                [ours],
                [theirs],
                gradient_names(subject)[:1],
                subject.tolerance(1e-10),
                message=f"right except at kinks: wrong at the kink {kink:g}",
            )
            if made.status == FAILED:
                return made
            continue
        sides = []
        for side in (-0.01, 0.01):
            beside = [at[0] + side, *rest]
            slope = subject.gradients(subject.leaves(inputs=beside))[0]
            sides.append(torch.zeros_like(first) if slope is None else slope)
        low, high = torch.minimum(*sides) - 0.05, torch.maximum(*sides) + 0.05
        if ((ours < low) | (ours > high)).any():
            message = (
                f"right except at kinks: at {kink:g} the slope lies outside those on its two sides"
            )
            return Line(name, FAILED, where=f"input = {kink:g}", detail=message)
    return Line(name, PASSED)


def budget(subject):
    """How many elements may be moved one by one so that it takes seconds."""
    start = time.perf_counter()
    with torch.no_grad():
        subject.outputs(subject.inputs)
    once = max(time.perf_counter() - start, 1e-6)
    return max(8, min(ELEMENTS, int(SECONDS / once / 4 / len(subject.inputs))))
