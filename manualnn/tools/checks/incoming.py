"""The incoming gradient: in every layout, of every size, of one output alone; and left as it was."""

from itertools import product

import torch

from manualnn.tools.checks.derivatives import DIFFERENCES
from manualnn.tools.checks.graph import own_nodes
from manualnn.tools.checks.lines import gradient_names, line, raised
from manualnn.tools.checks.numeric import apart
from manualnn.tools.checks.report import FAILED, PASSED, Line
from manualnn.tools.checks.subject import same
from manualnn.tools.checks.tolerated import mixes

TWICE = "backward twice"


@line(TWICE, after=("backward draws no random numbers",))
def backward_twice(subject):
    """Backward writes to nothing that others read, and with retain_graph the second time is as the first."""
    made = _twice(subject, subject.dtype)
    if made.status == FAILED or subject.dtype is not torch.float64:
        return made
    try:  # what copies in float64, x.float() for one, is the tensor itself there
        single = _twice(subject, torch.float32)
    except Exception:  # refused: another line says so
        return made
    return single if single.status == FAILED else made


def _twice(subject, dtype):
    labels = gradient_names(subject)
    leaves = subject.leaves(dtype)
    made = [t * 1 for t in leaves]
    outputs = subject.outputs(made)
    cotangents = subject.cotangents(outputs)
    written = set()
    watched = [
        *zip((name for name in subject.names), made, strict=True),
        *((f"output {k}", o) for k, o in enumerate(outputs)),
        *(("the incoming gradient", c) for c in cotangents),
    ]
    before = [t.detach().clone() for _, t in watched]
    handles = [handle for node in own_nodes(outputs) for handle in _watch(node, written)]
    first = subject.backward(outputs, leaves, cotangents, retain_graph=True)
    first = [g if g is None else g.clone() for g in first]
    for handle in handles:
        handle.remove()
    for (what, t), was in zip(watched, before, strict=True):
        if not same(t.detach(), was):
            written.add(what)
    if written:
        what = "the incoming gradient" if "the incoming gradient" in written else min(written)
        message = (
            f"backward changes what was saved for it or what it was given: it overwrites {what}; whoever else "
            "reads it (a residual, the layer before) gets a wrong gradient"
        )
        return Line(TWICE, FAILED, where=what, detail=message)
    second = subject.backward(outputs, leaves, cotangents)
    message = "backward changes what was saved for it: the second time is not as the first"
    return subject.compared(TWICE, second, first, labels, 0, message=message)


def _watch(node, written):
    """Hooks that compare a node's incoming gradients before and after."""
    before = []

    def enter(grads):
        before[:] = [g if g is None else g.clone() for g in grads]

    def leave(_, grads):
        for g, was in zip(grads, before, strict=True):
            if g is not None and not same(g, was):
                written.add("the incoming gradient")

    return [node.register_prehook(enter), node.register_hook(leave)]


@line("incoming gradient", after=("backward draws no random numbers", TWICE, DIFFERENCES))
def incoming(subject):
    """The same numbers laid out otherwise give the same; backward is linear in them, and NaN stays NaN."""
    name, labels = "incoming gradient", gradient_names(subject)
    with torch.no_grad():
        outputs = subject.outputs(subject.inputs)
    plain = subject.cotangents(outputs)
    true = _gradients(subject, plain)
    exact = subject.tolerance(1e-10)
    if not subject.random:  # of a random one, the order of memory may be the order of drawing
        for how, lay in LAYOUTS.items():
            flat = "expanded" in how
            values = [lay(c) for c in plain]
            dense = [v.contiguous().clone() for v in values]
            try:
                ours = _gradients(subject, values)
            except Exception as error:
                said = raised(name, error).detail
                message = (
                    f"an incoming gradient that is {how} is refused (assumed contiguous?): {said}"
                )
                return Line(name, FAILED, where=how, detail=message)
            theirs = _gradients(subject, dense) if flat else true
            message = (
                f"wrong for an incoming gradient that is {how}: its layout in memory (strides, offset) "
                "is assumed contiguous"
            )
            # Beside gradients of an ordinary size: a norm's of sum() are 0, and the rest is rounding.
            made = subject.compared(
                name, beside(ours, true), beside(theirs, true), labels, exact, message=message
            )
            if made.status == FAILED:
                return made
    for made in (_linear(subject, plain, true, exact), _nan(subject, plain, true)):
        if made is not None:
            return made
    return Line(name, PASSED)


def _linear(subject, plain, true, exact):
    """The failed line where the gradient is not proportional to the incoming one, or not additive."""
    name, labels = "incoming gradient", gradient_names(subject)
    keep = [
        k
        for k, (g, n) in enumerate(zip(true, subject.names, strict=True))
        if g is not None and g.isfinite().all() and not subject.declared(n)
    ]
    if not keep:
        return None
    ours, names = [true[k] for k in keep], [labels[k] for k in keep]
    power = 20 if subject.precision.exact < 1e-6 else 10
    sizes: tuple[tuple[float, str], ...]
    sizes = ((0.0, "zero"), (10.0**-power, "tiny"), (10.0**power, "huge"), (-1.0, "negative"))
    if mixes(subject.outputs(subject.leaves())):
        sizes = sizes[:1] + sizes[3:]
    for size, called in (*sizes, (2.0, "")):
        scaled = _gradients(subject, [size * c for c in plain])
        back = [_or_zero(scaled[k], true[k]) / (size or 1.0) for k in keep]
        what = f"an incoming gradient that is {called}" if called else "twice the incoming gradient"
        message = f"not linear in the incoming gradient: wrong for {what}"
        if not called and all(apart(2 * b, g)[0] < 1e-6 for b, g in zip(back, ours, strict=True)):
            message = "not multiplied by the incoming gradient"
        expected = [0 * g for g in ours] if not size else ours
        made = subject.compared(
            name,
            beside(back, ours),
            beside(expected, ours),
            names,
            max(exact, 1e-9),
            message=message,
        )
        if made.status == FAILED:
            return made
    message = (
        "not linear in the incoming gradient: that of a sum is not the sum of those of its parts"
    )
    for other in (
        [c.flip(0) if c.dim() else c * 3 for c in plain],
        [_one_hot(c) for c in plain],
        [torch.ones_like(c) for c in plain],
    ):
        one = _gradients(subject, other)
        both = _gradients(subject, [a + b for a, b in zip(plain, other, strict=True)])
        total = [_or_zero(one[k], true[k]) + true[k] for k in keep]
        both = [_or_zero(both[k], true[k]) for k in keep]
        # What cancels in the sum of two is rounding beside what each of them is.
        made = subject.compared(
            name, beside(both, ours), beside(total, ours), names, max(exact, 1e-9), message=message
        )
        if made.status == FAILED:
            return made
    return None


def _one_hot(c):
    """Of a loss that reads one element."""
    return (torch.arange(c.numel()).view(c.shape) == c.numel() // 2).to(c)


def _nan(subject, plain, true):
    """The failed line where a NaN that comes in does not come out of what depends on it."""
    name, labels = "incoming gradient", gradient_names(subject)
    outputs = [k for k, c in enumerate(plain) if c.numel() and subject.differentiable[k]]
    for k, value in product(outputs, (float("nan"), float("inf"))):
        spot = plain[k].numel() // 2
        bumped, marked = ([c.clone() for c in plain] for _ in range(2))
        bumped[k].view(-1)[spot] += 1.0
        marked[k].view(-1)[spot] = value
        moved, ours = _gradients(subject, bumped), _gradients(subject, marked)
        for i, (label, g, m, o) in enumerate(zip(labels, true, moved, ours, strict=True)):
            if (
                g is None
                or m is None
                or not g.numel()
                or not g.isfinite().all()
                or subject.declared(subject.names[i])
            ):
                continue
            o = torch.zeros_like(g) if o is None else o
            depends = (m - g).abs() > 1e-6 * g.abs().max().clamp(min=1e-30)
            if (depends & o.isfinite()).any():
                message = (
                    f"a NaN (or an infinity) in the incoming gradient disappears from {label}: a diverging "
                    "network would look healthy"
                )
                return Line(name, FAILED, where=f"incoming gradient {value:g}", detail=message)
    return None


def _gradients(subject, cotangents):
    # A backward that writes to what it is given must not spoil what comes after.
    return subject.gradients(subject.leaves(), cotangents=cotangents)


def _or_zero(g, like):
    return torch.zeros_like(like) if g is None else g


def beside(grads, true):
    """The gradients added to others: what is rounding beside those counts as such."""
    return [g if g is None or t is None else t + g for g, t in zip(grads, true, strict=True)]


@line("each output alone", after=("backward draws no random numbers", TWICE, DIFFERENCES))
def each_output(subject):
    """Where a loss reads one output of several: the parts add up to the whole."""
    name, labels = "each output alone", gradient_names(subject)
    with torch.no_grad():
        outputs = subject.outputs(subject.inputs)
    plain = subject.cotangents(outputs)
    flowing = [k for k, flows in enumerate(subject.differentiable) if flows]
    if len(flowing) < 2:
        return None
    true, total = _gradients(subject, [c.clone() for c in plain]), None
    for k in flowing:
        alone = [c.clone() if j == k else None for j, c in enumerate(plain)]
        zeros = [c.clone() if j == k else torch.zeros_like(c) for j, c in enumerate(plain)]
        try:
            part = _gradients(subject, alone)
        except Exception as error:
            said = raised(name, error).detail
            message = (
                f"backward raises where output {k} is used alone, and the others are None: {said}"
            )
            return Line(name, FAILED, where=f"output {k}", detail=message)
        message = (
            f"where output {k} is used alone the gradient is not that of the others being zero"
        )
        made = subject.compared(
            name,
            part,
            _gradients(subject, zeros),
            labels,
            subject.tolerance(1e-10),
            message=message,
        )
        if made.status == FAILED:
            return made
        total = part if total is None else [_plus(a, b) for a, b in zip(total, part, strict=True)]
    message = "the gradients of the outputs, each alone, do not add up to that of all"
    return subject.compared(name, total, true, labels, subject.tolerance(1e-9), message=message)


def _plus(a, b):
    return b if a is None else a if b is None else a + b


def _turned(t):
    """Transposed in memory; of a vector, every other element of a longer one."""
    if t.dim() < 2:
        return _spread(t)
    return t.mT.contiguous().mT


def _spread(t):
    return torch.stack((t, torch.full_like(t, 7.0)), -1)[..., 0]


def _narrow(t):
    """A part of something larger that does not begin where it begins: what cat sends back."""
    if not t.dim():
        return torch.stack((torch.full_like(t, 7.0), t))[1]
    if t.dim() == 1:
        return torch.cat((torch.full_like(t, 7.0), t, torch.full_like(t, 7.0)))[len(t) : 2 * len(t)]
    whole = torch.cat((torch.full_like(t, 7.0), t, torch.full_like(t, 7.0)), 1)
    return whole[:, t.shape[1] : 2 * t.shape[1]]


def _rows_expanded(t):
    return t[:1].expand_as(t) if t.dim() and len(t) else t


def _expanded(t):
    return torch.ones((), dtype=t.dtype).expand(t.shape)


def _channels_last(t):
    return t.contiguous(memory_format=torch.channels_last) if t.dim() == 4 else t


LAYOUTS = {
    "transposed in memory": _turned,
    "a narrow part of a larger tensor": _narrow,
    "every other element of a larger tensor": _spread,
    "expanded, as that of sum() is": _expanded,
    "expanded along the rows, as that of sum(0) is": _rows_expanded,
    "channels_last": _channels_last,
}
