"""A Function under torch.compile: eager's numbers where PyTorch's own tracing of Functions goes wrong."""

import pytest
import torch
from battery import sample
from ops import OPS
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vjp, vmap
from torch.nn import functional as F

import manualnn
from manualnn import functional as f

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")


@pytest.fixture(autouse=True)
def nothing_compiled_before():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def compiled(function, backend="aot_eager"):
    return torch.compile(function, fullgraph=True, backend=backend)


class Scaled(manualnn.Function):
    """Takes as many factors as are given, and a shift that need not be given."""

    @staticmethod
    def forward(x, shift=0.5, *factors):
        y = x + shift
        for factor in factors:
            y = y * factor
        return y

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.count, ctx.factor = len(inputs), 1.0
        for factor in inputs[2:]:
            ctx.factor = ctx.factor * factor

    @staticmethod
    def backward(ctx, d):
        return d * ctx.factor, *(None for _ in range(ctx.count - 1))


class Snaky(manualnn.Activation):
    def g(z, a=0.5, b=1.0):
        return z + a * torch.sin(b * z)

    def g_prime(z, a=0.5, b=1.0):
        return 1 + a * b * torch.cos(b * z)


class Learned(manualnn.Activation):
    learned = {"a": 0.5}

    def g(z, a=0.5):
        return z * torch.sigmoid(a * z)

    def g_prime(z, a=0.5):
        s = torch.sigmoid(a * z)
        return s * (1 + a * z * (1 - s))

    def d_a(z, a=0.5):
        s = torch.sigmoid(a * z)
        return z * z * s * (1 - s)


FORWARDS = {
    "default": lambda x: Scaled.apply(x),
    "given": lambda x: Scaled.apply(x, 2.0),
    "many": lambda x: Scaled.apply(x, 2.0, 3.0, 5.0),
    "options": lambda x: Snaky.apply(x, 0.3, 2.0),
    "options left out": lambda x: Snaky.apply(x),
    "learned": lambda x: Learned.apply(x, torch.full((), 0.7, dtype=x.dtype)),
    "threshold": lambda x: f.threshold(x, 0.1, -0.7),
    "pool": lambda x: f.avg_pool2d(x[None, None], 2),
    "largest": lambda x: f.max_pool2d(x[None, None], 2),
}


class Module(torch.nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


@pytest.mark.parametrize("function", FORWARDS.values(), ids=FORWARDS)
@pytest.mark.one_in(3)
def test_forwards_of_any_signature(function):
    """With a gradient and without: torch before 2.15 gives ctx to some of them as their first input."""
    x = torch.randn(4, 6, dtype=torch.float64)
    want, run = function(x), compiled(function, "eager")
    torch.testing.assert_close(run(x), want)
    with torch.no_grad():
        torch.testing.assert_close(run(x.clone().requires_grad_()), want)
    with torch.inference_mode():
        torch.testing.assert_close(run(x), want)
    program = torch.export.export(Module(function), (x,), strict=True)
    torch.testing.assert_close(program.module()(x), want)
    both = []
    for each in (function, run):
        z = x.clone().requires_grad_()
        y = each(z)
        assert y.requires_grad
        both.append(torch.autograd.grad(y, z, torch.linspace(-1, 1, y.numel()).view_as(y).to(y)))
    torch.testing.assert_close(*both)


class Uneven(manualnn.Function):
    """Its two gradients differ, so that one in the other's place, or one counted twice, shows."""

    surrogate = "the second input's gradient is seven times too large, the first one's five times"

    @staticmethod
    def forward(x, y):
        return x.sin() * y

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx, d):
        x, y = ctx.saved_tensors
        return 5 * d * y * x.cos(), 7 * d * x.sin()

    @staticmethod
    def jvp(ctx, dx, dy):
        x, y = ctx.saved_tensors
        return 5 * dx * y * x.cos() + 7 * dy * x.sin()


# What takes one tensor in several places: ours, what computes the same, and the tensor's shape.
TWICE = {
    "attention": (
        lambda t: f.scaled_dot_product_attention(t, t, t),
        lambda t: F.scaled_dot_product_attention(t, t, t),
        (2, 2, 4, 6),
    ),
    "of a computed one": (
        lambda t: (lambda s: f.scaled_dot_product_attention(s, t, s))(t.sin()),
        lambda t: (lambda s: F.scaled_dot_product_attention(s, t, s))(t.sin()),
        (2, 2, 4, 6),
    ),
    "cross entropy": (
        lambda t: f.cross_entropy(t, t),
        lambda t: F.cross_entropy(t, t),
        (3, 4),
    ),
    "convolution": (lambda t: f.conv2d(t, t), lambda t: F.conv2d(t, t), (3, 3, 2, 2)),
    "linear": (lambda t: f.linear(t, t), lambda t: F.linear(t, t), (5, 5)),
    "layer norm": (
        lambda t: f.layer_norm(t * 2, (6,), t, t),
        lambda t: F.layer_norm(t * 2, (6,), t, t),
        (6,),
    ),
    "mse": (lambda t: f.mse_loss(t, t), lambda t: F.mse_loss(t, t), (3, 4)),
    "a Function of one's own": (
        lambda t: Uneven.apply(t, t),
        lambda t: 5 * t.sin() * t.detach() + 7 * t.detach().sin() * t - 11 * (t.sin() * t).detach(),
        (3, 4),
    ),
}


@pytest.mark.parametrize(("ours", "theirs", "shape"), TWICE.values(), ids=TWICE)
def test_one_tensor_in_several_places(ours, theirs, shape):
    """torch before 2.13 gives it a wrong gradient, without a word; later ones refuse it."""
    x = torch.randn(shape, dtype=torch.float64)
    found = []
    for function in (theirs, ours, compiled(ours)):
        z = x.clone().requires_grad_()
        out = function(z)
        d_out = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out) + 0.5
        found.append((out.detach(), *torch.autograd.grad(out, z, d_out)))
    want, eager, traced = found
    torch.testing.assert_close(eager, want)
    torch.testing.assert_close(traced, want)


def test_one_tensor_given_to_a_compiled_function_twice():
    run, x = compiled(lambda a, b: Uneven.apply(a, b)), torch.tensor([0.3, 1.0])
    for same in (True, False, True):
        a = x.clone().requires_grad_()
        b = a if same else x.clone().requires_grad_()
        grads = torch.autograd.grad(run(a, b).sum(), [a] if same else [a, b])
        torch.testing.assert_close(sum(grads), 5 * x * x.cos() + 7 * x.sin())


def value(t):
    return Uneven.apply(t, t.cos())


def total(t):
    return value(t).sum()


TRANSFORMS = {
    "grad": grad(total),
    "one tensor twice": grad(lambda t: Uneven.apply(t, t).sum()),
    "vmap of grad": vmap(grad(total)),
    "grad of vmap": grad(lambda t: vmap(value)(t).sum()),
    "grad of grad": grad(lambda t: grad(total)(t).sum()),
    "vjp": lambda t: vjp(total, t)[1](torch.ones(()))[0],
    "jvp": lambda t: jvp(value, (t,), (t,))[1],
    "jacrev": jacrev(value),
    "jacfwd": jacfwd(value),
    "hessian": hessian(total),
    "vmap": vmap(value),
}


@pytest.mark.parametrize("transformed", TRANSFORMS.values(), ids=TRANSFORMS)
def test_torch_func_in_a_compiled_function_keeps_to_the_backward_that_is_written(transformed):
    """torch differentiates forward in its place, which a surrogate is not the derivative of."""
    x = torch.tensor([[0.3, 1.0], [-0.5, 2.0]])
    torch.testing.assert_close(compiled(transformed)(x), transformed(x))


FAMILIES = (
    "MLP multi_head_attention_forward group_norm batch_norm sigmoid threshold glu conv2d max_pool2d avg_pool2d "
    "mse_loss cross_entropy scaled_dot_product_attention linear"
).split()
ONE_OF_EACH = [next(op for op in OPS if op.name == name) for name in FAMILIES]


@pytest.mark.parametrize("op", ONE_OF_EACH, ids=lambda op: op.id)
def test_torch_func_in_a_compiled_function_of_ours(op):
    tensors = sample(op)
    wrt = [i for i, t in enumerate(tensors) if t.is_floating_point()]
    wrt = tuple(i for i in wrt if op.differentiable is None or i in op.differentiable)

    def weighted(function):
        def run(*tensors):
            out = function(*tensors).flatten()
            return (out * torch.linspace(-1, 1, len(out), dtype=out.dtype)).sum()

        return grad(run, argnums=wrt)

    got, want = compiled(weighted(op.ours), "eager")(*tensors), weighted(op.torchs)(*tensors)
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


OUTSIDE = [op for op in OPS if op.name in ("layer_norm", "rms_norm", "prelu", "softmax")]


@pytest.mark.parametrize("op", ONE_OF_EACH + OUTSIDE, ids=lambda op: op.id)
@pytest.mark.one_in(3)
def test_torch_func_of_a_compiled_function_of_ours(op):
    """The transform is outside: Dynamo must not compile the parts of the face that the graph calls."""
    tensors = tuple(t.detach() for t in sample(op))
    wrt = [i for i, t in enumerate(tensors) if t.is_floating_point()]
    wrt = [i for i in wrt if op.differentiable is None or i in op.differentiable]
    tangents = tuple(tensors[i].cos() for i in wrt)

    def of(function):
        if (
            function is op.ours
        ):  # not as one graph: Dynamo cannot look into what a transform has wrapped
            function = torch.compile(function, backend="eager")

        def run(*inputs):
            given = dict(zip(wrt, inputs, strict=True))
            return function(*(given.get(i, t) for i, t in enumerate(tensors)))

        return run

    inputs = tuple(tensors[i] for i in wrt)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        got, want = (jvp(of(function), inputs, tangents) for function in (op.ours, op.torchs))
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("op", ONE_OF_EACH, ids=lambda op: op.id)
def test_forward_mode_in_a_compiled_function_of_ours(op):
    """A compiled graph enters the level behind the back of torch.autograd.forward_ad."""
    tensors = sample(op)
    wrt = [i for i, t in enumerate(tensors) if t.is_floating_point()]
    wrt = [i for i in wrt if op.differentiable is None or i in op.differentiable]
    tangents = tuple(tensors[i].cos() for i in wrt)

    def of(function):
        def run(*inputs):
            given = dict(zip(wrt, inputs, strict=True))
            return function(*(given.get(i, t) for i, t in enumerate(tensors)))

        return lambda *inputs: jvp(run, inputs, tangents)

    inputs = tuple(tensors[i] for i in wrt)
    with torch.nn.attention.sdpa_kernel(
        torch.nn.attention.SDPBackend.MATH
    ):  # torch's flash has none
        want = of(op.torchs)(*inputs)
    got = compiled(of(op.ours), "eager")(*inputs)
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


class Detached(manualnn.Function):
    """Its forward hides what it does from autograd: only backward knows the derivative."""

    @staticmethod
    def forward(x):
        with torch.no_grad():
            return x.detach().square()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, d):
        return 2 * d * ctx.saved_tensors[0]


def test_torch_func_in_a_compiled_function_of_a_forward_that_detaches():
    x = torch.tensor([0.3, 1.0])
    got = compiled(grad(lambda t: Detached.apply(t).sum()))(x)
    torch.testing.assert_close(got, 2 * x)


class Doubled(Detached):
    """Changes nothing but backward."""

    @staticmethod
    def backward(ctx, d):
        return 4 * d * ctx.saved_tensors[0]


def test_a_subclass_that_changes_only_backward():
    x = torch.tensor([0.3, 1.0])
    for apply in (Doubled.apply, compiled(Doubled.apply)):
        z = x.clone().requires_grad_()
        torch.testing.assert_close(torch.autograd.grad(apply(z).sum(), z)[0], 4 * x)
    torch.testing.assert_close(grad(lambda t: Doubled.apply(t).sum())(x), 4 * x)
