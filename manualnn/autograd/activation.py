"""The base of every activation: its formula, its derivative, and what the derivative needs."""

import inspect
from collections.abc import Callable
from typing import Any, ClassVar

import torch

from manualnn._torch import overload_into, transforms_active
from manualnn.autograd import in_place, learnable
from manualnn.autograd.blockwise import TimesSlope, evaluate
from manualnn.autograd.examples import tried
from manualnn.autograd.faces import Later, static, takes_over
from manualnn.autograd.function import Formula, Function
from manualnn.autograd.module_of import module_of
from manualnn.autograd.moment import first_order
from manualnn.autograd.options import numbers
from manualnn.autograd.spare import alike

FORMULAS = ("g", "g_prime", "g_prime_a", "kernel", "kernel_", "kernel_prime", "kernel_prime_a")


class Activation(Function):
    """An activation function: a = g(z), dz = da ∗ g′(z), element by element.

    A subclass states its formulas as functions of the class body, static methods or plain ones::

        g(z, *options)           the activation
        g_prime(z, *options)     its derivative, from the input, or
        g_prime_a(a, *options)   its derivative, from the output

    and everything else follows. A derivative that is only ever 0 or 1 may be a truth value: then it
    selects (``where(g′, da, 0)``) instead of multiplying, so that 0 · inf is 0.

    What is cached: the output where ``g_prime_a`` is given, because the layer that follows saves it
    anyway; the input otherwise. With both, ``output_suffices(dtype, *options)`` decides, and
    ``caches_input = True`` leaves that to ``apply_`` alone, which has no other choice.

    Optional, as attributes or functions of the class body::

        kernel(z, *options)               one-pass operations that compute exactly the formulas; they
        kernel_prime(da, z, *options)     do the work when nothing differentiates it again, the formulas
        kernel_prime_a(da, a, *options)   do otherwise
        kernel_(z, *options)              the kernel that writes a over z
        learned = {"alpha": 1.0}          options that are learned, with the value they start from, and
        d_alpha(z, *options)              ∂a/∂α, for each of them; such an activation caches z
        caches_input = True               with both derivatives: cache z, so that the output may be
                                          written over; all of torch.nn's that cache z state this
        kinks = (0.0,)                    where g′ jumps: ``manualnn.check`` looks there separately
        examples = (tried(0.0), ...)      options with which it is tried: manualnn.autograd.examples
        replaces = SomeModule             a module class of your own that computes the same:
                                          ``manualnn.convert`` then swaps it for ``Module``
        surrogate = "why"                 g′ is deliberately not the derivative of g

    What every subclass has::

        apply(z, *options)       the Function; apply_(z, *options) writes a over z
        functional(z, ...)       the same with the options by name, their defaults, and ``inplace``
        Module(...)              a torch.nn.Module with the options as arguments

    ``class Snake(Activation, check=True)`` refuses a wrong derivative where it is written: the
    definition raises ``manualnn.CheckError`` with the whole report.

    >>> class Square(Activation, check=True):
    ...     @staticmethod
    ...     def g(z, scale=1.0):
    ...         return scale * z**2
    ...
    ...     @staticmethod
    ...     def g_prime(z, scale=1.0):
    ...         return 2 * scale * z
    >>> z = torch.tensor([1.0, -3.0], requires_grad=True)
    >>> Square.functional(z, scale=0.5).sum().backward()
    >>> z.grad
    tensor([ 1., -3.])
    >>> Square.Module(scale=0.5)
    Square(scale=0.5)

    Raises, when it is defined: TypeError for a formula that is missing, or takes other options than g.
    """

    g: Callable[..., Any] = None  # type: ignore[assignment]  # every subclass states it
    g_prime: Formula = None
    g_prime_a: Formula = None
    kernel: Formula = None
    kernel_: Formula = None
    kernel_prime: Formula = None
    kernel_prime_a: Formula = None
    learned: ClassVar[dict[str, float]] = {}
    kinks: ClassVar[tuple[float, ...]] = ()
    replaces: ClassVar[type[torch.nn.Module] | None] = None
    surrogate: ClassVar[str | dict[str, str] | None] = None
    twin: ClassVar[Any] = None
    examples: ClassVar[tuple[Any, ...]] = (tried(),)
    caches_input: ClassVar[bool] = False
    _inplace: Any
    _inplace_from_input: Any

    @staticmethod
    def output_suffices(dtype: Any, *options: Any) -> Any:
        return True

    def __init_subclass__(cls, check: bool = False, **kwargs: Any) -> None:
        derivatives = [f"d_{name}" for name in cls.learned]
        for name in (*FORMULAS, "output_suffices", *derivatives):
            if cls.__dict__.get(name) is not None:
                setattr(cls, name, static(cls.__dict__[name]))
        _check_definition(cls, derivatives)
        if cls.learned:
            learnable.state_methods(cls)
        else:
            _state_methods(cls)
        super().__init_subclass__(**kwargs)
        if not cls.learned:
            cls._inplace = Later(cls, "_inplace", in_place.output_face)
            cls._inplace_from_input = Later(cls, "_inplace_from_input", in_place.input_face)
        if cls.replaces is not None and "replaces" in cls.__dict__:
            cls.Module  # noqa: B018 — made now, so that convert knows it

    @classmethod
    def options(cls) -> list[inspect.Parameter]:
        """The options as ``inspect.Parameter``s, as g's signature states them."""
        return list(inspect.signature(cls.g).parameters.values())[1:]

    @classmethod
    def defaults(cls) -> tuple[Any, ...]:
        """The default values of the options; of a learned one, a tensor.

        Raises:
            TypeError: an option has no default.
        """
        given = {p.name: p.default for p in cls.options() if p.default is not p.empty}
        given |= {name: torch.tensor(float(value)) for name, value in cls.learned.items()}
        missing = [p.name for p in cls.options() if p.name not in given]
        if missing:
            raise TypeError(f"{cls.__name__} has no default for {', '.join(missing)}")
        return tuple(given[p.name] for p in cls.options())

    @classmethod
    def functional(
        cls, input: torch.Tensor, *options: Any, inplace: bool = False, **named: Any
    ) -> torch.Tensor:
        """g(input), the options by position or by name, with g's defaults.

        Raises:
            TypeError: an option is unknown, missing, or given twice.
        """
        bound = inspect.signature(cls.g).bind(input, *options, **named)
        bound.apply_defaults()
        return (cls.apply_ if inplace else cls.apply)(*bound.args)

    class _ModuleOf:
        """Makes an activation's module class when it is first asked for; each class has its own."""

        def __get__(self, instance: object, cls: Any) -> type[torch.nn.Module]:
            if cls.g is None:  # help() and hasattr() ask the base, too
                raise AttributeError(f"{cls.__name__} states no formula, and has no module")
            made = cls.__dict__.get("_module")
            if made is None:
                made = cls._module = module_of(cls)
            return made

    Module = _ModuleOf()

    apply_ = classmethod(in_place.apply_)

    @classmethod
    def da_times_slope(
        cls,
        saved: torch.Tensor,
        options: Any,
        da: torch.Tensor,
        from_output: bool | None = None,
        over: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """da ∗ g′, from what was saved: z or a; of None, a wherever it suffices.

        over: da, if it may be written over.
        """
        if from_output is None:
            from_output = cls._saves_output(saved, options)
        kernel = cls.kernel_prime_a if from_output else cls.kernel_prime
        if kernel is not None and first_order():
            if over is not None and alike(over, saved):
                writing = writing_over(kernel)
                if writing is not None:
                    return writing(da, saved, *options)
            return kernel(da, saved, *options)
        return cls._formula(da, saved, options, from_output)

    @classmethod
    def _formula(
        cls, da: torch.Tensor, saved: torch.Tensor, options: Any, from_output: bool | None
    ) -> torch.Tensor:
        slope: Any = cls.g_prime_a if from_output else cls.g_prime
        dz = evaluate(TimesSlope(slope), da, saved, options=options)
        return _linked(dz, saved) if torch.is_grad_enabled() else dz

    @classmethod
    def _saves_output(cls, z: torch.Tensor, options: Any) -> bool:
        if cls.g_prime is None or cls.g_prime_a is None:
            return cls.g_prime is None
        return cls.output_suffices(z.dtype, *options)


def writing_over(kernel: Any) -> Any:
    """The kernel that writes da ∗ g′ over da: ATen's, or the kernel itself, if it takes ``over``; or None."""
    if takes_over(kernel):
        return lambda da, *rest: kernel(da, *rest, over=da)
    into = overload_into(kernel)
    return None if into is None else lambda da, *rest: into(da, *rest, grad_input=da)


def _check_definition(cls, derivatives):
    """Says at once, and in words, what a definition lacks."""
    name = cls.__name__
    if cls.g is None:
        raise TypeError(f"{name} states no formula: def g(z, ...) in the class body")
    if cls.g_prime is None and cls.g_prime_a is None:
        raise TypeError(
            f"{name} states g but not its derivative: def g_prime(z, ...), from the input, or "
            "def g_prime_a(a, ...), from the output"
        )
    options = _argument_names(cls.g)
    if options[:1] == ["self"]:
        raise TypeError(f"the formulas of {name} take no self: def g(z, ...)")
    if cls.learned and cls.g_prime is None:
        raise TypeError(f"{name} learns {', '.join(cls.learned)}: state g_prime, from the input")
    unknown = [option for option in cls.learned if option not in options]
    if unknown:
        raise TypeError(f"{name} learns {', '.join(unknown)}, which g does not take: {options}")
    for formula in ("g_prime", "g_prime_a", *derivatives):
        stated = getattr(cls, formula, None)
        if stated is None:
            if formula in derivatives:
                raise TypeError(
                    f"{name} learns {formula[2:]}: state ∂a/∂{formula[2:]} as {formula}"
                )
            continue
        if _argument_names(stated) and options and _argument_names(stated)[1:] != options[1:]:
            raise TypeError(
                f"{name}.{formula} takes {_argument_names(stated)}, but g takes {options}: "
                "after the first argument they must be the same"
            )


def _argument_names(formula):
    try:
        return list(inspect.signature(formula).parameters)
    except (TypeError, ValueError):  # a built-in function does not tell
        return []


def _linked(dz, saved):
    """dz as a function of what was saved even where g′ is piecewise constant, with derivative 0.

    torch's second derivative of a rectifier is zeros, not missing: an optimizer treats them differently.
    """
    if transforms_active() or not saved.requires_grad:
        return dz
    here = torch.ones((), dtype=torch.bool, device=dz.device)
    return torch.where(here, dz, saved.to(dz.dtype))


def _state_methods(cls):
    """States the activation ``cls`` as any op is stated: forward, save, gradients, ...

    They are closures over ``cls``: torch.func and Dynamo lose a class that is looked up through ctx.
    """
    kernel, from_z, from_a = cls.kernel, cls.kernel_prime, cls.kernel_prime_a
    always = None if cls.g_prime and cls.g_prime_a else cls.g_prime is None  # saves the output
    always = False if cls.caches_input else always

    def forward(z, *options):
        # Of its own even for a kernel: Dynamo takes no built-in function for a forward.
        return evaluate(cls.g, z, options=options) if kernel is None else kernel(z, *options)

    def kernel_forward(z, *options):
        for option in options:
            if type(option) is not float:
                return kernel(z, *numbers(options))
        return kernel(z, *options)

    def save(needs, a, z, *options):
        for option in options:
            if type(option) is not float:
                options = numbers(options)
                break
        saves_output = cls.output_suffices(z.dtype, *options) if always is None else always
        return (a if saves_output else z,), options

    def save_input(needs, a, z):
        return (z,), ()

    def save_output(needs, a, z):
        return (a,), ()

    def is_output(saved, options):
        return cls.output_suffices(saved.dtype, *options) if always is None else always

    def gradients(needs, da, saved, *options):
        return cls._formula(da, saved, options, is_output(saved, options))

    def kernel_of_either(needs, da, saved, *options):
        return (from_a if is_output(saved, options) else from_z)(da, saved, *options)

    def kernel_of_one(needs, da, saved, *options):
        return the_one(da, saved, *options)

    def writing_kernel_of_one(needs, da, saved, *options, over=None):
        if over is not None and alike(da, saved):
            return writing(da, saved, *options)
        return the_one(da, saved, *options)

    def tangent(step, saved, *options):
        return cls._formula(step.z, saved, options, is_output(saved, options))

    def recompute(inputs, a):
        z, *options = inputs
        return in_place.recompute_of(cls, z, options)

    methods = {"forward": forward, "save": save, "gradients": gradients, "tangent": tangent}
    methods["recompute"] = recompute
    alone = len(_argument_names(cls.g)) == 1
    if alone and always is not None:  # a small tensor's call costs as much as its arithmetic
        methods["save"] = save_output if always else save_input
    if kernel is not None:
        methods["kernel_forward"] = kernel if alone else kernel_forward
    the_one = from_a if always else from_z
    writing = writing_over(the_one)
    if always is None and from_z is not None and from_a is not None:
        methods["kernel_gradients"] = kernel_of_either
    elif always is not None and the_one is not None:
        methods["kernel_gradients"] = writing_kernel_of_one if writing else kernel_of_one
    for name, method in methods.items():
        if name not in cls.__dict__:
            setattr(cls, name, static(method))
