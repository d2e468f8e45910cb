"""Whether a gradient departs from differences at a point, in few steps: for the lines that try many points."""

import torch

from manualnn.tools.checks.derivatives import budget
from manualnn.tools.checks.edges import without_edges
from manualnn.tools.checks.graph import own_nodes
from manualnn.tools.checks.lines import gradient_names
from manualnn.tools.checks.numeric import WRONG, gradient, place
from manualnn.tools.checks.report import FAILED, Line


def departs(name, subject, where):
    """The failed line where a gradient does not agree with differences along random directions; or None."""
    with torch.no_grad():  # of numbers so small backward's are taken for roundings, too
        least = subject.rounding(subject.cotangents(subject.outputs(subject.inputs)))
    for label, question in _asked(subject):
        generator = torch.Generator().manual_seed(subject.seed + 7)
        direction = torch.randn(question.x.numel(), generator=generator).to(question.x.dtype)
        if question.towards(direction)[0] != WRONG:
            continue
        true = gradient(question, min(budget(subject), 60))
        true, _ = without_edges(subject, question, true)
        if not true.wrong:
            continue
        k = true.wrong[0]
        shown, value = true.of(question.claims)[k].item(), true.values[k].item()
        if max(abs(shown), abs(value)) < least:
            continue
        at = place(label, true.shape, int(true.index[k]))
        error = abs(shown - value) / max(abs(value), 1e-30)
        found = f"{at}: analytic {shown:.9g}, numeric {value:.9g}"
        message = f"{label} is wrong {where}".rstrip()
        if shown != shown:
            message = f"{label} is NaN {where}".rstrip() + ", though forward is finite"
        return Line(name, FAILED, error, found, message)
    return None


def departs_tied(name, subject, where):
    """The failed line where equal elements, moved together, do not have the slope; or None.

    One of them alone may be at a kink, as the largest of a window. Together they are at none.
    """
    for label, question in _asked(subject):
        values, group = question.x.flatten().unique(return_inverse=True)
        if len(values) == len(group):
            continue
        generator = torch.Generator().manual_seed(subject.seed + 7)
        direction = torch.randn(len(values), generator=generator).to(question.x.dtype)[group]
        verdict, value = question.towards(direction)
        if verdict != WRONG:
            continue
        given = (question.claims * direction.double()).sum().item()
        try:
            if question.near(given, direction):
                continue
        except Exception:  # at the edge of its domain: nobody can tell
            continue
        error = abs(given - value) / max(abs(value), 1e-30)
        message = f"{label} is NaN {where}, though forward is finite"
        if given == given:
            message = (
                f"{label} is wrong {where}: moved together, the elements that are equal (a tie) give "
                f"{value:.6g}, not {given:.6g}; each of them gets the whole gradient, or none does?"
            )
        return Line(name, FAILED, error, label, message)
    return None


def _asked(subject):
    """(label, Question) of each gradient that is said to be the true one."""
    for label, question in zip(gradient_names(subject), subject.questions(), strict=True):
        if question.x.numel() and not subject.declared(subject.names[question.i]):
            yield label, question


def is_nan(made):
    """Whether it is a NaN that departs."""
    return made.error is not None and made.error != made.error


def of_own(subject):
    """Whether a NaN comes out of a hand-written node that no NaN went into: what follows may be PyTorch's."""
    leaves, found = subject.leaves(), []
    outputs = subject.outputs(leaves)

    def watch(given, incoming):
        sound = all(g is None or g.isfinite().all() for g in incoming)
        found.append(sound and any(g is not None and g.isnan().any() for g in given))

    handles = [node.register_hook(watch) for node in own_nodes(outputs)]
    subject.backward(outputs, leaves)
    for handle in handles:
        handle.remove()
    return any(found)
