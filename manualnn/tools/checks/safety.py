"""What is remembered between forward and backward: can it become stale, does it leak, what does it cost?"""

import gc
import statistics
import time
import weakref

import torch

from manualnn.tools.checks.graph import own_nodes
from manualnn.tools.checks.incoming import TWICE
from manualnn.tools.checks.lines import gradient_names, line, raised
from manualnn.tools.checks.report import FAILED, NOTE, PASSED, UNSUPPORTED, Line

BYTES = "bytes saved for backward"


@line("in-place safety", after=("inputs are left as they were", TWICE, "calls side by side"))
def in_place(subject):
    """An input or an output changed between forward and backward: right, or a RuntimeError."""
    name, labels = "in-place safety", gradient_names(subject)
    true = subject.gradients(subject.leaves())
    for changed in ("an input", "an output"):
        leaves = subject.leaves()
        made = [t * 1 for t in leaves]
        outputs = subject.outputs(made)
        if changed == "an input" and not own_nodes(outputs):
            continue  # PyTorch's own, which reads again what it is given in a checkpoint
        try:
            with torch.no_grad():
                for t in made if changed == "an input" else outputs:
                    t.add_(0.7)
        except RuntimeError:  # a view, or expanded: it may not be written to, and says so
            continue
        try:
            grads = subject.backward(outputs, leaves)
        except RuntimeError as error:
            if "modified by an inplace operation" in str(error):
                continue
            if "inplace" not in str(error) or _reference_takes_it(subject, changed):
                raise
            continue  # a view of the input: PyTorch refuses, and says so
        message = (
            f"{changed} was changed in place after forward and backward silently used the new values: "
            "a tensor is stored on ctx, not by save_for_backward"
        )
        result = subject.compared(
            name, grads, true, labels, subject.tolerance(1e-10), message=message
        )
        if result.status == FAILED:
            return result
    return Line(name, PASSED)


def _reference_takes_it(subject, changed):
    """Whether the reference goes on where an input or an output was changed in place."""
    if subject.reference is None:
        return False
    leaves = subject.leaves()
    made = [t * 1 for t in leaves]
    try:
        outputs = subject.outputs(made, subject.reference)
        with torch.no_grad():
            for t in made if changed == "an input" else outputs:
                t.add_(0.7)
        subject.backward(outputs, leaves)
    except RuntimeError:
        return False
    return True


@line("leaks", after=("inputs are left as they were", "calls side by side"))
def leaks(subject):
    """Everything saved is freed after backward, and when the output is dropped without one."""
    name = "leaks"
    for how in ("after backward", "when the output is dropped"):
        leaves = subject.leaves()
        gc.disable()  # what is freed is freed for want of references
        try:
            watched, own = [], False
            for _ in range(2):
                made = [t * 1 for t in leaves]
                outputs = subject.outputs(made)
                watched.append([weakref.ref(t) for t in (*made, *outputs)])
                own = own or bool(own_nodes(outputs))
                if how == "after backward":
                    subject.backward(outputs, leaves)
                del made, outputs
            before, last = (any(w() is not None for w in refs) for refs in watched)
            if before or last:
                gc.collect()
                alive = any(w() is not None for w in watched[0])
                message = f"a tensor is still alive {how}" + (
                    ": it is stored on ctx, in a cycle that nothing frees"
                    if alive
                    else ", until the garbage collector finds the cycle: it is stored on ctx"
                )
                if not own:  # PyTorch's own: an LSTM, say, holds its weights
                    message = "a tensor is still alive: PyTorch or the module holds it"
                elif not before:  # the next call replaces it
                    message = "a tensor of the last call is still alive: the module holds it"
                else:
                    return Line(name, FAILED, detail=message)
                return Line(name, NOTE, detail=message)
        finally:
            gc.enable()
    return Line(name, PASSED)


@line(BYTES)
def bytes_saved(subject):
    """Storages that the graph saves, each once, in float32; a figure, beside the reference's."""
    try:
        ours = saved(subject)
        theirs = None if subject.reference is None else saved(subject, subject.reference)
    except Exception as error:  # torch.func inside, say: it takes no hooks for what is saved
        return Line(BYTES, NOTE, detail=f"not counted: {raised(BYTES, error).detail}")
    if theirs is None:
        return Line(BYTES, NOTE, detail=f"{ours:,} bytes")
    text = f"{ours:,} bytes, the reference {theirs:,}"
    return Line(BYTES, NOTE, detail=text + (f": {ours / theirs:.2f}×" if theirs else ""))


@line("time, forward and backward")
def timing(subject):
    """Over the reference's, in interleaved rounds; a figure of this machine at this moment."""
    name = "time, forward and backward"
    ours = subject.leaves(_usual(subject))
    if subject.reference is None:
        return Line(name, NOTE, detail=f"{_seconds(subject, None, ours) * 1e6:.0f} µs")
    pairs = []
    for _ in range(9):
        mine = _seconds(subject, None, ours)
        pairs.append((mine, _seconds(subject, subject.reference, ours)))
    ratio = statistics.median(a / b for a, b in pairs)
    mine, other = (statistics.median(column) * 1e6 for column in zip(*pairs, strict=True))
    return Line(name, NOTE, detail=f"{mine:.0f} µs, the reference {other:.0f} µs: {ratio:.2f}×")


def _usual(subject):
    """The dtype that things are measured in: float32, where it takes it."""
    refused = any(s.name == "float32" and s.status == UNSUPPORTED for s in subject.lines)
    return subject.dtype if refused else torch.float32


def saved(subject, function=None):
    """Bytes of the storages that the outputs' graph saves. Attributes of ctx are not seen."""
    storages = {}

    def note(t):
        storages[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        outputs = subject.outputs(subject.leaves(_usual(subject)), function)
    del outputs
    return sum(storages.values())


def _seconds(subject, function, leaves, repeat=3):
    start = time.perf_counter()
    for _ in range(repeat):
        subject.gradients(leaves, function)
    return (time.perf_counter() - start) / repeat
