"""What is a rounding of PyTorch's, and no fault of what is checked: reported as a note.

PyTorch's own kernels hold some constants in float32, in float64 too (the 1/6 of hardsigmoid), and lose digits
of their own. And a twin that check has made of somebody's module may depart from it: that is the twin's.
"""

import torch

from manualnn.tools.checks.graph import nodes
from manualnn.tools.checks.report import FAILED, NOTE, UNSUPPORTED, Line

ROUNDING = 1e-6  # relative, in float64: ten times what a float32 is rounded by
AGAINST_A_TWIN = (
    "forward against the reference",
    "backward against the reference",
    "kinks",
    "NaN and infinity",
    "empty batch",
)
AT_AN_EDGE = ("NaN and infinity", "empty batch")
OF_NUMBERS = ("bfloat16", "float16", "large values")  # where a formula may be a bad one
# Of these backward computes with the incoming gradient beside the input: digits are lost where one is huge.
MIX = ("LinalgMatrixExpBackward0",)
# Of these the second derivative is wrong (gradgradcheck says so, too).
ONCE = ("WeightNormInterfaceBackward0",)
CONVERTED, REVERTED = "converted", "reverted"  # what check itself made a twin by


def tolerated(subject, made):
    """The line, or a note where what differs is a rounding of PyTorch's, or what a twin does at an edge."""
    if made.status != FAILED:
        return made
    if made.name in OF_NUMBERS and subject.of_pytorch:
        return _pytorchs(made)
    if made.name == "second backward" and _loses_a_second_derivative(subject):
        return _pytorchs(made)
    if subject.made == CONVERTED and made.name in AT_AN_EDGE:
        return _note(made, f"manualnn's own layers in its place depart there: {made.detail}")
    if made.error is None:
        return made
    rounding = made.error < ROUNDING and subject.dtype is torch.float64
    if rounding and subject.made and made.name in AGAINST_A_TWIN:
        return _note(made, a_rounding(made.error))
    if subject.made == CONVERTED and made.name in AGAINST_A_TWIN:
        message = "manualnn's own layers in its place give something else"
        message = f"{message}: {made.detail}" if made.detail else message
        return Line(made.name, FAILED, made.error, made.where, message)
    if rounding and not subject.moves() and of_pytorch_alone(subject.outputs(subject.leaves())):
        return _note(made, f"a rounding of PyTorch's own ({made.error:.0e}): {made.detail}")
    return made


def _loses_a_second_derivative(subject):
    """Whether a node of PyTorch's does so, and nothing but PyTorch's own is in the graph, or in the twin's."""
    functions = [None, subject.reference] if subject.made == CONVERTED else [None]
    for function in functions:
        outputs = subject.outputs(subject.leaves(), function)
        if of_pytorch_alone(outputs) and any(node.name() in ONCE for node in nodes(outputs)):
            return True
    return False


def _pytorchs(made):
    message = f"PyTorch's own: {made.detail}"
    return Line(made.name, UNSUPPORTED, made.error, made.where, message, refused_by="PyTorch")


def a_rounding(error):
    return f"apart by {error:.0e}: a rounding (PyTorch holds some constants in float32, in float64 too)"


def of_pytorch_alone(outputs):
    """Whether nothing in the graph of the outputs was written by hand, as far as anyone can see into it."""
    hand_written = torch.autograd.function.BackwardCFunction
    return not any(isinstance(node, hand_written) for node in nodes(outputs))


def mixes(outputs):
    """Whether a backward of PyTorch's own is linear only in an incoming gradient of a usual size."""
    return any(node.name() in MIX for node in nodes(outputs))


def _note(made, message):
    return Line(made.name, NOTE, made.error, made.where, message.removesuffix(": "))
