"""The base of every hand-written ``autograd.Function``: one definition, the face that fits the moment.

An op states its mathematics once, as static methods without ctx, from which ``stated`` derives the rest; or
an author writes PyTorch's official form: ``forward``, ``setup_context``, ``backward`` and ``jvp``. Three
callers want three different things of it:

* **eager** autograd wants speed: the ``setup_context`` style binds a signature in every call,
  the older ``forward(ctx, ...)`` style does not;
* **torch.func** (vmap, grad, jacrev, ...) accepts the ``setup_context`` style only;
* **torch.compile** refuses a Function that defines ``jvp``.

So three faces are derived from a class when it is defined: a ``ctx``-style one for eager mode, a full
one for torch.func, and one without ``jvp`` for the compiler. ``apply`` picks; while a model is watched,
it says how the output was made (manualnn.memory). The face for torch.func is made in ``transforms``.
PyTorch's internals that tell which moment it is are named here and there.
"""

import functools
import warnings

import torch

from manualnn.autograd import stated
from manualnn.autograd.stated import any_autocast
from manualnn.autograd.transforms import (
    functional_backward,
    functional_forward,
    functional_jvp,
    functional_setup,
    transforms_active,
    whole,
)
from manualnn.memory import active
from manualnn.memory.tensors import with_subclass

is_dynamo_compiling = torch.compiler.is_dynamo_compiling
is_jit_tracing = torch._C._is_tracing
has_torch_function = torch.overrides.has_torch_function
OFFICIAL = {"setup_context", "backward", "jvp"}  # PyTorch's form, beside forward
STATED = {  # what the methods are derived from, see stated
    *("forward", "save", "gradients", "tangent", "recompute"),
    *("kernel_forward", "kernel_gradients", "layout", "seen"),
    *("outputs", "gives_intermediates", "kernel_has_derivatives"),
}
_BATCHED = torch._C._parse_dispatch_key("Batched")


def unseen(ask):
    """``ask``, which only asks what tensors are like, without telling a torch function mode of each question.

    A watched model has such a mode, and a question costs microseconds there.
    """

    @functools.wraps(ask)
    def run(*args):
        with torch._C.DisableTorchFunction():
            return ask(*args)

    return run


def eager():
    """True when ``apply`` would take the eager face: no torch.func transform, no compiler."""
    return not (transforms_active() or torch.compiler.is_compiling())


def batched(tensor):
    """True of a gradient in ``torch.autograd.grad(..., is_grads_batched=True)``, which no transform announces.

    It is many tensors in the place of one: nothing can be written into another tensor from it.
    """
    return torch._C._dispatch_keys(tensor).has(_BATCHED)


def plain(tensor):
    """True of a tensor that lies in memory as it says: no transform's, no compiler's, no batch of gradients."""
    return eager() and not batched(tensor)


class FunctionType(type(torch.autograd.Function)):
    """The class of Function classes: ``class X(Function, check=True)`` checks X where it is defined."""

    def __init__(cls, name, bases, namespace, check=False, **kwargs):
        super().__init__(name, bases, namespace)
        if check:
            from manualnn.tools.checks import check as checked  # it knows us

            checked(cls).raise_for_failures()


class Function(torch.autograd.Function, metaclass=FunctionType):
    """A layer's mathematics: what it computes, how the error flows back, what is saved in between.

    Subclasses state, as static methods; x, W, ... stand for the inputs of ``forward``::

        forward(x, W, ...)                        -> z, or (z, ...)
        save(needs, z, x, W, ...)                 -> tensors, options
        gradients(needs, dz, *tensors, *options)  -> dx, or (dx, dW, ...)
        tangent(step, *tensors, *options)         -> the step of z               (optional)
        recompute(inputs, output)                 -> make, sources               (optional)
        example_inputs()                          -> what to check it with       (optional)

    ``gradients`` is the formula of the backward. It may be differentiated again: where it uses an intermediate
    result, that must be an output of forward or be computed again from the inputs. ``needs.x`` says whether the
    gradient of x is asked for, ``step.x`` is the step (the tangent) of x, or None. What ``save`` returns is
    what ``gradients`` and ``tangent`` are given: the tensors, or None, that a needed gradient reads and no
    more, then plain values. Gradients of the inputs that follow may be left out.

    ``outputs = 1``: what forward returns after the first exists for backward alone; it has no gradient and is
    not given out. A gradient arrives as None where nothing flows back to one of several outputs.

    ``kernel_forward`` and ``kernel_gradients``, of the same arguments, are one-pass operations for exactly
    these formulas. They serve in eager mode while nothing differentiates the result again. ``layout(needs, z,
    x, W, ...)`` tells ``kernel_gradients`` more about how tensors lie in memory, after the options.

    ``recompute`` says how the output can be made once more instead of being saved: ``make(*sources)`` is the
    first output bit for bit, by the same kernels, of tensors that are saved anyway (the input, statistics,
    a mask) and at the price of a pass or two over memory, never of a matrix product. A third element, if
    given, computes the same and may write over the first source. None where a call cannot be repeated.

    PyTorch's official form is as good: ``forward``, ``setup_context(ctx, inputs, output)``,
    ``backward(ctx, dz)`` and ``jvp(ctx, *steps)``; then ``ctx.save_for_backward`` holds what backward reads,
    ``ctx.save_for_forward`` what jvp reads, and tensors are never put on ``ctx`` as attributes.

    A gradient that is deliberately not the true derivative is declared: ``surrogate = "why"``, or a dict
    of input name to reason; ``manualnn.check`` then says where it departs, without calling it broken.

    ``class X(Function, check=True)`` checks X with its ``example_inputs()`` and raises
    ``manualnn.check.CheckError``, with the whole report, if something is wrong.

    >>> class Scale(Function, check=True):
    ...     @staticmethod
    ...     def forward(x, w):
    ...         return x * w
    ...
    ...     @staticmethod
    ...     def save(needs, z, x, w):
    ...         return (x if needs.w else None, w if needs.x else None), ()
    ...
    ...     @staticmethod
    ...     def gradients(needs, dz, x, w):
    ...         dx = dz * w if needs.x else None
    ...         dw = (dz * x).sum(0) if needs.w else None
    ...         return dx, dw
    ...
    ...     @staticmethod
    ...     def tangent(step, x, w):
    ...         terms = [] if step.x is None else [step.x * w]
    ...         return sum(terms if step.w is None else [*terms, x * step.w])
    ...
    ...     @staticmethod
    ...     def example_inputs():
    ...         return torch.randn(2, 3), torch.randn(3)
    >>> x = torch.ones(1, 3, requires_grad=True)
    >>> torch.autograd.grad(Scale.apply(x, 2 * torch.ones(3)).sum(), x)
    (tensor([[2., 2., 2.]]),)
    """

    generate_vmap_rule = True
    save = gradients = tangent = recompute = None
    kernel_forward = kernel_gradients = layout = seen = outputs = None
    gives_intermediates = kernel_has_derivatives = False

    def __init_subclass__(cls, check=False, **kwargs):
        super().__init_subclass__(**kwargs)
        own = {*cls.__dict__}
        if "again" in own:
            message = f"{cls.__name__}.again is called recompute now"
            warnings.warn(message, DeprecationWarning, stacklevel=2)
            cls.recompute = static(cls.__dict__["again"])
        if "jvp" in own:
            cls._tangent = cls.__dict__["jvp"]
            del cls.jvp
        official = OFFICIAL & own
        if "gradients" in own and official and not {"setup_context", "backward"} <= own:
            raise TypeError(
                f"{cls.__name__} states gradients, from which {min(official)} follows: state one of the two"
            )
        if cls.gradients is not None and STATED & own and not official:
            cls._derive()
        elif cls.forward is not torch.autograd.Function.forward and official | ({"forward"} & own):
            cls._given = None
            cls._set_faces(*_eager_of(cls.forward, cls.setup_context, cls.backward))

    @classmethod
    def _derive(cls):
        """From what the op states, see manualnn.autograd.stated."""
        methods = stated.derive(cls)
        if "jvp" in methods:
            cls._tangent = static(methods.pop("jvp"))
        for name, method in methods.items():
            setattr(cls, name, static(method))
        whole = cls.gives_intermediates
        cls._given = None if whole else cls.outputs
        cls._set_faces(*stated.eager_face(cls, whole))
        if cls.recompute is not None and cls.outputs is not None and not whole:
            # A recipe may be made of what exists for backward alone.
            face = cls._eager_face(*stated.eager_face(cls, whole=True))
            cls._recorded_apply = super(torch.autograd.Function, face).apply

    @classmethod
    def _set_faces(cls, eager_forward, eager_backward):
        cls._eager = cls._eager_face(eager_forward, eager_backward)
        # torch.autograd.Function.apply without what it does for torch.func, which has its own face.
        cls._eager_apply = cls._recorded_apply = super(torch.autograd.Function, cls._eager).apply
        forward, setup_context, backward = cls.forward, cls.setup_context, cls.backward
        cls._functional = cls._face(
            forward=functional_forward(forward),
            setup_context=functional_setup(setup_context),
            backward=functional_backward(with_memory(outside_autocast(backward))),
            generate_vmap_rule=True,
        )
        cls._compiled = cls._face(
            tangent=False, forward=forward, setup_context=setup_context, backward=backward
        )
        if hasattr(cls, "_tangent"):
            cls._functional.jvp = static(functional_jvp(static(cls._tangent).__func__))

    @classmethod
    def _eager_face(cls, forward, backward):
        face = cls._face(forward=forward, backward=backward)
        face.op = cls
        # The node calls backward itself, not torch's method that looks it up and then calls it.
        face._backward_cls.apply = backward
        return face

    @classmethod
    def _face(cls, generate_vmap_rule=False, tangent=True, **methods):
        """An autograd.Function of the same name (its node is ``<name>Backward``), with ``jvp``."""
        if tangent and hasattr(cls, "_tangent"):
            methods["jvp"] = cls._tangent
        namespace = {name: static(method) for name, method in methods.items()}
        namespace |= {"__module__": cls.__module__, "__doc__": cls.__doc__}
        namespace |= {"generate_vmap_rule": generate_vmap_rule}
        return type(torch.autograd.Function)(cls.__name__, (torch.autograd.Function,), namespace)

    @classmethod
    def apply(cls, *inputs):
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
            with torch._C.DisableTorchFunction():
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
        raise TypeError(stated.no_tuple(cls))
    return output[: cls._given]


def _any_requires_grad(inputs):
    return any(isinstance(i, torch.Tensor) and i.requires_grad for i in inputs)


def _allow_in_graph(cls):
    face = cls._functional
    for name in (OFFICIAL | {"forward"}) & {*vars(face)}:
        method = getattr(face, name)
        if not hasattr(method, "_torchdynamo_disable"):
            # While the graph runs Dynamo would compile each by itself, and lose what is marked on ctx.
            setattr(face, name, static(torch._dynamo.disable(method)))
    torch._dynamo.allow_in_graph(face)


# Dynamo runs it while it traces. torch.compiler.assume_constant_result says the same, and imports the compiler.
_allow_in_graph._dynamo_marked_constant = True


def static(method):
    """``method`` as a staticmethod, whether or not it already is one."""
    return method if isinstance(method, staticmethod) else staticmethod(method)


def _eager_of(forward, setup_context, backward):
    """The eager face of an op in PyTorch's official form."""

    def run(ctx, *inputs):
        output = forward(*inputs)
        setup_context(ctx, inputs, output)
        return output

    return run, with_memory(outside_autocast(backward))


def outside_autocast(backward):
    """``backward`` in the dtypes that forward saw, even when it is called inside an autocast region.

    A backward called under autocast would otherwise multiply float32 tensors in bfloat16.
    """

    def run(ctx, *grads):
        if not any_autocast():
            return backward(ctx, *grads)
        return stated.outside_autocast(backward, ctx, grads)

    return run


def with_memory(backward):
    """``backward`` of gradients that have memory, so that what is computed from one may be written over.

    A zero without memory comes from PyTorch's second derivative of abs, say.
    """

    def run(ctx, *grads):
        for g in grads:
            if g is not None and g._is_zerotensor():
                return backward(ctx, *(g if g is None else g.clone() for g in grads))
        return backward(ctx, *grads)

    return run


# --- The dtype rule under autocast ------------------------------------------------------------
# What torch does to the twin's inputs, by device. Cast once, before apply: inside a Function a product
# under autocast would return the lower precision while the float32 operand is what was saved.

LOWER, FLOAT32 = "lower", "float32"

_CPU = {
    "conv1d": LOWER,
    "conv2d": LOWER,
    "conv3d": LOWER,
    "conv_transpose1d": LOWER,
    "conv_transpose2d": LOWER,
    "conv_transpose3d": LOWER,
    "baddbmm": LOWER,
    "linear": LOWER,
    "matmul": LOWER,
    "prelu": LOWER,
    "scaled_dot_product_attention": LOWER,
    "adaptive_avg_pool3d": FLOAT32,
    "adaptive_max_pool3d": FLOAT32,
    "avg_pool3d": FLOAT32,
    "max_pool3d": FLOAT32,
    "binary_cross_entropy": FLOAT32,
    "binary_cross_entropy_with_logits": FLOAT32,
    "cross_entropy": FLOAT32,
    "nll_loss": FLOAT32,
    "mse_loss": FLOAT32,
    "l1_loss": FLOAT32,
    "smooth_l1_loss": FLOAT32,
    "huber_loss": FLOAT32,
}
_ACCELERATOR = _CPU | {
    "adaptive_avg_pool3d": None,
    "adaptive_max_pool3d": None,
    "avg_pool3d": None,
    "max_pool3d": None,
    "softplus": FLOAT32,
    "softmax": FLOAT32,
    "log_softmax": FLOAT32,
    "layer_norm": FLOAT32,
    "group_norm": FLOAT32,
    "rms_norm": FLOAT32,
}


def autocast(op, *tensors):
    """``tensors`` (None allowed) in the dtypes that autocast gives to torch's op of that name.

    For a layer of your own: cast before ``apply``, not inside the Function.

    Args:
        op: a name of torch.nn.functional's with a rule: "linear" (lower precision), "cross_entropy"
            (float32), ... Any other leaves the tensors as they are.

    >>> x, W = torch.ones(2, 3), torch.ones(4, 3)
    >>> with torch.autocast("cpu", torch.bfloat16):
    ...     [t.dtype for t in autocast("linear", x, W)]
    [torch.bfloat16, torch.bfloat16]
    """
    if not any_autocast():
        return tensors
    device = next(t.device.type for t in tensors if t is not None)
    if not torch.is_autocast_enabled(device):
        return tensors
    rule = (_CPU if device == "cpu" else _ACCELERATOR).get(op)
    if rule is None:
        return tensors
    dtype = torch.float32 if rule is FLOAT32 else torch.get_autocast_dtype(device)
    return tuple(_cast(t, dtype) for t in tensors)


def _cast(t, dtype):
    # As torch: autocast leaves float64 and integers alone.
    if t is None or not t.is_floating_point() or t.dtype in (dtype, torch.float64):
        return t
    return t.to(dtype)
