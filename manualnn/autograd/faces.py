"""The faces of a Function: what PyTorch calls in each of its regimes, derived from what an op states.

A Function states its mathematics, or is written in PyTorch's official form (``forward``, ``setup_context``,
``backward``, ``jvp``). Three callers want three different things of it:

* **eager** autograd wants speed: the ``setup_context`` style binds a signature in every call,
  the older ``forward(ctx, ...)`` style does not;
* **torch.func** (vmap, grad, jacrev, ...) accepts the ``setup_context`` style only;
* **torch.compile** refuses a Function that defines ``jvp``.

So a class has three faces: a ``ctx``-style one for eager mode, a full one for
torch.func, and one without ``jvp`` for the compiler; ``apply`` picks; the two latter are made when they are
first asked for. This file alone knows how PyTorch
dispatches: when the kernel serves, what is saved for forward mode, which gradient is of which input, what is
not given out, and that backward sees the dtypes that forward saw. What PyTorch's rule for vmap gets wrong is
mended in ``transforms``.
"""

import inspect
from collections import namedtuple
from collections.abc import Callable
from typing import Any

import torch
from torch.autograd.function import FunctionMeta

from manualnn._torch import (
    any_autocast,
    called_by_graphs,
    constant_to_dynamo,
    forward_level,
    is_alias_of,
    is_jit_tracing,
    never_traced,
    transforms_active,
    without_torch_function,
)
from manualnn.autograd.interceptor import active
from manualnn.autograd.moment import first_order, forward_mode
from manualnn.autograd.spare import LARGE, alone, held, may_be_written_over
from manualnn.autograd.subclasses import with_subclass
from manualnn.autograd.transforms import (
    functional_backward,
    functional_forward,
    functional_jvp,
    functional_setup,
    whole,
)

is_dynamo_compiling = torch.compiler.is_dynamo_compiling
has_torch_function = torch.overrides.has_torch_function
OFFICIAL = {"setup_context", "backward", "jvp"}  # PyTorch's form, beside forward
_SEVERAL = (tuple, list)
_namedtuple: Any = namedtuple  # mypy takes none whose fields are known only when it runs


# --- the call ---------------------------------------------------------------------------------


def apply(cls: Any, *inputs: Any) -> Any:
    """The output of the op ``cls``: its face for the moment, called."""
    if is_dynamo_compiling():  # a call that does nothing in eager mode
        return _traced(cls, inputs)
    if is_jit_tracing() and cls.__module__.startswith("manualnn.ops."):
        # Of torch's operations, each with its derivative: a trace that holds them can be saved.
        return _given_out(cls, cls.forward(*inputs))
    if transforms_active():
        return _given_out(cls, cls._functional.apply(*map(whole, inputs)))
    recorder = active()
    if recorder is not None:
        whole_output = recorder.run_function(
            cls._recorded_apply, inputs, cls.recompute, cls.__name__
        )
        return _given_out(cls, whole_output)
    if has_torch_function(inputs):
        with without_torch_function():
            outputs = cls._eager_apply(*inputs)
        return with_subclass(outputs, inputs)
    return cls._eager_apply(*inputs)


def _traced(cls, inputs):
    """``apply`` as Dynamo (torch.compile, strict export) traces it; PyTorch's faults there are mended here.

    * Where no gradient is needed, torch before 2.15 hands ``ctx`` to a ``forward(x, *options)`` or a
      ``forward(x, scale=1.0)`` as its first input ("AutogradFunctionContextVariable ... 'proxy'").
    * A tensor given twice gets silently a wrong gradient before 2.13, and is refused since ("duplicate tensor
      input"). A view of it is another tensor to Dynamo.
    * Inside torch.func a Function is forgotten, or refused under vmap, and its forward differentiated in place
      of ``backward`` and ``jvp``: another number where they state a surrogate, or forward detaches. There the
      Function is not looked into: the graph calls it.
    """
    _make_faces(cls)
    if transforms_active():
        _allow_in_graph(cls)
        return _given_out(cls, cls._functional.apply(*inputs))
    if not (torch.is_grad_enabled() and _any_requires_grad(inputs)):
        return _given_out(cls, cls.forward(*inputs))
    apart = []
    for i in inputs:
        again = isinstance(i, torch.Tensor) and any(i is other for other in apart)
        apart.append(i.view_as(i) if again else i)
    return _given_out(cls, cls._compiled.apply(*apart))


def _given_out(cls, output):
    """Without what exists for backward alone, which the eager face does not give out."""
    if cls._given is None:
        return output
    if not isinstance(output, tuple):
        raise TypeError(no_tuple(cls))
    return output[: cls._given]


def _any_requires_grad(inputs):  # not options.any_requires_grad: Dynamo traces it
    return any(isinstance(i, torch.Tensor) and i.requires_grad for i in inputs)


@constant_to_dynamo
def _make_faces(cls):
    """Before Dynamo looks at them: it does not trace how a class attribute is made."""
    cls._functional, cls._compiled  # noqa: B018


@constant_to_dynamo
def _allow_in_graph(cls):
    face = cls._functional
    for name in (OFFICIAL | {"forward"}) & {*vars(face)}:
        # While the graph runs Dynamo would compile each by itself, and lose what is marked on ctx.
        method = never_traced(getattr(face, name))
        if method is not None:
            setattr(face, name, static(method))
    called_by_graphs(face)


# --- the classes ----------------------------------------------------------------------------------


def derive(cls):
    """Gives a class that states its mathematics PyTorch's official form, and from it the faces."""
    named = by_input(cls.forward)
    for name, method in _official_form(cls, named).items():
        setattr(cls, "_tangent" if name == "jvp" else name, static(method))
    complete = cls.gives_intermediates
    cls._given = None if complete else cls.outputs
    _set_faces(cls, *_eager_of_stated(cls, named, complete))
    if cls.recompute is not None and cls.outputs is not None and not complete:
        # A recipe may be made of what exists for backward alone.
        recorded = eager_face(cls, *_eager_of_stated(cls, named, complete=True))
        cls._recorded_apply = super(torch.autograd.Function, recorded).apply


def adopt(cls):
    """Makes the faces of a class in PyTorch's official form."""
    cls._given = None
    _set_faces(cls, *_eager_of_official(cls.forward, cls.setup_context, cls.backward))


def _set_faces(cls, eager_forward, eager_backward):
    cls._eager = eager_face(cls, eager_forward, eager_backward)
    # torch.autograd.Function.apply without what it does for torch.func, which has its own face.
    cls._eager_apply = cls._recorded_apply = super(torch.autograd.Function, cls._eager).apply
    cls._functional = Later(cls, "_functional", _functional_face)
    cls._compiled = Later(cls, "_compiled", _compiled_face)


class Later:
    """An attribute of the class ``cls`` that is made when it is first asked for: most are in few programs."""

    def __init__(self, cls: Any, name: str, make: Callable[[Any], Any]) -> None:
        self.cls, self.name, self.make = cls, name, make

    def __get__(self, instance: object, owner: Any) -> Any:
        made = self.make(self.cls)
        setattr(self.cls, self.name, made)
        return made


def _functional_face(cls):
    face = _face(
        cls,
        forward=functional_forward(cls.forward),
        setup_context=functional_setup(cls.setup_context),
        backward=functional_backward(_carefully(cls.backward)),
        generate_vmap_rule=True,
    )
    if hasattr(cls, "_tangent"):
        face.jvp = static(functional_jvp(static(cls._tangent).__func__))
    return face


def _compiled_face(cls):
    forward, setup_context, backward = cls.forward, cls.setup_context, cls.backward
    return _face(
        cls, tangent=False, forward=forward, setup_context=setup_context, backward=backward
    )


def eager_face(cls, forward, backward):
    """A face of the op ``cls`` for eager mode, of a ``forward`` and ``backward`` that take ctx."""
    face = _face(cls, forward=forward, backward=backward)
    face.op = cls
    # The node calls backward itself, not torch's method that looks it up and then calls it.
    face._backward_cls.apply = backward
    return face


def _face(cls: Any, generate_vmap_rule=False, tangent=True, **methods: Any) -> Any:
    """An autograd.Function of the same name (its node is ``<name>Backward``), with ``jvp``."""
    if tangent and hasattr(cls, "_tangent"):
        methods["jvp"] = cls._tangent
    namespace = {name: static(method) for name, method in methods.items()}
    namespace |= {"__module__": cls.__module__, "__doc__": cls.__doc__}
    namespace |= {"generate_vmap_rule": generate_vmap_rule}
    return FunctionMeta(cls.__name__, (torch.autograd.Function,), namespace)


def static(method):
    """``method`` as a staticmethod, whether or not it already is one."""
    return method if isinstance(method, staticmethod) else staticmethod(method)


# --- their methods --------------------------------------------------------------------------------


def _official_form(cls, named):
    """The methods of PyTorch's official form, for torch.func and torch.compile, by name."""
    _refuse_other_inputs(cls)
    save, gradients, outputs = cls.save or nothing, cls.gradients, cls.outputs
    kernel = cls.kernel_gradients
    if cls.layout is not None:
        kernel = None  # it reads how tensors lie in memory, which there nobody knows

    def setup_context(ctx, inputs, output):
        ctx.beside = 0
        if outputs is not None:
            if not isinstance(output, tuple):
                raise TypeError(no_tuple(cls))
            ctx.beside = len(output) - len(output[:outputs])
            ctx.mark_non_differentiable(*output[outputs:])
        ctx.set_materialize_grads(False)
        forward = forward_mode()
        needs = named((True,) * len(inputs)) if forward else named(ctx.needs_input_grad)
        tensors, ctx.options = save(needs, output, *inputs)
        if not (isinstance(tensors, _SEVERAL) and isinstance(ctx.options, _SEVERAL)):
            raise TypeError(no_pair(cls))
        ctx.save_for_backward(*tensors)
        if forward:
            ctx.save_for_forward(*tensors)

    def backward(ctx, *grads):
        grads, needs = grads[:outputs], ctx.needs_input_grad
        if all(d is None for d in grads):
            return (None,) * len(needs)
        if outputs is not None and len(grads) < outputs:
            grads = (*grads, *(None,) * (outputs - len(grads)))
        by_kernel = kernel is not None and (cls.kernel_has_derivatives or first_order())
        back = kernel if by_kernel else gradients
        found = back(named(needs), *grads, *ctx.saved_tensors, *ctx.options)
        return an_input_each(found, len(needs))

    methods = {"setup_context": setup_context, "backward": backward}
    if cls.tangent is not None:
        methods["jvp"] = _jvp_of(cls, named)
    return methods


def _jvp_of(cls, named):
    tangent = cls.tangent

    def jvp(ctx, *steps):
        found = tangent(named(steps), *ctx.saved_tensors, *ctx.options)
        if not ctx.beside:
            return found
        found = found if isinstance(found, tuple) else (found,)
        return *found, *(None for _ in range(ctx.beside))

    return jvp


def _eager_of_stated(cls, named, complete):
    """``forward`` and ``backward`` in the older style, for eager mode, with as few calls as can be.

    complete: with the outputs that exist for backward alone.
    """
    run = cls.kernel_forward or cls.forward
    save, gradients, layout, seen = cls.save or nothing, cls.gradients, cls.layout, cls.seen
    kernel = cls.kernel_gradients or gradients
    may_write = takes_over(kernel)
    outputs = None if complete else cls.outputs
    marked, several = cls.outputs if complete else None, cls.outputs is not None
    needs_of = _ByNeeds(named)
    enabled, transforms, level = torch.is_grad_enabled, transforms_active, forward_level
    always = cls.kernel_has_derivatives and cls.kernel_gradients is not None

    def forward(ctx, *inputs):
        ctx.set_materialize_grads(False)
        output = run(*inputs)
        if several and not isinstance(output, tuple):
            raise TypeError(no_tuple(cls))
        needs = ctx.needs_input_grad
        in_forward_mode = level() >= 0
        needs = needs_of[(True,) * len(needs) if in_forward_mode else needs]
        tensors, ctx.options = save(needs, output, *inputs)
        if not (isinstance(tensors, _SEVERAL) and isinstance(ctx.options, _SEVERAL)):
            raise TypeError(no_pair(cls))
        if layout is not None:
            ctx.layout = layout(needs, output, *inputs)
        if seen is not None:
            ctx.save_for_backward(*tensors, *seen(needs, *inputs))
        else:
            ctx.save_for_backward(*tensors)
        if in_forward_mode:
            ctx.save_for_forward(*tensors)
            ctx.beside = 0 if marked is None else len(output[marked:])
        if marked is not None:
            ctx.mark_non_differentiable(*output[marked:])
        return output if outputs is None else output[:outputs]

    def compute(ctx, *grads):
        needs, saved = ctx.needs_input_grad, ctx.saved_tensors
        formula = enabled() or level() >= 0 or transforms()
        if seen is not None:
            saved = as_seen(saved, formula)
        if formula and not always:
            found = gradients(needs_of[needs], *grads, *saved, *ctx.options)
        elif layout is None:
            found = kernel(needs_of[needs], *grads, *saved, *ctx.options)
        else:
            found = kernel(needs_of[needs], *grads, *saved, *ctx.options, *ctx.layout)
        return found if len(needs) == 1 else an_input_each(found, len(needs))

    carefully = answering(compute, cls.outputs)
    single, beside = cls.outputs in (None, 1), cls.outputs == 1

    def backward(ctx, d, *more):
        """The same, for what is nearly always the case, with few calls: a small op costs no more than they."""
        # Beside the one output, what else is given out has no gradient.
        if (more and not beside) or not single or d is None or d._is_zerotensor() or any_autocast():
            return carefully(ctx, d, *more)
        if enabled() or level() >= 0 or transforms():
            return compute(ctx, d)
        needs, saved = ctx.needs_input_grad, ctx.saved_tensors
        if seen is not None:
            saved = as_seen(saved, False)
        if may_write and d.numel() >= LARGE and may_be_written_over(d) and held(d) == alone():
            laid_out = () if layout is None else ctx.layout
            found = kernel(needs_of[needs], d, *saved, *ctx.options, *laid_out, over=d)
        elif layout is None:
            found = kernel(needs_of[needs], d, *saved, *ctx.options)
        else:
            found = kernel(needs_of[needs], d, *saved, *ctx.options, *ctx.layout)
        return found if len(needs) == 1 else an_input_each(found, len(needs))

    return forward, backward


def takes_over(kernel: Callable[..., Any] | None) -> bool:
    """Whether a function can write over the gradient that it is given: its last argument is ``over=None``."""
    code, defaults = getattr(kernel, "__code__", None), getattr(kernel, "__defaults__", None)
    named = {**(getattr(kernel, "__kwdefaults__", None) or {})}
    if code is not None and defaults and code.co_argcount:
        named[code.co_varnames[code.co_argcount - 1]] = defaults[-1]
    return "over" in named and named["over"] is None


def _eager_of_official(forward, setup_context, backward):
    """The eager face of an op in PyTorch's official form."""

    def run(ctx, *inputs):
        output = forward(*inputs)
        setup_context(ctx, inputs, output)
        return output

    return run, _carefully(backward)


def _carefully(backward):
    """``backward`` of gradients that have memory, in the dtypes that forward saw."""

    def run(ctx, *grads):
        return outside_autocast(backward, ctx, with_memory(grads))

    return run


def answering(compute, outputs=None):
    """``compute``, as the backward that PyTorch calls. It may take ``over``, as ``kernel_gradients`` may.

    Where nothing flows back it answers None, as torch's own nodes do: an optimizer leaves a parameter alone
    that has no gradient, and decays one whose gradient is zero.

    outputs: how many of the op's outputs are given out, at most; gradients of others are passed over.
    """

    may_write = takes_over(compute)

    def backward(ctx, d, *more):
        if not more and outputs is None:  # the same, with few calls
            if d is not None and not d._is_zerotensor() and not any_autocast():
                if (
                    may_write
                    and d.numel() >= LARGE
                    and may_be_written_over(d)
                    and held(d) == alone()
                ):
                    return compute(ctx, d, over=d)
                return compute(ctx, d)
        grads = (d, *more)
        if outputs is not None and len(grads) != outputs:
            grads = (*grads[:outputs], *(None,) * (outputs - len(grads)))
        if all(d is None for d in grads):
            return (None,) * len(ctx.needs_input_grad)
        return outside_autocast(compute, ctx, with_memory(grads))

    return backward


def with_memory(grads):
    """Gradients with memory, so that what is computed from one may be written over.

    A zero without memory comes from PyTorch's second derivative of abs, say.
    """
    if any(d is not None and d._is_zerotensor() for d in grads):
        return tuple(d if d is None else d.clone() for d in grads)
    return grads


def outside_autocast(compute, ctx, grads):
    """``compute`` in the dtypes that forward saw, even when backward is called inside an autocast region.

    A backward called under autocast would otherwise multiply float32 tensors in bfloat16.
    """
    if not any_autocast():
        return compute(ctx, *grads)
    device = next((g.device.type for g in grads if g is not None), "cpu")
    with torch.autocast(device, enabled=False):
        return compute(ctx, *grads)


def no_tuple(cls):
    return (
        f"{cls.__name__} states outputs = {cls.outputs}, but its forward returns no tuple: the output, then "
        "what exists for backward alone"
    )


def no_pair(cls):
    return f"{cls.__name__}.save should return two tuples: of tensors, then of plain values, (x, w), ()"


def _refuse_other_inputs(cls):
    """``save`` names the inputs as forward does: under another name it would be given another one in silence.

    Raises:
        TypeError: it does not.
    """
    if cls.save is None:
        return
    try:
        inputs = [*inspect.signature(cls.forward).parameters.values()]
        named = [*inspect.signature(cls.save).parameters.values()][2:]
    except ValueError:  # a built-in function, which does not say what its inputs are called
        return
    single = [[p.name for p in ps if p.kind is not p.VAR_POSITIONAL] for ps in (inputs, named)]
    of_forward, of_save = single
    if len(of_forward) < len(inputs):  # what forward takes as *rest save may name one by one
        of_save, named = of_save[: len(of_forward)], named[: len(of_forward)]
    if of_save != of_forward[: len(of_save)] or len(of_save) == len(named) < len(of_forward):
        takes = ", ".join(inspect.signature(cls.save).parameters)
        should = ", ".join(["needs", "output", *(p.name for p in inputs)])
        raise TypeError(
            f"{cls.__name__}.save takes ({takes}), should take ({should}): what forward returned, a tuple "
            "where that is one, then its inputs under its names"
        )


def nothing(needs, output, *inputs):
    """What an op saves that does not say what it saves."""
    return (), ()


def an_input_each(found, count):
    """The gradients of the first inputs, and None for each of the others."""
    if not isinstance(found, tuple):
        return (found, *(None,) * (count - 1))
    return found if len(found) == count else (*found, *(None,) * (count - len(found)))


def by_input(forward):
    """A function of a tuple with a value an input, to one in which each bears the name of its input.

    What ``*rest`` takes is a tuple under that name.
    """
    try:
        parameters = inspect.signature(forward).parameters.values()
    except ValueError:  # a built-in function, which does not say what its inputs are called
        return lambda values: values
    rest = [p.name for p in parameters if p.kind is p.VAR_POSITIONAL]
    names = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    plain, names = len(names), names + rest
    # Made at the first call: to make it takes longer than the rest of its class.
    made: list[Any] = []

    def by_name(values):
        if not made:
            made.append(_namedtuple("ByInput", names, rename=True, defaults=[None] * len(names)))
        if not rest:
            return made[0](*values)
        return made[0](*values[:plain], *(None,) * (plain - len(values)), values[plain:])

    return by_name


def options_of(node):
    """The options with which the op of a node was called, by the names that its ``gradients`` gives them."""
    names = [*inspect.signature(type(node)._forward_cls.op.gradients).parameters]
    return dict(zip(names[len(names) - len(node.options) :], node.options, strict=True))


class _ByNeeds(dict):
    """What ``named`` makes of ``ctx.needs_input_grad``, made once for each."""

    def __init__(self, named):
        super().__init__()
        self.named = named

    def __missing__(self, needs):
        found = self[needs] = self.named(needs)
        return found


def as_seen(saved, formula):
    """What was saved, with the numbers that forward saw where these were saved beside it: ``Function.seen``.

    Where it is differentiated again, its history is that of the tensor.
    """
    half = len(saved) // 2
    if not formula:
        return [t if n is None else n for t, n in zip(saved[:half], saved[half:], strict=True)]
    found = []
    for t, numbers in zip(saved[:half], saved[half:], strict=True):
        same = numbers is None or is_alias_of(t, numbers)
        found.append(t if same else _Seen.apply(t, numbers))
    return found


class _Seen(torch.autograd.Function):
    """The numbers of the second, differentiated as the first."""

    @staticmethod
    def forward(ctx, t, numbers):
        return numbers.view_as(numbers)

    @staticmethod
    def backward(ctx, dt):
        return dt, None
