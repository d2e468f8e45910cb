"""In float32, in bfloat16, under autocast: of the right dtype, and as right as that dtype can be."""

from typing import Any

import torch

from manualnn.tools.checks.generators import held_by
from manualnn.tools.checks.incoming import TWICE
from manualnn.tools.checks.lines import gradient_names, line, output_names
from manualnn.tools.checks.numeric import largest
from manualnn.tools.checks.report import FAILED, PASSED, UNSUPPORTED, Line
from manualnn.tools.checks.rounding import of_nature

EARLIER = (
    "backward draws no random numbers",
    TWICE,
    "inputs are left as they were",
    "calls side by side",
)
SMALL = 0.1  # of the largest of all: below it a tensor is compared with that, not with itself


@line("autocast", regime="it does not run under autocast", after=EARLIER)
def autocast(subject):
    """Under CPU autocast to bfloat16: the reference's output dtype, gradients in the inputs' dtype."""
    name, problems, worst = "autocast", [], 0.0
    if subject.complex:
        return None
    exact = subject.leaves(torch.float32)
    if subject.reference is not None:
        with torch.autocast("cpu", torch.bfloat16):
            theirs = subject.outputs(exact, subject.reference)
    labels = gradient_names(subject)
    grads: Any
    for inside in (False, True):  # the backward, too, may be called in the region
        leaves = subject.leaves(torch.float32)
        with torch.autocast("cpu", torch.bfloat16):
            ours = subject.outputs(leaves)
            grads = subject.backward(ours, leaves) if inside else None
        try:
            grads = grads if inside else subject.backward(ours, leaves)
        except RuntimeError as refusal:
            if "dtype" not in str(refusal):
                raise
            message = (
                f"backward mixes dtypes ({refusal}): forward computed in bfloat16 and saved float32. "
                "Cast the inputs before apply, see manualnn.autocast"
            )
            return Line(name, FAILED, detail=message)
        for label, leaf, g in zip(labels, leaves, grads, strict=True):
            if g is not None and g.dtype is not leaf.dtype:
                problems.append(f"{label} is {g.dtype}, the input {leaf.dtype}")
        if subject.reference is not None:
            for label, mine, other in zip(output_names(ours), ours, theirs, strict=True):
                if mine.dtype is not other.dtype:
                    problems.append(f"{label} is {mine.dtype}, the reference's {other.dtype}")
        if not subject.random:
            full = subject.gradients(subject.leaves(torch.float32))
            error, where = _distance(grads, full, labels, subject.least)
            if error > 0.1 and error > 2 * _sensitivity(subject, torch.bfloat16, len(ours)):
                with torch.autocast("cpu", torch.bfloat16):
                    others = subject.reference and subject.outputs(exact, subject.reference)
                if others is not None:
                    error_there, _ = _distance(subject.backward(others, exact), full, labels)
                    if error <= 1.5 * error_there:
                        continue
                return Line(name, FAILED, error, where, "wrong under autocast")
            worst = max(worst, error)
    if problems:
        return Line(name, FAILED, detail="wrong dtype under autocast: " + "; ".join(problems[:3]))
    return Line(name, PASSED, worst)


@line("float32", after=EARLIER)
def single_precision(subject):
    """Value and gradients in float32: of that dtype, and right to its precision."""
    if subject.dtype is torch.float32:
        return None  # that is what all is computed in
    return _in(subject, torch.float32, "float32", 1e-4)


@line("bfloat16", regime="it does not take bfloat16", after=(*EARLIER, "float32"))
def bfloat16(subject):
    """Value and gradients in bfloat16: of that dtype, and right to its precision."""
    return None if subject.complex else _in_half(subject, torch.bfloat16, "bfloat16", 0.1)


@line("float16", regime="it does not take float16", after=(*EARLIER, "float32"))
def float16(subject):
    """Value and gradients in float16: of that dtype, and right to its precision."""
    if subject.complex:
        return None
    exact = subject.leaves(inputs=[t.half().to(subject.dtype) for t in subject.inputs])
    outputs = subject.outputs(exact)
    sizes = [largest(t) for t in (*outputs, *subject.backward(outputs, exact)) if t is not None]
    if any(size > 6e4 or 0 < size < 1e-4 for size in sizes):
        return None  # it has no numbers so large, or none near so small
    return _in_half(subject, torch.float16, "float16", 0.02)


def _in_half(subject, dtype, name, tolerance):
    """Of half precision there are no complex numbers: where a buffer is complex, it need not be taken."""
    try:
        made = _in(subject, dtype, name, tolerance)
    # A person's code may raise anything; unless it is the buffers, the line reports it.
    except Exception:
        if subject.holds_complex:
            return None
        raise
    return None if subject.holds_complex and made.status == FAILED else made


class _OtherDtype(Exception):
    """The output's dtype is not the inputs'."""


def _in(subject, dtype, name, tolerance):
    try:
        return _right_in(subject, dtype, name, tolerance)
    except Exception as error:
        is_other = isinstance(error, _OtherDtype)
        doubles = _doubles(subject) if is_other or "dtype" in str(error) else []
        if doubles:
            shape = tuple(doubles[0].shape)
            message = f"it holds a tensor of torch.float64 of its own, of shape {shape}"
            return Line(name, UNSUPPORTED, detail=message)
        if is_other:
            return Line(name, FAILED, detail=str(error))
        raise


def _doubles(subject):
    """The tensors of float64 that a function holds, in a closure or a module there. A module itself is cast."""
    if subject.arguments is not None:
        return []
    found = held_by(subject.function, torch.Tensor)
    return [t for t in found if t.dtype is torch.float64 and t.dim()]


def _right_in(subject, dtype, name, tolerance):
    if subject.random or subject.draws:
        tolerance = float("inf")  # other numbers may be drawn in another dtype
    rounded = [t.to(dtype).to(subject.dtype) for t in subject.inputs]
    exact = subject.leaves(inputs=rounded)
    true_out = subject.outputs(exact)
    true = [*true_out, *subject.backward(true_out, exact)]
    leaves = subject.leaves(dtype, inputs=rounded)
    outputs = subject.outputs(leaves)
    dtypes = {t.dtype for t in outputs if t.requires_grad} or {dtype}  # a constant has its own
    if dtypes != {dtype} and not _reference_agrees(subject, dtype, outputs):
        raise _OtherDtype(f"the output of {dtype} inputs is {', '.join(sorted(map(str, dtypes)))}")
    grads = subject.backward(outputs, leaves)
    least = 16 * torch.finfo(dtype).eps * subject.slope * subject.spread
    grads = of_nature(grads, true[len(true_out) :], least)
    labels = [*output_names(outputs), *gradient_names(subject)]
    error, where = _distance([*outputs, *grads], true, labels, subject.least)
    if error <= tolerance:
        return Line(name, PASSED, error)
    if subject.reference is not None:
        # No worse than the reference is good enough.
        leaves = subject.leaves(dtype, inputs=rounded)
        other = subject.outputs(leaves, subject.reference)
        theirs, _ = _distance([*other, *subject.backward(other, leaves)], true, labels)
        if error <= 1.5 * theirs:
            return Line(name, PASSED, error, detail=f"the reference's error is {theirs:.1e}")
    if error <= tolerance + 2 * _sensitivity(subject, dtype, len(outputs), outputs=True):
        message = f"the numbers move as much where the inputs do by the rounding of {name}"
        return Line(name, PASSED, error, detail=message)
    message = f"right in float64 only: the error in {name} is far above its rounding"
    return Line(name, FAILED, error, where, message)


def _distance(ours, theirs, labels, least=0.0):
    """(the largest of the relative distances ‖ours − theirs‖ / ‖theirs‖, where), of lists of tensors.

    A tensor that is small beside the others is compared with them, or with ``least``: a gradient that is
    zero by nature is rounding alone. The norm counts, not the worst element: near a kink rounding may turn
    one element over.
    """
    pairs = []
    for label, mine, other in zip(labels, ours, theirs, strict=True):
        if mine is None and other is None:
            continue
        mine = torch.zeros_like(other) if mine is None else mine
        other = torch.zeros_like(mine) if other is None else other
        pairs.append((label, mine.detach().double(), other.detach().double()))
    size = max(SMALL * max((largest(other) for _, _, other in pairs), default=0.0), least)
    worst, where = 0.0, ""
    for label, mine, other in pairs:
        if mine.shape != other.shape:
            return float("inf"), f"{label} has shape {tuple(mine.shape)}, not {tuple(other.shape)}"
        same = (mine == other) | (mine.isnan() & other.isnan())
        apart = torch.where(same, 0.0, mine - other)
        if not apart.isfinite().all():
            error = float("inf")
        elif largest(other) < size:
            error = largest(apart) / size
        else:
            error = _mean_size(apart) / (_mean_size(other) or 1.0)
        if error > worst:
            at = int(apart.abs().nan_to_num(float("inf")).argmax())
            values = mine.reshape(-1)[at].item(), other.reshape(-1)[at].item()
            worst, where = error, f"{label} has {values[0]:.6g}, not {values[1]:.6g}"
    return worst, where


def _mean_size(t):
    """The root of the mean square of the finite elements."""
    t = t[t.isfinite()] if t.dim() else t
    largest_one = largest(t)
    if not t.numel() or not largest_one:
        return 0.0
    return largest_one * (t / largest_one).square().mean().sqrt().item()


def _sensitivity(subject, dtype, count, outputs=False):
    """How far outputs and gradients in float64 move where the inputs move by the rounding of a dtype."""
    eps, worst = torch.finfo(dtype).eps, 0.0

    def everything(inputs):
        leaves = subject.leaves(inputs=inputs)
        out = subject.outputs(leaves)
        grads = subject.backward(out, leaves)
        return [*out, *grads] if outputs else grads

    base = everything(subject.inputs)
    labels = ["" for _ in base]
    generator = torch.Generator().manual_seed(subject.seed + 31)
    for _ in range(3):
        moved = [
            t * (1 + eps * (2 * torch.rand(t.shape, generator=generator, dtype=t.dtype) - 1))
            for t in subject.inputs
        ]
        try:
            worst = max(worst, _distance(everything(moved), base, labels)[0])
        except RuntimeError:  # out of its domain
            continue
    return worst


def _reference_agrees(subject, dtype, outputs):
    if subject.reference is None:
        return False
    theirs = subject.outputs(subject.leaves(dtype), subject.reference)
    return [t.dtype for t in outputs] == [t.dtype for t in theirs]
