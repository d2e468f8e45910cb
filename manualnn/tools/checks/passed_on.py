"""Inputs that PyTorch itself counts as no variables: labels of a loss, though they are floating."""

from manualnn.tools.checks.lines import line
from manualnn.tools.checks.report import NOTE, Line

REFUSED = "is not differentiable with respect to argument"


@line("passed on")
def passed_on(subject):
    """What is not differentiated although it is floating, because PyTorch refuses it."""
    if not subject.passed_on:
        return None
    name, why = subject.passed_on
    message = f"{name} is not differentiated ({why}); to say so: not_variables=({name!r},)"
    return Line("passed on", NOTE, detail=message)


def with_one_passed_on(make, names, error):
    """What ``make`` makes where one more of these inputs is no variable, the last one that will do, or None.

    make: (names that are no variables) -> Subject; error: what it raised without any.
    """
    said = " ".join(str(error).split())
    if REFUSED not in said:
        return None
    for name in reversed(names):
        try:
            subject = make((name,))
        except Exception:  # it is another one
            continue
        subject.passed_on = name, said.partition(": ")[2][:120] or said[:120]
        return subject
    return None
