"""A whole model: where, going back from the loss, does a gradient first depart from its twin's?"""

from dataclasses import dataclass, field

import torch

from manualnn import conversion, nn
from manualnn.tools.checks.arguments import flat, mapped
from manualnn.tools.checks.complexes import cast, in_dtype, is_number, pairs
from manualnn.tools.checks.generators import generators_of, seeded
from manualnn.tools.checks.lines import raised
from manualnn.tools.checks.numeric import apart
from manualnn.tools.checks.report import FAILED, NOTE, PASSED, Line
from manualnn.tools.checks.tolerated import CONVERTED, REVERTED, ROUNDING, a_rounding
from manualnn.tools.copies import copied

NAME = "layer by layer"
CLOSE = 1e-9  # relative, in float64


@dataclass
class Call:
    """One call of one module: what went in and came out, and the gradients that came back to it."""

    name: str
    module: torch.nn.Module
    outputs: list = field(default_factory=list)
    d_inputs: dict = field(default_factory=dict)
    d_outputs: dict = field(default_factory=dict)


def layer_line(model, inputs, keywords, reference):
    """The line of a model with layers inside, the model to check on, its reference, and how that was made.

    A model that holds layers of ours is compared with itself reverted; any other one is converted, and
    compared with what it was. A single layer makes no line.
    """
    if not isinstance(reference, torch.nn.Module) and reference is not None:
        return [], model, reference, ""
    model, by = copied(model), ""
    if reference is None:
        model, reference, by = twins(model)
        if reference is None:
            return [], model, None, ""
    if next(reference.children(), None) is None:
        return [], model, reference, by
    try:
        made = compare(model, reference, inputs, keywords, ROUNDING if by else CLOSE)
    except Exception as error:
        made = raised(NAME, error)
    return [made], model, reference, by


def twins(model):
    """(the model of our layers, the same of torch.nn's, how one was made of the other), or (model, None, "")
    if no layer can be swapped."""
    if any(type(m).__module__.startswith(nn.__name__) for m in model.modules()):
        return model, conversion.revert(copied(model)), REVERTED
    before = [type(m) for m in model.modules()]
    ours = conversion.convert(copied(model))
    if before == [type(m) for m in ours.modules()]:
        return model, None, ""
    return ours, model, CONVERTED


def compare(ours, theirs, inputs, keywords=None, close=CLOSE):
    """One forward and one backward of each in float64, with the same random numbers.

    close: what they may differ by; beyond 1e-9 it is noted which layer is the first to do so.
    """
    made = _first_departure(ours, theirs, inputs, keywords, CLOSE)
    if made.status == PASSED or close == CLOSE or not made.error < close:
        return made
    further = _first_departure(ours, theirs, inputs, keywords, close)
    if further.status == FAILED:
        return further
    return Line(NAME, NOTE, made.error, made.where, f"{made.detail}: {a_rounding(made.error)}")


def _first_departure(ours, theirs, inputs, keywords, close):
    ours, theirs = (cast(copied(m), torch.float64) for m in (ours, theirs))
    theirs.load_state_dict(ours.state_dict())
    names = _names(ours)
    mine, other = (_record(model, names, inputs, keywords or {}) for model in (ours, theirs))
    if [call.name for call in mine] != [call.name for call in other]:
        return Line(
            NAME, FAILED, detail="the two models do not call the same layers in the same order"
        )
    worst = 0.0
    for call, twin in zip(mine, other, strict=True):
        for i, (a, b) in enumerate(zip(call.outputs, twin.outputs, strict=True)):
            error, _ = _departure(a, b)
            if error > close:
                what = f"output {i} of {_called(call)}"
                message = f"going forward, {_called(call)} is the first layer whose output departs"
                return Line(NAME, FAILED, error, what, message)
    for call, twin in zip(reversed(mine), reversed(other), strict=True):
        looked_at = [("output", call.d_outputs, twin.d_outputs)]
        if not any(name.startswith(f"{call.name}." if call.name else "") for name in names if name):
            # Of a container the input's gradient is that of the layers in it, which come later here.
            looked_at.append(("input", call.d_inputs, twin.d_inputs))
        for where, of, its in looked_at:
            for i in sorted(of.keys() | its.keys()):
                error, values = _departure(of.get(i), its.get(i))
                worst = max(worst, error if error <= close else 0.0)
                if error > close:
                    return _line(call, f"the gradient of its {where}", error, values)
        for name, p in call.module.named_parameters(recurse=False):
            q = dict(twin.module.named_parameters(recurse=False))[name]
            error, values = _departure(p.grad, q.grad)
            worst = max(worst, error if error <= close else 0.0)
            if error > close:
                return _line(call, f"the gradient of its {name}", error, values)
    others = {**dict(theirs.named_parameters())}
    for name, p in ours.named_parameters():
        error, values = _departure(p.grad, others[name].grad)
        worst = max(worst, error if error <= close else 0.0)
        if error > close:
            return Line(NAME, FAILED, error, f"the gradient of {name}: {values}")
    count = len(mine)
    return Line(NAME, PASSED, worst, detail=f"{count} calls of layers, {len(others)} parameters")


def _line(call, what, error, values):
    message = f"going back from the loss, {_called(call)} is the first layer whose gradient departs"
    return Line(NAME, FAILED, error, f"{what}: {values}", message)


def _called(call):
    return f"{call.name or 'the model itself'} ({type(call.module).__name__})"


def _departure(mine, other):
    """The relative error, and the two values where it is largest, in words."""
    if mine is None and other is None:
        return 0.0, ""
    mine = torch.zeros_like(other) if mine is None else mine
    other = torch.zeros_like(mine) if other is None else other
    if mine.shape != other.shape:
        return float("inf"), f"shape {tuple(mine.shape)}, not {tuple(other.shape)}"
    mine, other = pairs(mine), pairs(other)
    error, at = apart(mine, other)
    if at is None:
        return 0.0, ""
    return error, f"{mine.reshape(-1)[at].item():.9g}, not {other.reshape(-1)[at].item():.9g}"


def _names(model):
    """Modules to watch. What an MLP holds is left alone: hooked, it would not run as one node."""
    inside = {id(m) for mlp in model.modules() if isinstance(mlp, nn.MLP) for m in mlp.children()}
    return [name for name, m in model.named_modules() if id(m) not in inside]


def _record(model, names, inputs, keywords):
    """The calls of the watched modules in forward order, filled with the gradients."""
    calls, modules, handles, open_calls = [], dict(model.named_modules()), [], []

    def enter(name):
        def hook(module, arguments):
            call = Call(name, module)
            open_calls.append(call)
            for i, t in enumerate(flat(arguments)):
                if t.requires_grad:
                    t.register_hook(lambda g, i=i: call.d_inputs.__setitem__(i, g.clone()))

        return hook

    def leave(module, arguments, output):
        call = open_calls.pop()
        calls.append(call)
        for i, t in enumerate(flat(output)):
            call.outputs.append(t.detach().clone())
            if t.requires_grad:
                t.register_hook(lambda g, i=i: call.d_outputs.__setitem__(i, g.clone()))

    for name in names:
        handles.append(modules[name].register_forward_pre_hook(enter(name)))
        handles.append(modules[name].register_forward_hook(leave))

    def leaf(_, t):
        if isinstance(t, torch.Tensor):
            return in_dtype(t.detach(), torch.float64).requires_grad_() if is_number(t) else t
        return mapped(t, leaf)

    inputs = [leaf(None, t) for t in inputs]
    keywords = {name: leaf(None, t) for name, t in keywords.items()}
    seeded(0, generators_of([model, inputs, keywords]))
    outputs = [t for t in flat(model(*inputs, **keywords)) if t.requires_grad]
    generator = torch.Generator().manual_seed(1)
    cotangents = [torch.randn(t.shape, generator=generator, dtype=t.dtype) for t in outputs]
    torch.autograd.backward(outputs, cotangents)
    for handle in handles:
        handle.remove()
    return calls
