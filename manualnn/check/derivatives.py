"""Is the value right, is its derivative, and the derivative of that?"""

import time

import torch
from torch.autograd import forward_ad

from manualnn.check.diagnosis import Case, diagnose
from manualnn.check.lines import (
    EXACT,
    compared,
    gradient_names,
    line,
    output_names,
)
from manualnn.check.numeric import STEPS, apart, difference, gradient, place
from manualnn.check.report import DECLARED, FAILED, PASSED, UNSUPPORTED, Line

CLOSE = 1e-8  # relative: a derivative and its difference
ELEMENTS = 200  # of an input that are moved one by one, at the most
SECONDS = 2.0  # for the differences of one line, about


@line("forward against the reference")
def forward(subject):
    if subject.reference is None:
        return None
    with torch.no_grad():
        ours = subject.outputs(subject.inputs)
        theirs = subject.outputs(subject.inputs, subject.reference)
    made = compared("forward against the reference", ours, theirs, output_names(ours))
    if made.status == FAILED and made.error is not None and made.error < 1e-5:
        told = f"right to {made.error:.0e} only: something inside is computed in float32"
        return Line(made.name, FAILED, made.error, made.where, told)
    return made


@line("inputs are left as they were")
def inputs_unchanged(subject):
    """An operation that works in place says so: what comes out is what went in."""
    name, leaves = "inputs are left as they were", subject.leaves()
    made = [t * 1 for t in leaves]
    before = [t.detach().clone() for t in made]
    outputs = subject.outputs(made)
    out_of = {t.data_ptr() for t in outputs}
    for label, t, was in zip(subject.names, made, before, strict=True):
        if not torch.equal(t.detach(), was) and not (t.data_ptr() in out_of and t._version):
            told = f"{label} is changed in place by forward, unknown to autograd"
            return Line(name, FAILED, where=label, detail=told)
    return Line(name, PASSED)


@line("backward against central differences")
def backward_differences(subject):
    """dL/d(input) of a weighted sum of the outputs, element by element."""
    name = "backward against central differences"
    grads = subject.gradients(subject.leaves())
    cotangents = _cotangents(subject)

    def loss(tensors):
        outputs = subject.outputs(tensors)
        return [sum((c * o).sum() for c, o in zip(cotangents, outputs, strict=True))]

    worst, departs = 0.0, None
    for i, (label, grad) in enumerate(zip(gradient_names(subject), grads, strict=True)):
        true = gradient(loss, subject.inputs, i, _budget(subject), subject.seed, grad, CLOSE)
        given = None if grad is None else true.of(grad.double())
        shown = torch.zeros_like(true.values) if given is None else given
        error, at = apart(shown, true.values)
        if error <= _tolerance(true.values):
            worst = max(worst, error)
            continue
        at = int(true.index[at])
        where = _beside(label, true, shown, at)
        x, values = true.of(subject.inputs[i]), true.values
        if true.complete:  # in the shape of the input; of a sample there is no shape
            x, values = x.view(true.shape), values.view(true.shape)
            given = None if given is None else given.view(true.shape)
        sizes = tuple({n for t in subject.inputs for n in (*t.shape, t.numel())})
        case = Case(label, given, values, x, true.complete, sizes)
        reason = subject.declared(subject.names[i])
        if reason:
            departs = departs or Line(
                name,
                DECLARED,
                error,
                where,
                f"{label} is not the true derivative, as declared: {reason}",
            )
            continue
        return Line(name, FAILED, error, where, diagnose(case))
    return departs or Line(name, PASSED, worst)


@line("backward against the reference")
def backward_reference(subject):
    if subject.reference is None:
        return None
    name = "backward against the reference"
    ours = subject.gradients(subject.leaves())
    theirs = subject.gradients(subject.leaves(), subject.reference)
    return compared(name, ours, theirs, gradient_names(subject), tolerance=1e-9)


@line("backward draws no random numbers")
def backward_redraws(subject):
    """What was drawn in forward must be remembered, not drawn again."""
    name, results = "backward draws no random numbers", []
    if not subject.random:
        return None
    for seed in (1, 2):
        leaves = subject.leaves()
        outputs = subject.outputs(leaves)
        torch.manual_seed(seed)
        results.append(subject.backward(outputs, leaves))
    told = "the random mask is drawn again in backward: it differs from the one that forward used"
    return compared(name, *results, gradient_names(subject), tolerance=0, told=told)


@line("each input alone")
def each_alone(subject):
    """The same gradient when nothing else needs one."""
    name, labels = "each input alone", gradient_names(subject)
    together = subject.gradients(subject.leaves())
    if len(together) == 1:
        return None
    alone = []
    for i in range(len(together)):
        try:
            alone.append(subject.gradients(subject.leaves(needs=(i,)))[0])
        except Exception as error:
            told = f"{labels[i]} cannot be computed alone: {type(error).__name__}: {error}"
            return Line(name, FAILED, where=labels[i], detail=told)
    told = (
        "the gradient depends on whether another input needs one: ctx.needs_input_grad is misread"
    )
    return compared(name, alone, together, labels, told=told)


@line("backward twice", raising="backward changes what it has kept")
def backward_twice(subject):
    """With retain_graph, the second time as the first."""
    leaves = subject.leaves()
    outputs = subject.outputs(leaves)
    first = subject.backward(outputs, leaves, retain_graph=True)
    second = subject.backward(outputs, leaves)
    told = "backward changes what it has kept"
    return compared("backward twice", second, first, gradient_names(subject), 0, told=told)


@line("kinks")
def kinks(subject):
    """At each declared kink: the reference's gradient, or one between the two one-sided slopes."""
    name = "kinks"
    for kink in subject.kinks:
        first, *rest = subject.inputs
        at = [torch.full_like(first, kink), *rest]
        (ours, *_) = subject.gradients(subject.leaves(inputs=at))
        ours = torch.zeros_like(first) if ours is None else ours
        if subject.reference is not None:
            (theirs, *_) = subject.gradients(subject.leaves(inputs=at), subject.reference)
            theirs = torch.zeros_like(first) if theirs is None else theirs
            made = compared(
                name,
                [ours],
                [theirs],
                gradient_names(subject)[:1],
                told=f"right except at kinks: wrong at the kink {kink:g}",
            )
            if made.status == FAILED:
                return made
            continue
        sides = []
        for side in (-0.01, 0.01):
            beside = [at[0] + side, *rest]
            sides.append(subject.gradients(subject.leaves(inputs=beside))[0])
        low, high = torch.minimum(*sides) - 0.05, torch.maximum(*sides) + 0.05
        if ((ours < low) | (ours > high)).any():
            told = (
                f"right except at kinks: at {kink:g} the slope lies outside those on its two sides"
            )
            return Line(name, FAILED, where=f"input = {kink:g}", detail=told)
    return Line(name, PASSED) if subject.kinks else None


@line("NaN and infinity")
def special_values(subject):
    """A NaN or an infinity in the input: as the reference's output; without one, NaN must stay NaN."""
    name, first = "NaN and infinity", subject.inputs[0]
    if not first.numel():
        return None
    for value in (float("nan"), float("inf"), -float("inf"), -0.0, 1e4, -1e4):
        at = first.clone()
        at.view(-1)[0] = value
        try:
            ours = subject.outputs([at, *subject.inputs[1:]])
        except RuntimeError:  # outside its domain: the reference says so, too, or nobody knows
            if subject.reference is not None:
                try:
                    subject.outputs([at, *subject.inputs[1:]], subject.reference)
                except RuntimeError:
                    continue
                raise
            continue
        if subject.reference is None:
            if value != value and not any(t.isnan().any() for t in ours):
                told = "a NaN in the input disappears: a diverging network would look healthy"
                return Line(name, FAILED, where=f"{subject.names[0]} = nan", detail=told)
            continue
        theirs = subject.outputs([at, *subject.inputs[1:]], subject.reference)
        made = compared(
            name, ours, theirs, output_names(ours), 1e-9, told=f"for an input of {value:g}"
        )
        if made.status == FAILED:
            return made
        pairs = [
            subject.gradients(subject.leaves(inputs=[at, *subject.inputs[1:]]), function)
            for function in (None, subject.reference)
        ]
        if value == value:  # the slope at NaN is nobody's promise
            labels = gradient_names(subject)
            made = compared(
                name, *pairs, labels, 1e-7, told=f"the gradient for an input of {value:g}"
            )
            if made.status == FAILED:
                return made
    return Line(name, PASSED)


@line("second backward")
def second_backward(subject):
    """The derivative of a weighted sum of the gradients, against differences of the gradients."""
    name = "second backward"
    leaves = subject.leaves()
    outputs = subject.outputs(leaves)
    cotangents = [c.requires_grad_() for c in _cotangents(subject)]
    pairs = [(o, c) for o, c in zip(outputs, cotangents, strict=True) if o.requires_grad]
    outs, cots = zip(*pairs, strict=True)
    grads = torch.autograd.grad(outs, leaves, cots, create_graph=True, allow_unused=True)
    if any(g is not None and g.grad_fn is not None and "Error" in g.grad_fn.name() for g in grads):
        told = "backward is marked once_differentiable: PyTorch refuses a second derivative"
        return Line(name, UNSUPPORTED, detail=told)
    weights = _weights(subject)
    linked = [(g, w) for g, w in zip(grads, weights, strict=True) if g is not None]
    total = sum((g * w).sum() for g, w in linked)
    points, labels = (
        [*leaves, *cots],
        [*gradient_names(subject), *["d(incoming gradient)"] * len(cots)],
    )
    seconds = (
        torch.autograd.grad(total, points, allow_unused=True)
        if total.requires_grad
        else [None] * len(points)
    )

    def weighted(moved):
        at = [t.detach().requires_grad_() for t in moved[: len(leaves)]]
        with torch.enable_grad():
            out = [o for o in subject.outputs(at) if o.requires_grad]
            g = torch.autograd.grad(out, at, moved[len(leaves) :], allow_unused=True)
        return [sum((a * w).sum() for a, w in zip(g, weights, strict=True) if a is not None)]

    base, worst = [t.detach() for t in points], 0.0
    budget = max(4, _budget(subject) // 6)
    for i, (label, given) in enumerate(zip(labels, seconds, strict=True)):
        true = gradient(weighted, base, i, budget, subject.seed, given, CLOSE)
        shown = torch.zeros_like(true.values) if given is None else true.of(given)
        error, at = apart(shown, true.values)
        if error <= max(1e-6, 10 * _tolerance(true.values)):
            worst = max(worst, error)
            continue
        first_is_right = apart(
            torch.cat([g.reshape(-1) for g in grads if g is not None]),
            torch.cat(
                [g.reshape(-1) for g in subject.gradients(subject.leaves()) if g is not None]
            ),
        )[0]
        told = "the second derivative misses a path: an intermediate was saved without its history"
        if first_is_right > EXACT:
            told = "with create_graph=True even the first derivative differs"
        return Line(
            name, FAILED, error, "d/d" + _beside(label, true, shown, int(true.index[at])), told
        )
    return Line(name, PASSED, worst)


@line("forward mode")
def forward_mode(subject):
    """The derivative along a random direction (torch.func.jvp and dual numbers), against differences."""
    name = "forward mode"
    direction = _weights(subject)
    _, ours = torch.func.jvp(
        lambda *ts: subject.outputs(ts), tuple(subject.inputs), tuple(direction)
    )
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(t, d) for t, d in zip(subject.inputs, direction, strict=True)]
        duals = [forward_ad.unpack_dual(o).tangent for o in subject.outputs(duals)]
    labels = [f"tangent of {n}" for n in output_names(ours)]
    for how, tangents in (("torch.func.jvp", ours), ("dual numbers", duals)):
        made = [
            compared(
                name,
                tangents,
                difference(subject.outputs, subject.inputs, direction, step),
                labels,
                1e-6,
                told=f"jvp is wrong ({how})",
            )
            for step in STEPS
        ]
        made = min(made, key=lambda line: line.error)
        if made.status == FAILED:
            break
    reason = subject.surrogate
    if made.status == FAILED and reason:
        reasons = reason if isinstance(reason, str) else "; ".join(reason.values())
        return Line(name, DECLARED, made.error, made.where, f"as declared: {reasons}")
    return made


@line("nested forward mode")
def nested_forward_mode(subject):
    """The derivative of the tangent, forward again, against the same by backward over forward."""
    name, direction = "nested forward mode", _weights(subject)
    if subject.surrogate:
        return None

    def along(step):
        return subject.outputs(
            [t + step * d for t, d in zip(subject.inputs, direction, strict=True)]
        )

    zero, one = torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64)

    def tangent(step):
        return torch.func.jvp(along, (step,), (one,))[1]

    ours = torch.func.jvp(tangent, (zero,), (one,))[1]

    def slopes(step):
        outputs = along(step)
        cotangents = subject.cotangents(outputs)
        return sum((c * o).sum() for c, o in zip(cotangents, outputs, strict=True))

    by_hand = sum((c * o).sum() for c, o in zip(subject.cotangents(ours), ours, strict=True))
    step = zero.clone().requires_grad_()
    (first,) = torch.autograd.grad(slopes(step), step, create_graph=True)
    second = zero
    if first.requires_grad:
        (second,) = torch.autograd.grad(first, step, allow_unused=True)
        second = zero if second is None else second
    told = "the derivative of the tangent is not that of the gradient"
    if by_hand.abs() < 1e-12:
        told = (
            "the derivative of the tangent is lost: PyTorch calls a Function's jvp with forward mode "
            "switched off"
        )
    return compared(name, [by_hand], [second], ["second derivative along a line"], 1e-7, told=told)


def _cotangents(subject):
    with torch.no_grad():
        return subject.cotangents(subject.outputs(subject.inputs))


def _weights(subject):
    generator = torch.Generator().manual_seed(subject.seed + 23)
    return [
        torch.randn(t.shape, generator=generator, dtype=t.dtype).to(t.device)
        for t in subject.inputs
    ]


def _budget(subject):
    """How many elements may be moved one by one so that it takes seconds."""
    start = time.perf_counter()
    with torch.no_grad():
        subject.outputs(subject.inputs)
    once = max(time.perf_counter() - start, 1e-6)
    return max(8, min(ELEMENTS, int(SECONDS / once / 4 / len(subject.inputs))))


def _tolerance(true):
    """CLOSE, and more where the derivative is so small that the difference is all rounding."""
    largest = true.abs().max().item() if true.numel() else 0.0
    return CLOSE if largest > 1e-4 else max(CLOSE, 1e-10 / max(largest, 1e-10))


def _beside(label, true, shown, at):
    k = int((true.index == at).nonzero()[0])
    analytic, numeric = shown[k].item(), true.values[k].item()
    return f"{place(label, true.shape, at)}: analytic {analytic:.9g}, numeric {numeric:.9g}"
