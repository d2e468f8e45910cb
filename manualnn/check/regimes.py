"""Does it work wherever PyTorch users run a layer: vmap, per-sample gradients, compile, autocast, other
dtypes and layouts?"""

import torch

from manualnn.check.lines import compared, gradient_names, line, output_names
from manualnn.check.report import FAILED, NOTE, PASSED, Line
from manualnn.check.subject import flat


@line("vmap")
def vmap(subject):
    """Over stacked inputs, against one after the other."""
    if subject.random:
        return None
    stacks = [torch.stack((t, _flipped(t))) for t in subject.inputs]
    ours = torch.func.vmap(lambda *ts: subject.outputs(ts))(*stacks)
    single = [subject.outputs([s[k] for s in stacks]) for k in range(2)]
    theirs = [torch.stack(pair) for pair in zip(*single, strict=True)]
    return compared("vmap", ours, theirs, output_names(ours))


@line("per-sample gradients")
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
    return compared(name, ours, theirs, gradient_names(subject), 1e-7)


@line("compile", raising="it cannot be compiled in one graph")
def compiled(subject):
    """torch.compile(fullgraph=True), forward and backward, against eager."""
    name = "compile"
    torch.compiler.reset()
    try:
        function = torch.compile(
            lambda *ts: tuple(flat(subject.function(*ts))), fullgraph=True, backend="aot_eager"
        )
        leaves = subject.leaves()
        ours = subject.outputs(leaves, function)
        grads = subject.backward(ours, leaves)
        if subject.random:  # a compiler draws numbers of its own
            return Line(name, PASSED)
        leaves = subject.leaves()
        theirs = subject.outputs(leaves)
        true = subject.backward(theirs, leaves)
        labels = [*output_names(ours), *gradient_names(subject)]
        return compared(name, [*ours, *grads], [*theirs, *true], labels, 1e-9)
    finally:
        torch.compiler.reset()


@line("autocast")
def autocast(subject):
    """Under CPU autocast to bfloat16: the reference's output dtype, gradients in the inputs' dtype."""
    name, problems, worst = "autocast", [], 0.0
    exact = subject.leaves(torch.float32)
    if subject.reference is not None:
        with torch.autocast("cpu", torch.bfloat16):
            theirs = subject.outputs(exact, subject.reference)
    full = subject.gradients(subject.leaves(torch.float32))
    for inside in (False, True):  # the backward, too, may be called in the region
        leaves = subject.leaves(torch.float32)
        with torch.autocast("cpu", torch.bfloat16):
            ours = subject.outputs(leaves)
            grads = subject.backward(ours, leaves) if inside else None
        try:
            grads = grads if inside else subject.backward(ours, leaves)
        except RuntimeError as error:
            if "dtype" not in str(error):
                raise
            told = (
                f"backward mixes dtypes ({error}): forward computed in bfloat16 and kept float32. "
                "Cast the inputs before apply, see manualnn.autocast"
            )
            return Line(name, FAILED, detail=told)
        for label, leaf, g in zip(gradient_names(subject), leaves, grads, strict=True):
            if g is not None and g.dtype is not leaf.dtype:
                problems.append(f"{label} is {g.dtype}, the input {leaf.dtype}")
        if subject.reference is not None:
            for label, mine, other in zip(output_names(ours), ours, theirs, strict=True):
                if mine.dtype is not other.dtype:
                    problems.append(f"{label} is {mine.dtype}, the reference's {other.dtype}")
        if not subject.random:
            made = compared(name, grads, full, gradient_names(subject), 0.1)
            worst = max(worst, made.error)
            if made.status == FAILED:
                return Line(name, FAILED, made.error, made.where, "wrong under autocast")
    if problems:
        return Line(name, FAILED, detail="wrong dtype under autocast: " + "; ".join(problems[:3]))
    return Line(name, PASSED, worst)


@line("float32")
def single_precision(subject):
    """Value and gradients in float32: of that dtype, and right to its precision."""
    return _in(subject, torch.float32, "float32", 1e-4)


@line("bfloat16")
def bfloat16(subject):
    """Value and gradients in bfloat16: of that dtype, and right to its precision."""
    return _in(subject, torch.bfloat16, "bfloat16", 0.1)


def _in(subject, dtype, name, tolerance):
    if subject.random:
        tolerance = float("inf")  # other numbers may be drawn in another dtype
    rounded = [t.to(dtype).double() for t in subject.inputs]
    exact = subject.leaves(inputs=rounded)
    true_out = subject.outputs(exact)
    true = subject.backward(true_out, exact)
    leaves = subject.leaves(dtype, inputs=rounded)
    outputs = subject.outputs(leaves)
    dtypes = {t.dtype for t in outputs}
    if dtypes != {dtype} and not _reference_agrees(subject, dtype, outputs):
        told = f"the output of {dtype} inputs is {', '.join(sorted(map(str, dtypes)))}"
        return Line(name, FAILED, detail=told)
    grads = subject.backward(outputs, leaves)
    labels = [*output_names(outputs), *gradient_names(subject)]
    told = f"right in float64 only: the error in {name} is far above its rounding"
    made = compared(name, [*outputs, *grads], [*true_out, *true], labels, tolerance, told=told)
    if made.status == FAILED and subject.reference is not None:
        # No worse than the reference is good enough.
        leaves = subject.leaves(dtype, inputs=rounded)
        other = subject.outputs(leaves, subject.reference)
        others = [*other, *subject.backward(other, leaves)]
        theirs = compared(name, others, [*true_out, *true], labels, tolerance)
        if made.error <= 1.5 * theirs.error:
            return Line(
                name, PASSED, made.error, detail=f"the reference's error is {theirs.error:.1e}"
            )
    return made


def _reference_agrees(subject, dtype, outputs):
    if subject.reference is None:
        return False
    theirs = subject.outputs(subject.leaves(dtype), subject.reference)
    return [t.dtype for t in outputs] == [t.dtype for t in theirs]


@line("non-contiguous input", raising="wrong for strided input")
def strided(subject):
    """Transposed in memory, every other element, and an expanded incoming gradient."""
    name = "non-contiguous input"
    if subject.random:
        return None  # the order of memory may be the order of drawing
    true = subject.gradients(subject.leaves())
    labels = gradient_names(subject)
    for how in (_turned, _spread):
        leaves = [how(t).detach().requires_grad_() for t in subject.inputs]
        made = compared(
            name, subject.gradients(leaves), true, labels, told="wrong for strided input"
        )
        if made.status == FAILED:
            return made
    results = []
    for expanded in (True, False):
        leaves = subject.leaves()
        outputs = [o for o in subject.outputs(leaves) if o.requires_grad]
        ones = [torch.ones((), dtype=o.dtype).expand(o.shape) for o in outputs]
        ones = ones if expanded else [one.contiguous() for one in ones]
        grads = torch.autograd.grad(outputs, leaves, ones, allow_unused=True)
        # Beside gradients of an ordinary size: a norm's of sum() are 0, and all that is there is rounding.
        results.append(
            [g if g is None or t is None else t + g for g, t in zip(grads, true, strict=True)]
        )
    told = "wrong for an incoming gradient that is expanded, as that of sum() is"
    return compared(name, *results, labels, told=told)


@line("empty batch")
def empty(subject):
    """No examples: outputs without elements, gradients of the parameters that are zero."""
    name = "empty batch"
    if not subject.batched:
        return None
    inputs = [t[:0] if i in subject.batched else t for i, t in enumerate(subject.inputs)]

    def attempt(function=None):
        leaves = subject.leaves(inputs=inputs)
        outputs = subject.outputs(leaves, function)
        return [*outputs, *subject.backward(outputs, leaves)]

    theirs = None
    if subject.reference is not None:
        try:
            theirs = attempt(subject.reference)
        except Exception as error:  # whatever it is: the reference is a person's, and may refuse
            return Line(
                name, NOTE, detail=f"the reference refuses it: {type(error).__name__}: {error}"
            )
    try:
        ours = attempt()
    except Exception as error:  # likewise; what it says is told
        said = f"{type(error).__name__}: {error}"
        if theirs is None:  # nobody says that it has to accept one
            return Line(name, NOTE, detail=f"refused: {said}")
        return Line(
            name, FAILED, detail=f"an empty batch is refused, which the reference takes: {said}"
        )
    if theirs is None:
        return Line(name, PASSED)
    labels = [*output_names(ours[: len(ours) - len(inputs)]), *gradient_names(subject)]
    return compared(name, ours, theirs, labels)


def _flipped(t):
    """Other numbers of the same range: a scaled probability might be none."""
    return t.flip(0) if t.dim() else t


def _turned(t):
    return t.mT.contiguous().mT if t.dim() >= 2 else t.clone()


def _spread(t):
    return torch.stack((t, torch.full_like(t, 7.0)), -1)[..., 0]
