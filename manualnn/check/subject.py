"""What is checked: a function of tensors, its inputs in float64, and what it is compared with."""

import copy
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from manualnn.activation import Activation

PARAMETERS = {"w", "b", "weight", "bias", "gamma", "beta", "running_mean", "running_var"}


@dataclass
class Subject:
    """A function of floating tensors and all that the lines of a check need to know about it.

    function, reference: called with one tensor an input; return a tensor or a tuple. names: of the
    inputs, as they stand in the report. batched: which inputs have the batch as first dimension.
    """

    name: str
    function: Callable
    inputs: list
    names: list
    reference: Callable | None = None
    kinks: tuple = ()
    surrogate: str | dict | None = None
    seed: int = 0
    batched: tuple = (0,)
    random: bool = field(default=False, init=False)

    def __post_init__(self):
        self.inputs = [away_from(t, self.kinks) for t in self.inputs]
        with torch.no_grad():
            first = self.outputs(self.inputs)
            again = self.outputs(self.inputs, seed=self.seed + 1)
        self.random = any(not torch.equal(a, b) for a, b in zip(first, again, strict=True))

    def outputs(self, tensors, function=None, seed=None):
        """The floating outputs, for the same random numbers each time."""
        torch.manual_seed(self.seed if seed is None else seed)
        out = (function or self.function)(*tensors)
        return tuple(t for t in flat(out) if t.is_floating_point())

    def leaves(self, dtype=torch.float64, needs=None, inputs=None):
        """The inputs as leaves that need a gradient (or those in ``needs`` alone)."""
        tensors = self.inputs if inputs is None else inputs
        return [
            t.detach().to(dtype).clone().requires_grad_(needs is None or i in needs)
            for i, t in enumerate(tensors)
        ]

    def cotangents(self, outputs):
        """Fixed numbers of both signs to send back, one an output."""
        generator = torch.Generator().manual_seed(self.seed + 11)
        return [
            torch.randn(t.shape, generator=generator, dtype=torch.float64).to(t.device, t.dtype)
            for t in outputs
        ]

    def gradients(self, leaves, function=None, create_graph=False):
        """dL/d(leaf) of L = Σ ⟨cotangent, output⟩ for each leaf that needs one; None where unused."""
        outputs = self.outputs(leaves, function)
        return self.backward(outputs, leaves, create_graph=create_graph)

    def backward(self, outputs, leaves, **options):
        wrt = [t for t in leaves if t.requires_grad]
        pairs = [(o, c) for o, c in zip(outputs, self.cotangents(outputs), strict=True)]
        pairs = [(o, c) for o, c in pairs if o.requires_grad]
        if not pairs:
            return [None for _ in wrt]
        outs, cotangents = zip(*pairs, strict=True)
        return torch.autograd.grad(outs, wrt, cotangents, allow_unused=True, **options)

    def declared(self, name):
        """The reason why the gradient of that input is not the true derivative, or None."""
        return self.surrogate.get(name) if isinstance(self.surrogate, dict) else self.surrogate


def subject_of(target, inputs, reference, kinks, surrogate, seed, names):
    """The Subject for whatever a person points at."""
    surrogate = surrogate or getattr(target, "surrogate", None)
    kinks = tuple(kinks if kinks is not None else getattr(target, "kinks", ()))
    inputs = inputs or examples(target)
    known = {"kinks": kinks, "surrogate": surrogate, "seed": seed}
    if isinstance(target, torch.nn.Module):
        return of_module(target, inputs, reference, known)
    label = getattr(target, "__qualname__", None) or type(target).__name__
    if is_function_class(target):
        function, signature = target.apply, forward_signature(target)
    elif callable(target):
        function, signature = target, signature_of(target)
    else:
        raise TypeError(
            "check() takes an autograd.Function, a function or a torch.nn.Module, "
            f"not {type(target).__name__}"
        )
    names = list(names or signature or ())
    names += [f"input {i}" for i in range(len(names), len(inputs))]
    tensors, names, bind = split(inputs, names)
    return Subject(
        label,
        bind(function),
        tensors,
        names,
        reference and bind(reference),
        batched=batch_inputs(tensors, names),
        **known,
    )


def of_module(module, inputs, reference, known):
    """A module as a function of its inputs and its parameters."""
    module = copy.deepcopy(module).double()
    if isinstance(reference, torch.nn.Module):
        reference = copy.deepcopy(reference).double()
        reference.load_state_dict(module.state_dict())
    tensors, names, bind = split(inputs, [f"input {i}" for i in range(len(inputs))])
    if len(tensors) == 1:
        names = ["input"]
    parameters = dict(module.named_parameters())
    count = len(tensors)

    def call(model):
        # Buffers, too, are given anew each time: a training step must not change the next one.
        buffers = {name: b.detach().clone() for name, b in model.named_buffers()}

        def function(*tensors):
            given = dict(zip(parameters, tensors[count:], strict=True))
            fresh = {name: b.clone() for name, b in buffers.items()}
            dtype = tensors[0].dtype
            fresh = {n: b.to(dtype) if b.is_floating_point() else b for n, b in fresh.items()}
            arguments = bind(lambda *all_of_them: all_of_them)(*tensors[:count])
            return torch.func.functional_call(model, given | fresh, arguments)

        return function

    compared = call(reference) if isinstance(reference, torch.nn.Module) else None
    if reference is not None and compared is None:
        compared = bind(reference)
    return Subject(
        type(module).__name__,
        call(module),
        [*tensors, *(p.detach() for p in parameters.values())],
        [*names, *parameters],
        compared,
        batched=batch_inputs(tensors, names),
        **known,
    )


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
    raise TypeError(
        "check() needs inputs: check(target, x, W, b), or a static method `example_inputs` of the target"
    )


def split(inputs, names):
    """The floating tensors in float64, their names, and what binds everything else to a function."""
    floating = [isinstance(t, torch.Tensor) and t.is_floating_point() for t in inputs]
    tensors = [t.detach().double() for t, is_one in zip(inputs, floating, strict=True) if is_one]
    if not tensors:
        raise TypeError("check() needs at least one floating tensor among the inputs")
    names = [name for name, is_one in zip(names, floating, strict=False) if is_one]

    def bind(function):
        def bound(*given):
            given = iter(given)
            return function(
                *(next(given) if is_one else t for t, is_one in zip(inputs, floating, strict=True))
            )

        return bound

    return tensors, names, bind


def is_function_class(target):
    return isinstance(target, type) and issubclass(target, torch.autograd.Function)


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
    if not tensors[0].dim():
        return ()
    return tuple(
        i
        for i, (t, name) in enumerate(zip(tensors, names, strict=True))
        if i == 0
        or (t.dim() and t.shape[0] == tensors[0].shape[0] and name.lower() not in PARAMETERS)
    )


def away_from(t, kinks, distance=0.02):
    """t with every element at least ``distance`` away from every kink, on the side where it was."""
    for kink in kinks:
        near = (t - kink).abs() < distance
        t = torch.where(near, kink + torch.where(t < kink, -2 * distance, 2 * distance), t)
    return t


def flat(out):
    """The tensors in a tensor, tuple, list or dict, in order."""
    if isinstance(out, torch.Tensor):
        return [out]
    if isinstance(out, dict):
        out = list(out.values())
    if isinstance(out, (tuple, list)):
        return [t for part in out for t in flat(part)]
    return []
