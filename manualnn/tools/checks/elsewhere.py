"""At other inputs than those that were given: another batch, other shapes, other values.

A backward is often right for the sizes that it was tried at: below a block's width, in two dimensions, on
the near side of a threshold. What forward refuses, or gives no finite number for, is not asked about.
"""

import time

import torch

from manualnn.tools.checks.departures import departs, departs_tied, is_nan, of_own
from manualnn.tools.checks.derivatives import DIFFERENCES, SECONDS
from manualnn.tools.checks.graph import own_nodes
from manualnn.tools.checks.incoming import TWICE
from manualnn.tools.checks.initial import INITIAL
from manualnn.tools.checks.labels import passed_along, places, read_by
from manualnn.tools.checks.limits import limited
from manualnn.tools.checks.lines import line, raised
from manualnn.tools.checks.numeric import are_knots, largest
from manualnn.tools.checks.report import FAILED, NOTE, PASSED, Line
from manualnn.tools.checks.targets import is_order, of_length, resized, rises

EARLIER = (
    DIFFERENCES,
    INITIAL,
    "backward draws no random numbers",
    TWICE,
    "calls side by side",
)
LONG = 67  # rows: more than one block of 16, 32 or 64, and no multiple of any
LONGER = 1031  # columns: more than a row that one block of threads takes
NUMBERS = 20_000  # in a batch of so many rows, at the most
NOTHING = 1e6  # an error beyond it: the true number is 0
SIZES = (1e-3, 8.0, 30.0)  # of the largest number: near zero, and beyond usual thresholds


@line("batch of another size", after=EARLIER)
def other_batch(subject):
    """A batch of one, of an odd number more, and of more than a block, against differences."""
    name = "batch of another size"
    if not subject.batched or subject.batch is None or subject.alongside is None or subject.wrong:
        return None
    tried, counts, note = [], [1, 2 * subject.batch + 1], None
    asked = bool(own_nodes(subject.outputs(subject.leaves())))
    row = sum(subject.inputs[i].numel() for i in subject.batched) / max(1, subject.batch)
    if row * LONG <= NUMBERS and subject.batch < LONG:
        counts.append(LONG)
    for count in counts:
        if count == subject.batch or not subject.batch:
            continue
        inputs = [
            _graded(of_length(t, count)) if i in subject.batched else t
            for i, t in enumerate(subject.inputs)
        ]
        made = None
        for ordered in (False, True):  # an order of the rows is one only as long as none repeats
            try:
                sizes = count, subject.batch, ordered
                function = subject.alongside(lambda t, sizes=sizes: resized(t, *sizes))
                other = subject.at(inputs, function=function, reference=None)
            except Exception:  # the sizes belong together in some other way
                break
            what = "for a batch of one" if count == 1 else f"for a batch of {count}"
            if not _follow(subject, other, count):
                made = _squeezed(name, subject, other, count)
                break
            try:
                made = departs(name, other, what) if asked else None
            except Exception as error:
                said = raised(name, error)
                message = f"backward raises {what}, which forward takes: {said.detail}"
                made = Line(name, said.status, where=what, detail=message)
            if made is not None and (belong_together(subject) or _is_written_over(subject, made)):
                made = Line(name, NOTE, detail=f"{made.detail}, with integers that may not be so")
            if made is not None and made.status == FAILED and not _takes_others(subject, counts):
                message = f"{made.detail}, where what is no variable stays as long as it is"
                made = Line(name, NOTE, detail=message)
            if made is None:
                tried.append(count)
                break
        if made is not None and made.status == NOTE:
            note = made
        elif made is not None:
            return made
    if note is not None:
        return note
    *some, last = map(str, tried or [0])
    detail = f"of {', '.join(some)} and {last}" if some else f"of {last}"
    return Line(name, PASSED, detail=detail) if tried else None


def _takes_others(subject, counts):
    """Whether forward takes any of the batches but one of one: that may be spread over what stays as it is."""
    for count in counts:
        if count in (1, subject.batch):
            continue
        inputs = [
            of_length(t, count) if i in subject.batched else t for i, t in enumerate(subject.inputs)
        ]
        function = subject.alongside(lambda t, n=count: resized(t, n, subject.batch))
        if _runs(subject, inputs, function):
            return True
    return False


def _runs(subject, inputs, function):
    try:
        with torch.no_grad(), limited():
            subject.near(inputs, function).outputs(inputs)
        return True
    except Exception:  # the sizes belong together
        return False


def _is_written_over(subject, made):
    """Whether integers say where something is read or written, and to one place twice, or out of the batch.

    Then backward may raise, and where forward writes twice the last counts: another slope is 0.
    """
    return places(subject) and (made.error is None or made.error > NOTHING)


def belong_together(subject):
    """Whether integers or masks were given of which others of another length may be none of their kind.

    No integer comes twice, and in a longer batch each does; or there are two of them, and one may be made of
    the other: an order and its inverse, lengths and a mask.
    """
    given = [t for t in passed_along(subject) if t.numel() > 1]
    apart = (t for t in given if t.dtype is not torch.bool and t.unique().numel() == t.numel())
    return len(given) > 1 or any(read_by(t, subject.inputs) is None for t in apart)


def _follow(subject, other, count):
    """Whether each output that is as long as the batch is so again: else something was broadcast."""
    with torch.no_grad():
        pairs = zip(subject.outputs(subject.inputs), other.outputs(other.inputs), strict=False)
    return all(
        not a.dim() or len(a) != subject.batch or (b.dim() and len(b) == count) for a, b in pairs
    )


def _squeezed(name, subject, other, count):
    """The failed line where a batch of one loses the dimension of the batch; else its size goes another way."""
    with torch.no_grad():
        pairs = [
            (a, b)
            for a, b in zip(
                subject.outputs(subject.inputs), other.outputs(other.inputs), strict=False
            )
            if a.dim() and len(a) == subject.batch != 1
        ]
    if count != 1 or not pairs or not all(b.shape == a.shape[1:] for a, b in pairs):
        return None
    message = "for a batch of one the output has no dimension for the batch: squeeze() without a dimension?"
    try:
        made = departs(name, other, "")
    except Exception as error:
        message = (
            f"{message} backward raises there, which forward takes: {raised(name, error).detail}"
        )
        return Line(name, FAILED, where="for a batch of one", detail=message)
    if made is not None:
        return Line(name, FAILED, made.error, made.where, f"{message} {made.detail} there")
    # Of a function it may be the very purpose.
    is_module = subject.arguments is not None and not subject.of_pytorch
    return Line(name, FAILED if is_module else NOTE, where="for a batch of one", detail=message)


def _graded(t):
    """Rows that differ by a little, however many: repeated ones would be ties."""
    return t * (1 - min(0.003, 0.2 / max(1, len(t))) * _steps(t))


@line("other shapes", after=(*EARLIER, "batch of another size"))
def other_shapes(subject):
    """With a dimension more, with one less, with a last dimension of another length, with odd sizes."""
    name = "other shapes"
    if not _is_asked(subject) or subject.arguments == 0 or not subject.inputs[0].dim():
        return None
    if subject.broadcasts:  # what stays as it is would go on fitting, and be something else
        return None

    def batches(change):
        return [change(t) if i in subject.batched else t for i, t in enumerate(subject.inputs)]

    first = subject.inputs[0]
    length = first.shape[-1]

    def with_labels(change):
        """What goes with the batch changes as the batch does: labels, masks, ids."""
        if subject.alongside is None:
            return [subject.function]
        together = lambda t: change(t) if t.dim() and len(t) == len(first) else t  # noqa: E731
        return [subject.alongside(together)]

    tried = [
        (
            "where the input has a dimension more",
            batches(lambda t: torch.stack((t, 0.9 * t))),
            with_labels(lambda t: torch.stack((t, t))),
        ),
        (
            "where the input has a dimension less",
            batches(lambda t: t[0] if len(t) else t),
            with_labels(lambda t: t[0] if len(t) else t),
        ),
    ]
    # Of a function that takes no other batch something of its own has its length: less would be spread over it.
    if subject.alongside is not None and not _takes_others(subject, (2 * len(first) + 1,)):
        del tried[1]
    rows = first.numel() // max(1, length)
    fits = False
    for other in (length + 3, 1, *(long for long in (LONG, LONGER) if rows * long <= NUMBERS)):
        columns = [
            _longer(t, -1, other) if t.dim() and t.shape[-1] == length else t
            for t in subject.inputs
        ]
        functions = with_labels(lambda t, n=other: _columns(t, length, n))
        fits = fits or (other > 1 and any(_runs(subject, columns, f) for f in functions))
        if fits:  # a single column alone would be spread over something that stays as it is
            tried.append((f"where the last dimension is {other} long", columns, functions))
    for dim in range(1, first.dim() - 1):
        size = first.shape[dim]
        long = LONG if first.numel() // max(1, size) * LONG <= NUMBERS else 17
        functions = [
            function
            for axis in (dim, dim - 1)  # labels have no channels
            for function in with_labels(lambda t, a=axis, m=size, n=long: _columns(t, m, n, a))
        ]
        what = f"where dimension {dim} is {long} long"
        tried.append((what, _along(subject, dim, long), functions))
    for dim in range(first.dim() - 1):  # as many queries as before, and more keys
        apart = _along(subject, dim, first.shape[dim] + 3)
        if len(subject.inputs) > 1 and any(map(_other_shape, apart[1:], subject.inputs[1:])):
            what = f"where dimension {dim} of {subject.names[0]} is shorter than that of the others"
            tried.append((what, [first, *apart[1:]], [subject.function]))
    odd = [_odd(t) if t.shape == first.shape else t for t in subject.inputs]
    functions = [subject.function]
    if subject.alongside is not None:
        functions = [
            subject.alongside(lambda t, o=ordered: _odd_as(t, first.shape, o))
            for ordered in (False, True)
        ]
    tried.append(("where all sizes are odd, and the number of elements too", odd, functions))
    return _tried(name, subject, tried)


def _along(subject, dim, length):
    """The inputs with that dimension of another length, where they share it with the first one."""
    first = subject.inputs[0]
    return [
        _longer(t, dim, length)
        if t.dim() == first.dim() and t.shape[dim] == first.shape[dim]
        else t
        for t in subject.inputs
    ]


def _other_shape(a, b):
    return a.shape != b.shape


def _longer(t, dim, length):
    made = _graded(of_length(t.movedim(dim, 0), length)).movedim(0, dim).contiguous()
    return made.sort().values if are_knots(t) else made


def _columns(t, length, count, axis=-1):
    """Labels, a mask or ids of ``length`` columns, or what else stands on that axis, with ``count`` of them."""
    if axis == 0 or t.dim() <= max(1, axis) or t.shape[axis] != length:
        return t
    return of_length(t.movedim(axis, 0), count).movedim(0, axis)


def _odd(t):
    for dim, length in enumerate(t.shape):
        t = _longer(t, dim, length | 1)
    return t


def _odd_as(t, shape, ordered):
    """Labels, a mask or ids of a batch, of which every size that the input has becomes odd as well."""
    if not t.dim() or not shape or len(t) != shape[0]:
        return t
    if ordered and t.dim() == 1 and (is_order(t) or rises(t)):
        return resized(t, len(t) | 1, len(t), ordered)
    for dim, length in enumerate(t.shape):
        if length in shape:
            t = of_length(t.movedim(dim, 0), length | 1).movedim(0, dim)
    return t


@line("other values", after=(*EARLIER, "large values", "NaN and infinity"))
def other_values(subject):
    """Near zero, far out, and with zeros among the numbers."""
    name = "other values"
    if not _is_asked(subject) or subject.surrogate or subject.rounded:
        return None
    count = len(subject.inputs) if subject.arguments is None else subject.arguments
    tried = []
    for which in [[0], list(range(count))] if count > 1 else [[0]]:

        def changed(change, which=which):
            return [change(t) if i in which else t for i, t in enumerate(subject.inputs)]

        for size in SIZES:
            what = f"at values {'down' if size < 1 else 'up'} to {size:g}"
            tried.append((what, changed(lambda t, s=size: t * (s / (largest(t) or 1.0)))))
        tried.append(("where some of the numbers are 0", changed(_with_zeros)))
        tried.append(("at numbers of the other sign", changed(torch.neg)))
    if subject.inputs[0].dim() > 1:
        inputs = [t + 400.0 * _steps(t) if i == 0 else t for i, t in enumerate(subject.inputs)]
        tried.append(("where the rows lie far apart", inputs))
    return _tried(name, subject, [(*each, [subject.function]) for each in tried])


@line(
    "rows of zeros and ties", after=(*EARLIER, "large values", "NaN and infinity", "other values")
)
def degenerate(subject):
    """Where a whole row is zero, as for padding, no NaN; where numbers are equal, their slope together.

    Elsewhere than along that a function has kinks there, and no slope to compare with.
    """
    name = "rows of zeros and ties"
    if not _is_asked(subject) or subject.surrogate:
        return None
    count = len(subject.inputs) if subject.arguments is None else subject.arguments
    chosen = [[0], list(range(count))] if count > 1 else [[0]]
    tried = [
        (
            what,
            [change(t) if i in which else t for i, t in enumerate(subject.inputs)],
            [subject.function],
            ask,
        )
        for what, change, ask in (
            ("where a whole row is 0", _with_a_row_of_zeros, _becomes_nan),
            ("where neighbours are equal", _in_pairs, departs_tied),
        )
        for which in chosen
    ]
    return _tried(name, subject, tried)


@line("indices that repeat", after=(*EARLIER, "other values"))
def repeated_indices(subject):
    """With integers that come twice, where none did: what is scattered must be added, not written over."""
    name = "indices that repeat"
    if subject.repeat is None or not _is_asked(subject):
        return None
    found = subject.repeat()
    if found is None:
        return None
    function, promised = found
    where = "where two of the integers are the same: there it is a sum"
    try:
        with limited():
            other = subject.at(subject.inputs, function=function, reference=None)
            with torch.no_grad():
                if not all(o.isfinite().all() for o in other.outputs(other.inputs)):
                    return None
        made = departs(name, other, where)
    except Exception:  # they may be what must not repeat: lengths, offsets
        return None
    if made is None:
        return Line(name, PASSED)
    overwritten = made.error > NOTHING  # forward writes to one place twice, and the last counts
    if promised or overwritten:
        return Line(name, NOTE, detail=f"another gradient {where}")
    return made


def _is_asked(subject):
    """Whether there is something written by hand, and nothing known to be wrong with it."""
    message = any(line.name in EARLIER and line.status == FAILED for line in subject.lines)
    if message or subject.wrong or subject.complex:
        return False
    return bool(own_nodes(subject.outputs(subject.leaves())))


def _steps(t):
    """0, 1, 2, ... along the first dimension."""
    return torch.arange(len(t)).view(-1, *[1] * (t.dim() - 1)).to(t)


def _with_zeros(t):
    """Every third number is zero; a single one may be a scale, and stays."""
    if t.numel() == 1:
        return t
    return t * (torch.arange(t.numel()) % 3 != 0).view(t.shape).to(t)


def _with_a_row_of_zeros(t):
    """The first row is zero, as it is for padding; a vector is one row."""
    return t * (_steps(t) > 0).to(t) if t.dim() > 1 else torch.zeros_like(t)


def _in_pairs(t):
    """Each number twice in every dimension: ties within a row and among rows, in any window."""
    for dim, length in enumerate(t.shape):
        t = t.index_select(dim, torch.arange(length) // 2 * 2)
    return t


def _becomes_nan(name, subject, where):
    """As departs_tied, of a NaN alone: a norm has kinks there, and bends more than differences see."""
    made = departs_tied(name, subject, where)
    return made if made is not None and is_nan(made) else None


def _tried(name, subject, variations):
    """The line for (what it is, inputs, functions) that are tried one by one, as long as there is time.

    Of several functions one that is right will do: each has labels of another kind. A fourth one asks whether
    they depart, in the place of ``departs``.
    """
    seen, begun, noted = 0, time.perf_counter(), ""
    for what, inputs, functions, *ask in variations:
        if time.perf_counter() - begun > 2 * SECONDS:
            break
        made, right = None, False
        for function in functions:
            try:
                other = subject.near(inputs, function)
                with torch.no_grad():
                    if not all(o.isfinite().all() for o in other.outputs(inputs)):
                        continue
            except Exception:  # forward does not take them
                continue
            try:
                found = (*ask, departs)[0](name, other, what)
                theirs = found is not None and is_nan(found) and not of_own(other)
            except Exception as error:  # no number is better than a wrong one
                noted = noted or f"refused by backward {what}: {raised(name, error).detail}"
                continue
            if theirs:
                noted = noted or f"{found.detail}, as PyTorch has it"
                found = None
            made, right = made or found, found is None
            if right:
                break
        if made is not None and not right:
            return made
        seen += right
    if noted:
        return Line(name, NOTE, detail=noted)
    return Line(name, PASSED) if seen else None
