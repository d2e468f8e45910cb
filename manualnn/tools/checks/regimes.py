"""Does it work wherever PyTorch users run a layer: vmap, per-sample gradients, compile, other layouts?"""

from math import prod

import torch

from manualnn.tools.checks.arguments import flat
from manualnn.tools.checks.incoming import TWICE, _channels_last, _narrow, _spread, _turned
from manualnn.tools.checks.lines import gradient_names, line, output_names
from manualnn.tools.checks.raisers import in_a_function
from manualnn.tools.checks.report import FAILED, PASSED, UNSUPPORTED, Line
from manualnn.tools.checks.subject import real

EARLIER = (
    "backward draws no random numbers",
    TWICE,
    "inputs are left as they were",
    "calls side by side",
)


@line("vmap", regime="it cannot be vmapped", after=EARLIER)
def vmap(subject):
    """Over stacked inputs, the stack at every dimension, each input alone, and back through it."""
    if subject.random:
        return None
    name, count = "vmap", len(subject.inputs)
    exact = subject.tolerance(1e-10)
    deepest = max(t.dim() for t in subject.inputs)
    together = [tuple(min(d, t.dim()) for t in subject.inputs) for d in range(deepest + 1)]
    alone = [tuple(0 if i == j else None for j in range(count)) for i in range(min(count, 4))]
    last = [tuple(-1 if i == j else None for j in range(count)) for i in range(min(count, 2))]
    for k, dims in enumerate([*together, *(alone + last if count > 1 else last)]):
        stacks = [
            t if d is None else torch.stack((t, _flipped(t)), d)
            for t, d in zip(subject.inputs, dims, strict=True)
        ]
        try:
            ours = torch.func.vmap(lambda *ts: subject.outputs(ts), in_dims=dims)(*stacks)
        except Exception as error:
            if k == 0:
                raise
            text = " ".join(str(error).split())[:160]
            message = (
                f"vmap works with every input batched at 0, and not with in_dims={dims}: {text}"
            )
            if not in_a_function(error):  # what PyTorch's own operations cannot do is no fault
                raise RuntimeError(message) from error
            return Line(name, FAILED, where=f"in_dims={dims}", detail=message)
        single = [
            subject.outputs(
                [s if d is None else s.select(d, k) for s, d in zip(stacks, dims, strict=True)]
            )
            for k in range(2)
        ]
        theirs = [torch.stack(pair) for pair in zip(*single, strict=True)]
        message = f"wrong under vmap with in_dims={dims}"
        made = subject.compared(name, ours, theirs, output_names(ours), exact, message=message)
        if made.status == FAILED:
            return made
    return _back_through_vmap(subject) or Line(name, PASSED, made.error)


def _back_through_vmap(subject):
    """The failed line where what flows back through a vmapped call is not what flows back in a loop."""
    leaves = [torch.stack((t, _flipped(t))).detach().requires_grad_() for t in subject.inputs]
    outputs = torch.func.vmap(lambda *ts: subject.outputs(ts))(*leaves)
    looped = [subject.outputs([s[k] for s in leaves]) for k in range(2)]
    looped = [torch.stack(pair) for pair in zip(*looped, strict=True)]
    ours, theirs = (subject.backward(o, leaves) for o in (outputs, looped))
    message = "the gradient is lost or wrong under vmap: what flows back through a vmapped call"
    made = subject.compared(
        "vmap", ours, theirs, gradient_names(subject), subject.tolerance(1e-7), message=message
    )
    return made if made.status == FAILED else None


@line("per-sample gradients", regime="per-sample gradients are not there", after=(*EARLIER, "vmap"))
def per_sample(subject):
    """vmap(grad) with the first input in a stack and the others shared, against a loop."""
    if subject.random:
        return None
    name, everything = "per-sample gradients", tuple(range(len(subject.inputs)))
    with torch.no_grad():
        cotangents = subject.cotangents(subject.outputs(subject.inputs))

    def loss(*tensors):
        outputs = subject.outputs(tensors)
        return sum((c * o).sum() for c, o in zip(cotangents, outputs, strict=True))

    gradient = torch.func.grad(loss, argnums=everything)
    first, *rest = subject.inputs
    stack = torch.stack((first, _flipped(first), first))
    ours = torch.func.vmap(gradient, in_dims=(0, *(None for _ in rest)))(stack, *rest)
    singles = [subject.gradients(subject.leaves(inputs=[x, *rest])) for x in stack]
    theirs = []
    for k, parts in enumerate(zip(*singles, strict=True)):
        zero = torch.zeros_like(subject.inputs[k])
        theirs.append(torch.stack([zero if p is None else p for p in parts]))
    # A formula may stand here for a one-pass kernel whose constants are rounded.
    return subject.compared(name, ours, theirs, gradient_names(subject), subject.tolerance(1e-7))


@line("compile", regime="it cannot be compiled in one graph", after=EARLIER)
def compiled(subject):
    """torch.compile(fullgraph=True), forward and backward, against eager."""
    made = _compiled(subject, "aot_eager")
    in_place = made.status == FAILED and subject.writes and subject.is_function
    if in_place and _compiled(subject, "eager").status == PASSED:  # what Dynamo has traced is right
        message = "PyTorch's own: AOT autograd loses the backward of a Function that works in place"
        return Line("compile", UNSUPPORTED, made.error, made.where, message, refused_by="PyTorch")
    return made


def _compiled(subject, backend):
    torch.compiler.reset()
    try:
        function = torch.compile(
            lambda *ts: tuple(map(real, flat(subject.function(*ts)))),
            fullgraph=True,
            backend=backend,
        )
        leaves = subject.leaves()
        ours = subject.outputs(leaves, function)
        grads = subject.backward(ours, leaves)
        if subject.random:  # a compiler draws numbers of its own
            return Line("compile", PASSED)
        leaves = subject.leaves()
        theirs = subject.outputs(leaves)
        true = subject.backward(theirs, leaves)
        labels = [*output_names(ours), *gradient_names(subject)]
        exact = subject.tolerance(1e-9)
        return subject.compared("compile", [*ours, *grads], [*theirs, *true], labels, exact)
    finally:
        torch.compiler.reset()


@line("non-contiguous input", after=EARLIER)
def strided(subject):
    """Inputs transposed in memory, every other element, a part of something larger, channels_last."""
    name = "non-contiguous input"
    if subject.random:
        return None  # the order of memory may be the order of drawing
    count = len(subject.inputs) if subject.arguments is None else subject.arguments
    true = subject.gradients(subject.leaves())
    labels = gradient_names(subject)
    message = "wrong for strided input (its layout in memory is assumed contiguous)"
    for how in (_turned, _spread, _narrow, _channels_last):
        # A module's parameters are contiguous; of a strided γ PyTorch's own batch norm reads the wrong ones.
        leaves = [
            (how(t) if i < count else t.clone()).detach().requires_grad_()
            for i, t in enumerate(subject.inputs)
        ]
        try:
            ours = subject.gradients(leaves)
        except Exception as error:
            text = " ".join(str(error).split())[:160]
            refused = f"strided input is refused: {type(error).__name__}: {text}"
            return Line(name, FAILED, where=how.__name__[1:], detail=refused)
        made = subject.compared(name, ours, true, labels, subject.tolerance(1e-10), message=message)
        if made.status == FAILED:
            return made
    return Line(name, PASSED)


def _flipped(t):
    """Other numbers of the same range: a scaled probability might be none."""
    return t.flip(0) if t.dim() and prod(t.shape) else t
