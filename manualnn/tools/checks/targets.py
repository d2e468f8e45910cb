"""From whatever a person points at to the Subject: a Function, a function, a module; in float64, or in float32
where nothing else is taken."""

import copy
import inspect
import math

import torch

from manualnn.autograd.activation import Activation
from manualnn.tools.checks.arguments import Arguments, NoSuchInput, mapped
from manualnn.tools.checks.attributes import Attributes
from manualnn.tools.checks.complexes import cast, in_dtype, is_number, of_pairs, pairs
from manualnn.tools.checks.generators import generators_of, seeded
from manualnn.tools.checks.passed_on import with_one_passed_on
from manualnn.tools.checks.subject import Subject
from manualnn.tools.copies import copied

PARAMETERS = {"w", "b", "weight", "bias", "gamma", "beta", "running_mean", "running_var"}

INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


class CannotRun(Exception):
    """The target raises with the inputs that it was given; the cause is the exception."""


def subject_of(target, inputs, keywords, reference, fixed, names, known):
    """The Subject; raises CannotRun where the target raises in float64 and in float32.

    Where PyTorch says that it does not differentiate one of the inputs, that one is passed on.
    fixed: names of inputs that are no variables; known: kinks, surrogate and seed.
    """

    def made(also=()):
        return _subject_of(target, inputs, keywords, reference, (*fixed, *also), names, known)

    try:
        return made()
    except CannotRun as error:
        called = names or signature_of(target)
        if isinstance(target, torch.nn.Module):
            called = [f"input {i}" for i in range(len(inputs))]
        subject = with_one_passed_on(made, [*called[: len(inputs)], *keywords], error)
        if subject is None:
            raise
        return subject


def _subject_of(target, inputs, keywords, reference, fixed, names, known):
    surrogate = known["surrogate"] or getattr(target, "surrogate", None)
    kinks = known["kinks"] if known["kinks"] is not None else getattr(target, "kinks", ())
    known = known | {"surrogate": surrogate, "kinks": tuple(kinks)}
    inputs = inputs or (() if keywords else examples(target))
    if not (callable(target) or is_function_class(target)):
        raise TypeError(
            "check() takes an autograd.Function, a function or a torch.nn.Module, "
            f"not {type(target).__name__}"
        )
    make = of_module if isinstance(target, torch.nn.Module) else of_function
    refused = half = None
    for dtype in (torch.float64, torch.float32):
        subject = None
        try:
            subject = make(target, inputs, keywords, reference, fixed, names, known, dtype)
            subject.gradients(subject.leaves())
        except (NothingToDifferentiate, NoSuchInput):
            raise
        except Exception as error:  # what is checked is a person's code, which may raise anything
            if dtype is torch.float64:
                refused, half = error, subject
            continue
        if refused is not None:
            subject.refused = f"{type(refused).__name__}: {' '.join(str(refused).split())[:160]}"
        return subject
    if half is not None:  # forward runs, and backward raises: each line says what it meets
        return half
    raise CannotRun(f"{type(refused).__name__}: {refused}") from refused


def called_once(module, inputs, keywords, seed):
    """A lazy module that has not run, copied and called: only then has it parameters. Others as they are."""
    if not _is_lazy(module):
        return module
    module = cast(copied(module), torch.float64)
    names = [f"input {i}" for i in range(len(inputs))]
    arguments = Arguments(inputs, keywords, names)
    seeded(seed, generators_of([module, inputs, keywords]))
    with torch.no_grad():
        try:
            arguments.call(module, [t.clone() for t in arguments.tensors])
        except Exception as error:  # its code is a person's
            raise CannotRun(f"{type(error).__name__}: {error}") from error
    return module


def _is_lazy(module):
    if not isinstance(module, torch.nn.Module):
        return False
    state = (*module.parameters(), *module.buffers())
    return any(torch.nn.parameter.is_lazy(t) for t in state)


class NothingToDifferentiate(TypeError):
    """There is nothing to differentiate."""


def of_function(target, inputs, keywords, reference, fixed, names, known, dtype):
    label = getattr(target, "__qualname__", None) or type(target).__name__
    function, signature = target, names or signature_of(target)
    if is_function_class(target):
        function, signature = target.apply, names or forward_signature(target)
        inputs, keywords = positional(target, inputs, keywords, signature)
    names = list(signature or ())
    names += [f"input {i}" for i in range(len(names), len(inputs))]
    arguments = Arguments(inputs, keywords, names, fixed, dtype)
    _need(arguments.tensors)

    def bound(function, arguments):
        return lambda *tensors: arguments.call(function, tensors)

    return Subject(
        label,
        bound(function, arguments),
        arguments.tensors,
        arguments.names,
        reference and bound(reference, arguments),
        batched=batch_inputs(arguments.tensors, arguments.names),
        complex=frozenset(arguments.complex),
        dtype=dtype,
        alongside=lambda change: bound(function, alongside(arguments, change)),
        repeat=lambda: with_repeated(arguments, lambda a: bound(function, a)),
        broadcasts=arguments.broadcasts(),
        is_function=is_function_class(target),
        of_pytorch=(getattr(target, "__module__", None) or "").split(".")[0] == "torch",
        **known,
    )


def of_module(module, inputs, keywords, reference, fixed, names, known, dtype):
    """A module as a function of its inputs and its parameters."""
    module = cast(copied(module), dtype)
    if isinstance(reference, torch.nn.Module):
        reference = cast(copied(reference), dtype)
        reference.load_state_dict(module.state_dict())
    names = list(names or [f"input {i}" for i in range(len(inputs))])
    arguments = Arguments(inputs, keywords, names, fixed, dtype)
    parameters = {
        name: p for name, p in module.named_parameters() if name not in fixed and is_number(p)
    }
    count = len(arguments.tensors)
    if count == 1 and not keywords and names == ["input 0"]:
        arguments.names = ["input"]
    tensors = [*arguments.tensors, *(pairs(p.detach()) for p in parameters.values())]
    complex_ = {name for name, p in parameters.items() if p.is_complex()}
    _need(tensors)

    def once(model):
        return arguments.call(model, [t.clone() for t in tensors[:count]])

    def call(model, arguments, attributes, enlarged=()):
        # Buffers, too, are given anew each time: a training step must not change the next one.
        named = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        others = {name: t.detach().clone() for name, t in named.items() if name not in parameters}
        others |= {name: larger(others[name]) for name in enlarged}

        def state(tensors):
            kind = tensors[0].dtype
            fresh = {n: in_dtype(t, kind).clone() for n, t in others.items()}
            given = zip(parameters, tensors[count:], strict=True)
            return fresh | {n: of_pairs(t) if n in complex_ else t for n, t in given}

        def function(*tensors):
            attributes.put_back(model, tensors[0].dtype)

            def run(*args, **kwargs):
                return torch.func.functional_call(model, state(tensors), args, kwargs)

            return arguments.call(run, tensors[:count])

        def holding(tensors, run):
            given = {f"module.{name}": t for name, t in state(tensors).items()}
            return torch.func.functional_call(_Holder(model), given, (run,))

        function.holding = holding
        return function

    def moves():
        model = copied(pristine)
        with torch.no_grad():
            once(model)
        changed = zip(model.named_buffers(), pristine.named_buffers(), strict=True)
        return [name for (name, b), (_, was) in changed if is_number(b) and not b.equal(was)]

    pristine = copied(module)
    other = copied(module).train(not module.training)
    attributes, attributes_there = Attributes(module, once), Attributes(other, once)
    compared = None
    if isinstance(reference, torch.nn.Module):
        compared = call(reference, arguments, Attributes(reference, once))
    if reference is not None and compared is None:
        compared = lambda *given: arguments.call(reference, given)  # noqa: E731
    return Subject(
        type(module).__name__,
        call(module, arguments, attributes),
        tensors,
        [*arguments.names, *parameters],
        compared,
        batched=batch_inputs(arguments.tensors, arguments.names),
        complex=frozenset(arguments.complex)
        | {count + i for i, name in enumerate(parameters) if name in complex_},
        holds_complex=any(b.is_complex() for b in module.buffers()),
        dtype=dtype,
        other_mode=call(other, arguments, attributes_there),
        constant={
            name: b.flatten()[0].item() for name, b in module.named_buffers() if is_constant(b)
        },
        shifted=lambda names, other_mode=False: (
            call(other, arguments, attributes_there, names)
            if other_mode
            else call(module, arguments, attributes, names)
        ),
        arguments=count,
        of_pytorch=all(type(m).__module__.split(".")[0] == "torch" for m in module.modules()),
        fresh=lambda: call(copied(pristine), arguments, attributes),
        moves=moves,
        changes=tuple(sorted({*attributes.names, *attributes_there.names})),
        alongside=lambda change: call(module, alongside(arguments, change), attributes),
        repeat=lambda: with_repeated(arguments, lambda a: call(module, a, attributes)),
        broadcasts=arguments.broadcasts(),
        **known,
    )


def larger(t):
    """Other numbers, each a little larger: what is a variance stays positive."""
    u, v = torch.rand(2, *t.shape, generator=torch.Generator().manual_seed(19), dtype=t.dtype)
    return t * (1 + u) + v


def is_constant(t):
    """Whether it is floating, and one number throughout: of a single one, 0, 1 or −1."""
    if not (t.is_floating_point() and t.numel()) or t.ne(t.flatten()[0]).any():
        return False
    value = t.flatten()[0].item()
    return math.isfinite(value) and (t.numel() > 1 or value in (-1.0, 0.0, 1.0))


class _Holder(torch.nn.Module):
    """Runs something while a module holds other parameters."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, run):
        return run()


def _need(tensors):
    if not tensors:
        raise NothingToDifferentiate("check() needs at least one floating tensor among the inputs")


def alongside(arguments, change):
    """The arguments with ``change`` of labels, masks and ids: of what is passed on and not floating."""
    other = copy.copy(arguments)

    def changed(_, value):
        if isinstance(value, torch.Tensor):
            return value if is_number(value) else change(value)
        return mapped(value, changed)

    other.inputs = [changed(None, value) for value in arguments.inputs]
    other.keywords = {name: changed(None, value) for name, value in arguments.keywords.items()}
    return other


def is_order(t):
    """Whether it holds 0 to n − 1, each once."""
    return t.dtype in INTEGERS and torch.equal(
        t.flatten().sort().values.long(), torch.arange(t.numel(), device=t.device)
    )


def with_repeated(arguments, function_of):
    """(the function with integers that each come twice, whether they may be promised not to); None without any.

    Changed are tensors of which no integer came twice. Rising ones are often of that kind (rows that are kept,
    unique ones), orders (0 to n − 1, each once), and those that stand beside others (pairs of coordinates).
    """
    seen, promised = 0, []
    sizes = {size for t in arguments.tensors for size in (*t.shape, t.numel())}

    def twice(_, value):
        if not isinstance(value, torch.Tensor):
            return mapped(value, twice)
        nonlocal seen
        seen += value.dtype in INTEGERS
        flat = value.flatten()
        if value.dtype not in INTEGERS or len(flat) < 2 or len(flat.unique()) < len(flat):
            return value
        # A table of them counts as an order only where it is one of as many as an input has.
        fits = value.dim() == 1 or len(flat) in sizes
        promised.append(fits and (is_order(value) or bool((flat.diff() > 0).all())))
        pairs = flat.clone()
        pairs[1::2] = flat[::2][: len(flat) // 2]
        return pairs.view(value.shape)

    other = copy.copy(arguments)
    other.inputs = [twice(None, value) for value in arguments.inputs]
    other.keywords = {name: twice(None, value) for name, value in arguments.keywords.items()}
    return (function_of(other), seen > 1 or any(promised)) if promised else None


def resized(t, count, batch, ordered=False):
    """Labels, a mask or ids of a batch of ``batch``, made ``count`` long; anything else as it is.

    ordered: what they are is kept: an order of the batch becomes one of ``count``, its inverse too;
    segments go on rising; offsets end where the batch ends.
    """
    if ordered and is_offsets(t, batch):
        made = t.clamp(max=count)
        made[-1] = count
        return made
    if not t.dim() or len(t) != batch:
        return t
    if ordered and is_order(t):
        blocks = [t + k * batch for k in range(count // batch)]
        rest = torch.arange(count // batch * batch, count).to(t)
        return torch.cat((*blocks, rest))
    made = of_length(t, count)
    return made.sort().values if ordered and t.dim() == 1 and rises(t) else made


def is_offsets(t, batch):
    """Whether these are where segments of a batch begin, and where the last one ends."""
    known = t.dim() == 1 and t.dtype in INTEGERS and len(t) > 1 and bool(batch)
    return known and int(t[0]) == 0 and int(t[-1]) == batch and rises(t)


def rises(t):
    """Whether integers do not fall."""
    return t.dtype in INTEGERS and bool((t.diff() >= 0).all())


def of_length(t, count):
    """t with ``count`` rows: its own, again and again."""
    return t[torch.arange(count) % max(1, len(t))] if len(t) else t


def examples(target):
    """What a target says it can be checked with, or numbers for an activation."""
    stated = getattr(target, "example_inputs", None)
    if stated is not None:
        return tuple(stated())
    if isinstance(target, type) and issubclass(target, Activation):
        return (
            torch.randn(4, 6, generator=torch.Generator().manual_seed(1)) * 2,
            *target.defaults(),
        )
    if not callable(target):
        return ()
    raise TypeError(
        "check() needs inputs: check(target, x, W, b), or a static method `example_inputs` of the target"
    )


def is_function_class(target):
    return isinstance(target, type) and issubclass(target, torch.autograd.Function)


def positional(function_class, inputs, keywords, names):
    """(inputs, {}) with keyword arguments in their places: ``apply`` takes none."""
    if not keywords:
        return inputs, {}
    keywords, inputs = dict(keywords), list(inputs)
    parameters = inspect.signature(function_class.forward).parameters
    for name in names[len(inputs) :]:
        if not keywords:
            break
        if name not in keywords and parameters[name].default is inspect.Parameter.empty:
            raise TypeError(f"{function_class.__name__} needs {name!r} as well")
        inputs.append(keywords.pop(name, parameters[name].default))
    if keywords:
        raise TypeError(f"{function_class.__name__}.forward takes no {next(iter(keywords))!r}")
    return inputs, {}


def forward_signature(function_class):
    names = signature_of(function_class.forward)
    new_style = function_class.setup_context is not torch.autograd.Function.setup_context
    if issubclass(function_class, Activation):
        names = signature_of(function_class.g)
    elif not new_style:
        names = names[1:]  # ctx
    return names


def signature_of(function):
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return []
    return [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]


def batch_inputs(tensors, names):
    """The inputs that share the first one's first dimension and are not parameters."""
    if not tensors or not tensors[0].dim() or names[0].lower() in PARAMETERS:
        return ()
    return tuple(
        i
        for i, (t, name) in enumerate(zip(tensors, names, strict=True))
        if i == 0
        or (t.dim() and t.shape[0] == tensors[0].shape[0] and name.lower() not in PARAMETERS)
    )
