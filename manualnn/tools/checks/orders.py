"""The derivative of the derivative, and the derivative forward."""

import torch
from torch.autograd import forward_ad

from manualnn.tools.checks.derivatives import DIFFERENCES, budget
from manualnn.tools.checks.graph import nodes, own_nodes
from manualnn.tools.checks.incoming import TWICE
from manualnn.tools.checks.lines import gradient_names, line, output_names
from manualnn.tools.checks.numeric import (
    SINGLE,
    Question,
    apart,
    difference,
    gradient,
    largest,
    place,
    search,
)
from manualnn.tools.checks.report import DECLARED, FAILED, PASSED, SAME, UNSUPPORTED, Line
from manualnn.tools.checks.tolerated import CONVERTED

# The node that once_differentiable leaves behind, at whatever depth.
REFUSES = "torch::autograd::Error"


@line(
    "second backward",
    regime="backward cannot be differentiated",
    after=(TWICE, "calls side by side"),
)
def second_backward(subject):
    """The derivative of a weighted sum of the gradients, against differences of the gradients."""
    name = "second backward"
    leaves = subject.leaves()
    outputs = subject.outputs(leaves)
    with torch.no_grad():
        cotangents = subject.cotangents(subject.outputs(subject.inputs))
    cotangents = [c.requires_grad_() for c in cotangents]
    pairs = [(o, c) for o, c in zip(outputs, cotangents, strict=True) if o.requires_grad]
    if not pairs:
        return None
    outs, cots = zip(*pairs, strict=True)
    grads = subject.with_parameters(
        leaves,
        lambda: torch.autograd.grad(outs, leaves, cots, create_graph=True, allow_unused=True),
    )
    if any(node.name() == REFUSES for node in nodes([g for g in grads if g is not None])):
        message = "backward is marked once_differentiable: PyTorch refuses a second derivative"
        return Line(name, UNSUPPORTED, detail=message)
    weights = _weights(subject)
    linked = [(g, w) for g, w in zip(grads, weights, strict=True) if g is not None]
    total = sum((g * w).sum() for g, w in linked)
    points, labels = (
        [*leaves, *cots],
        [*gradient_names(subject), *["d(incoming gradient)"] * len(cots)],
    )
    seconds = (
        subject.with_parameters(
            leaves, lambda: torch.autograd.grad(total, points, allow_unused=True)
        )
        if torch.is_tensor(total) and total.requires_grad
        else [None] * len(points)
    )

    def weighted(moved):
        at = [t.detach().clone().requires_grad_() for t in moved[: len(leaves)]]
        with torch.enable_grad():
            out = [o for o in subject.outputs(at) if o.requires_grad]
            back = [c.detach().clone() for c in moved[len(leaves) :]]
            g = subject.with_parameters(
                at, lambda: torch.autograd.grad(out, at, back, allow_unused=True)
            )
        return sum(float((a * w).sum()) for a, w in zip(g, weights, strict=True) if a is not None)

    base, worst = [t.detach() for t in points], 0.0
    sizes = [float((g * w).detach().abs().sum() + subject.slope * w.abs().sum()) for g, w in linked]
    noise = 16 * subject.precision.eps * sum(sizes)
    few = max(4, min(12, budget(subject) // 6))
    for i, (label, given) in enumerate(zip(labels, seconds, strict=True)):
        if i < len(leaves) and subject.declared(subject.names[i]):
            continue
        question = Question(
            weighted,
            base,
            i,
            given,
            noise,
            _looser(subject.precision),
            subject.seed,
            mixed=subject.mixed,
        )
        if not question.claims.isfinite().all():
            continue  # at a kink or an edge there is no second derivative
        true = gradient(question, few)
        found = None if true.complete or true.wrong else search(question, directions=1)
        if not true.wrong and not found:
            error = apart(true.of(question.claims), true.values)[0]
            worst = max(worst, error if error < 1 else 0.0)
            continue
        first_is_right = apart(
            torch.cat([g.reshape(-1) for g in grads if g is not None]),
            torch.cat(
                [g.reshape(-1) for g in subject.gradients(subject.leaves()) if g is not None]
            ),
        )[0]
        message = (
            "the second derivative misses a path: an intermediate was saved without its history"
        )
        if given is not None and given.any():
            message = (
                "the second derivative is wrong: a term is missing, or an intermediate was saved without "
                "its history"
            )
        elif i >= len(leaves):
            message = (
                "the second derivative does not reach the incoming gradient: its history is cut"
            )
        if first_is_right > 1e-6:
            message = "with create_graph=True even the first derivative differs"
        if not found:
            found = int(true.index[true.wrong[0]]), true.values[true.wrong[0]].item()
        at, value = found
        shown = question.claims[at].item()
        status = SAME if subject.wrong else FAILED
        message = f"as in {DIFFERENCES!r}" if subject.wrong else message
        where = f"d/d{place(label, true.shape, at)}: analytic {shown:.9g}, numeric {value:.9g}"
        return Line(name, status, abs(shown - value) / max(abs(value), 1e-30), where, message)
    return Line(name, PASSED, worst)


def _looser(precision):
    from dataclasses import replace

    return replace(precision, close=max(precision.close, 1e-6))


@line("forward mode", regime="forward mode is not there")
def forward_mode(subject):
    """The derivative along a random direction (torch.func.jvp and dual numbers), against differences."""
    made = _along_a_direction(subject)
    if made.status != FAILED:
        return made
    generator = torch.Generator().manual_seed(subject.seed + 43)
    moved = [
        t + 1e-3 * torch.randn(t.shape, generator=generator, dtype=t.dtype) for t in subject.inputs
    ]
    try:
        beside = _along_a_direction(subject.at(moved))
    except Exception:  # outside its domain
        return made
    if beside.status != PASSED:
        return made
    return Line("forward mode", PASSED, beside.error, detail="a kink is here: looked at beside it")


def _along_a_direction(subject):
    name = "forward mode"
    free = [k for k, n in enumerate(subject.names) if not subject.declared(n)]
    direction = [w if k in free else torch.zeros_like(w) for k, w in enumerate(_weights(subject))]
    (_, ours) = torch.func.jvp(  # type: ignore[misc]  # two, without has_aux
        lambda *ts: subject.outputs(ts), tuple(subject.inputs), tuple(direction)
    )
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(t, d) for t, d in zip(subject.inputs, direction, strict=True)]
        duals = [forward_ad.unpack_dual(o).tangent for o in subject.outputs(duals)]
    if not free:
        reason = subject.surrogate
        reasons = reason if isinstance(reason, str) else "; ".join(reason.values())
        return Line(name, DECLARED, detail=f"as declared: {reasons}")
    # Of what forward detaches backward says nothing, and neither does this.
    flowing = [k for k, flows in enumerate(subject.differentiable) if flows]
    labels = [f"tangent of {output_names(ours)[k]}" for k in flowing]
    steps = _settled(subject, direction, subject.precision.steps)
    tolerance = 1e-6 if subject.precision is not SINGLE else 1e-2
    worst = 0.0
    for how, tangents in (("torch.func.jvp", ours), ("dual numbers", duals)):
        shown, nearest = [], []
        for k in flowing:
            t, like = tangents[k], steps[0][k]
            t = torch.zeros_like(like) if t is None else t.double()
            shown.append(t)
            nearest.append(_nearest(t, [step[k] for step in steps]))
        message = f"jvp is wrong ({how})"
        made = subject.compared(name, shown, nearest, labels, tolerance, message=message)
        # Near the edge of its domain, or far out, where a step is lost in the rounding?
        if made.status == FAILED and subject.precision is not SINGLE:
            far = max(map(largest, subject.inputs))
            further = (1e-3 * far, 1e-4 * far) if 10 < far < 1e30 else ()
            for others in (further, (1e-9, 1e-10)):
                steps = [*_settled(subject, direction, others), *steps] if others else steps
            nearest = [
                _nearest(t, [step[k] for step in steps])
                for k, t in zip(flowing, shown, strict=True)
            ]
            made = subject.compared(name, shown, nearest, labels, tolerance, message=message)
        if made.status == FAILED:
            return made
        worst = max(worst, made.error)
    return Line(name, PASSED, worst)


def _settled(subject, direction, steps):
    """The differences of the outputs along the direction at every step, and those of the two sides."""
    made = []
    for step in steps:
        try:
            made.append(difference(subject.outputs, subject.inputs, direction, step))
        except Exception:  # a step out of its domain
            continue
    step = steps[-2]
    with torch.no_grad():
        base = subject.outputs(subject.inputs)
        for side in (-1, 1):
            try:
                moved = [
                    t + side * step * d for t, d in zip(subject.inputs, direction, strict=True)
                ]
                there = subject.outputs(moved)
                made.append(
                    [(b - a).double() / (side * step) for a, b in zip(base, there, strict=True)]
                )
            except Exception:  # that side is out of its domain
                continue
    if not made:
        # Labels at both ends of [0, 1], say: no step stays inside, and nothing speaks against anything.
        made.append([torch.full_like(b, float("inf")).double() for b in base])
    return made


def _nearest(tangent, differences):
    """Of each element, the difference that comes nearest; itself where it lies between two slopes that
    differ, or where there is no difference."""
    stack = torch.stack(
        [d.nan_to_num(float("inf"), float("inf"), float("inf")) for d in differences]
    )
    best = (stack - tangent).abs().argmin(0, keepdim=True)
    value = stack.gather(0, best)[0]
    sides = stack[-2:]
    low, high = sides.min(0).values, sides.max(0).values
    kink = (high - low) > 1e-2 * (high.abs() + low.abs()) + 1e-6
    inside = kink & (low <= tangent) & (tangent <= high)
    return torch.where(inside | value.isinf(), tangent, value)


@line("nested forward mode", regime="nested forward mode is not there", after=(DIFFERENCES,))
def nested_forward_mode(subject):
    """The derivative of the tangent, forward again, against the same by backward over forward."""
    name, direction = "nested forward mode", _weights(subject)
    if subject.surrogate:
        return None

    def moved(step):
        return [t + step * d for t, d in zip(subject.inputs, direction, strict=True)]

    def along(step):
        return subject.outputs(moved(step))

    zero, one = (make((), dtype=subject.dtype) for make in (torch.zeros, torch.ones))

    def tangent(step):
        return torch.func.jvp(along, (step,), (one,))[1]

    ours = torch.func.jvp(tangent, (zero,), (one,))[1]

    def slopes(outputs):
        cotangents = subject.cotangents(outputs)
        return sum((c * o).sum() for c, o in zip(cotangents, outputs, strict=True))

    by_hand = slopes(ours)
    step = zero.clone().requires_grad_()
    there = moved(step)
    total = slopes(subject.outputs(there))
    (first,) = subject.with_parameters(
        there, lambda: torch.autograd.grad(total, step, create_graph=True)
    )
    second = zero
    if first.requires_grad:
        (second,) = subject.with_parameters(
            there, lambda: torch.autograd.grad(first, step, allow_unused=True)
        )
        second = zero if second is None else second
    message = "the derivative of the tangent is not that of the gradient"
    if by_hand.abs() < 1e-12:
        message = (
            "the derivative of the tangent is lost: PyTorch calls a Function's jvp with forward mode "
            "switched off"
        )
    if not (by_hand.isfinite() and second.isfinite()):
        return None  # at a kink or an edge there is no second derivative
    size = 1e-7 * sum(c.abs().max().item() for c in ours if c.numel())
    size += 1e-7 * subject.least
    # Where it is zero by nature (a softmax that is summed), what is left are roundings of what it is made of.
    size += 1e-8 * first.abs().item()
    labels = ["second derivative along a line"]
    # Backward twice may lack the same path: the tangent itself, a little before and after, says so.
    between = _between(tangent, slopes, zero, size)
    if between is not None and (by_hand - between).abs() > 1e-3 * (by_hand + between).abs() + size:
        second = between
    if (by_hand - second).abs() <= size * 1e-3:
        return Line(name, PASSED, 0.0)
    made = subject.compared(
        name, [by_hand], [second], labels, subject.tolerance(1e-7), message=message
    )
    if made.status == FAILED and (
        not own_nodes(subject.outputs(subject.leaves())) or _so_is_pytorch(subject)
    ):
        message = f"PyTorch's own: {message}"  # nothing here is written by hand
        return Line(name, UNSUPPORTED, made.error, made.where, message, refused_by="PyTorch")
    return made


def _between(tangent, slopes, zero, size):
    """The slope of the tangent by central differences; None where two steps do not agree on it."""
    if zero.dtype is not torch.float64:
        return None

    def differences(h):
        after, before = (slopes(tangent(zero + step)) for step in (h, -h))
        return (after - before) / (2 * h)

    coarse, fine = differences(1e-4), differences(5e-5)
    agree = (coarse - fine).abs() <= 1e-5 * fine.abs() + size
    return fine if bool(agree) else None


def _so_is_pytorch(subject):
    """Whether the layers of PyTorch's that check has converted do the same."""
    twin = subject.twin() if subject.made == CONVERTED else None
    if twin is None or own_nodes(twin.outputs(twin.leaves())):
        return False
    theirs = nested_forward_mode(twin)
    return theirs is not None and theirs.status == UNSUPPORTED


def _weights(subject):
    generator = torch.Generator().manual_seed(subject.seed + 23)
    return [
        torch.randn(t.shape, generator=generator, dtype=t.dtype).to(t.device)
        for t in subject.inputs
    ]
