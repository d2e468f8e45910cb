"""Wrong Functions, one a kind of fault, for the checker to find and to name.

FAULTS: name -> (target, inputs, options of check, the line that must not pass, words of its diagnosis).
"""

import torch
from torch.nn import functional as TF

from manualnn import Activation, Function

torch.manual_seed(0)
x, W, b = torch.randn(4, 3), torch.randn(5, 3), torch.randn(5)
square = torch.randn(4, 4)
z = torch.randn(4, 6) * 2
numeric, second = "backward against central differences", "second backward"


def product(x, W, b):
    return TF.linear(x, W, b)


def linear(backward, forward=product, jvp=None, keep=None):
    """A linear layer, right but for what is given."""

    class Linear(Function):
        @staticmethod
        def setup_context(ctx, inputs, output):
            x, W, _ = inputs
            ctx.save_for_backward(*(keep(x, W) if keep else (x, W)))
            ctx.save_for_forward(x, W)

    def right_jvp(ctx, x_dot, W_dot, b_dot):
        x, W = ctx.saved_tensors
        zero = torch.zeros(len(x), len(W), dtype=x.dtype)
        for term in (
            None if x_dot is None else x_dot @ W.T,
            None if W_dot is None else x @ W_dot.T,
            b_dot,
        ):
            zero = zero if term is None else zero + term
        return zero

    namespace = {
        "forward": staticmethod(forward),
        "setup_context": staticmethod(Linear.setup_context),
        "backward": staticmethod(backward),
        "jvp": staticmethod(jvp or right_jvp),
    }
    return type("Linear", (Function,), namespace)


def right(ctx, dz):
    x, W = ctx.saved_tensors
    return dz @ W, dz.T @ x, dz.sum(0)


def old_style(forward, backward):
    """An autograd.Function in the older style, as most people's are."""
    methods = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
    return type("Own", (torch.autograd.Function,), methods)


def activation(**formulas):
    tanh = {"g": lambda z: torch.tanh(z), "g_prime_a": lambda a: 1 - a * a}
    return type("Tanh", (Activation,), tanh | formulas)


def changed(dx=1.0, dW=1.0, db=1.0):
    """The right backward, its gradients multiplied."""

    def backward(ctx, dz):
        grads = right(ctx, dz)
        return tuple(g * factor for g, factor in zip(grads, (dx, dW, db), strict=True))

    return linear(backward)


def transposed(ctx, dz):
    x, W = ctx.saved_tensors
    return dz @ W, (dz.T @ x).T.contiguous(), dz.sum(0)


def no_db(ctx, dz):
    x, W = ctx.saved_tensors
    return dz @ W, dz.T @ x, None


def db_over_examples(ctx, dz):
    x, W = ctx.saved_tensors
    return dz @ W, dz.T @ x, dz.sum(1)


def db_over_everything(ctx, dz):
    x, W = ctx.saved_tensors
    return dz @ W, dz.T @ x, dz.sum(tuple(range(dz.dim() - 1)) if dz.dim() > 2 else ()).expand(5)


def needs_misread(ctx, dz):
    x, W = ctx.saved_tensors
    grads = dz @ W, dz.T @ x, dz.sum(0)
    return grads if all(ctx.needs_input_grad) else (grads[0], None, None)


def silu_without_second_term(z):
    return torch.sigmoid(z)


class SavedWithoutHistory(Function):
    """tanh² whose backward reads tanh z, an intermediate that was saved as a plain tensor."""

    @staticmethod
    def forward(z):
        t = torch.tanh(z)
        return t * t, t

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(inputs[0], output[1])

    @staticmethod
    def backward(ctx, da, _):
        _, t = ctx.saved_tensors
        return da * 2 * t * (1 - t * t)


def _store_on_ctx(ctx, z):
    ctx.a = torch.tanh(z)
    return ctx.a


def _store_input_on_ctx(ctx, z):
    ctx.z = z
    return torch.tanh(z)


def _save(ctx, z):
    a = torch.tanh(z)
    ctx.save_for_backward(a)
    return a


def _tanh_backward(ctx, da):
    (a,) = ctx.saved_tensors
    return da * (1 - a * a)


def _in_place(ctx, z):
    a = z.tanh_()
    ctx.save_for_backward(a.clone())
    return a.clone()


def _drop(ctx, z):
    mask = torch.rand_like(z) < 0.5
    return z * mask * 2


def _drop_again(ctx, da):
    return da * (torch.rand_like(da) < 0.5) * 2


def _once(ctx, da):
    return _tanh_backward(ctx, da)


def _changes_what_was_saved(ctx, da):
    (a,) = ctx.saved_tensors
    slope = a.detach().mul_(a).neg_().add_(1)
    return da * slope


def _float_output(x, W, b):
    return TF.linear(x, W, b).float().to(x.dtype)


FAULTS = {
    "sign": (changed(dx=-1.0), (x, W, b), {}, numeric, "dx has the wrong sign"),
    "divided by the batch twice": (
        changed(dW=0.25),
        (x, W, b),
        {},
        numeric,
        "dW is 4× too small: divided by the batch twice?",
    ),
    "the mean is missing": (changed(dW=4.0), (x, W, b), {}, numeric, "dW is 4× too large"),
    "a factor of 1.0008": (changed(db=1.0008), (x, W, b), {}, numeric, "constant factor of 1.0008"),
    "transposed": (linear(transposed), (x[:, :3], W[:3], b[:3]), {}, numeric, "dW is transposed"),
    "missing gradient": (linear(no_db), (x, W, b), {}, numeric, "db is missing"),
    "db over the wrong dimension": (
        linear(db_over_examples),
        (x, W[:4], b[:4]),
        {},
        numeric,
        "db is summed over the wrong dimension",
    ),
    "db over the wrong dimension, shapes apart": (
        linear(db_over_examples),
        (x, W, b),
        {},
        numeric,
        "invalid gradient at index 2",
    ),
    "db over everything": (
        linear(db_over_everything),
        (x, W, b),
        {},
        numeric,
        "db is summed over all dimensions",
    ),
    "missing term": (
        activation(
            g=lambda z: z * torch.sigmoid(z), g_prime=silu_without_second_term, g_prime_a=None
        ),
        (z,),
        {},
        numeric,
        "a term is missing or wrong",
    ),
    "wrong for negative numbers": (
        activation(
            g=lambda z: torch.where(z > 0, z, 0.2 * z),
            g_prime=lambda z: torch.where(z > 0, 1.0, 0.1),
            g_prime_a=None,
        ),
        (z,),
        {"kinks": (0.0,)},
        numeric,
        "dz is right except where the input is negative",
    ),
    "needs_input_grad misread": (
        linear(needs_misread),
        (x, W, b),
        {},
        "each input alone",
        "needs_input_grad is misread",
    ),
    "history": (SavedWithoutHistory, (z,), {}, second, "saved without its history"),
    "wrong kink": (
        activation(g=lambda z: torch.relu(z), g_prime=lambda z: z >= 0, g_prime_a=None),
        (z,),
        {"kinks": (0.0,), "reference": torch.relu},
        "kinks",
        "right except at kinks: wrong at the kink 0",
    ),
    "wrong kink, no reference": (
        activation(
            g=lambda z: torch.relu(z),
            g_prime=lambda z: torch.where(z == 0, 7.0, (z > 0).to(z.dtype)),
            g_prime_a=None,
        ),
        (z,),
        {"kinks": (0.0,)},
        "kinks",
        "right except at kinks",
    ),
    "NaN swallowed": (
        activation(
            g=lambda z: torch.where(z > 0, z, torch.zeros_like(z)),
            g_prime=lambda z: z > 0,
            g_prime_a=None,
        ),
        (z,),
        {"kinks": (0.0,)},
        "NaN and infinity",
        "a NaN in the input disappears",
    ),
    "infinity": (
        activation(g=lambda z: z * (z > 0), g_prime=lambda z: z > 0, g_prime_a=None),
        (z,),
        {"kinks": (0.0,), "reference": torch.relu},
        "NaN and infinity",
        "for an input of -inf",
    ),
    "computed in float32": (
        activation(g_prime_a=lambda a: (1 - a.float() ** 2).to(a.dtype)),
        (z,),
        {},
        numeric,
        "something inside is computed in float32",
    ),
    "forward rounded": (
        linear(right, _float_output),
        (x, W, b),
        {"reference": TF.linear},
        "forward against the reference",
        "something inside is computed in float32",
    ),
    "dtype of the output": (
        linear(right, lambda x, W, b: TF.linear(x, W, b).double()),
        (x, W, b),
        {},
        "float32",
        "torch.float64",
    ),
    "right in float64 only": (
        activation(
            g=lambda z: torch.tanh(z + 1e4 - 1e4),
            g_prime=lambda z: 1 - torch.tanh(z) ** 2,
            g_prime_a=None,
        ),
        (z,),
        {},
        "float32",
        "right in float64 only",
    ),
    "input changed in place": (
        old_style(_in_place, _tanh_backward),
        (z,),
        {},
        "inputs are left as they were",
        "changed in place by forward",
    ),
    "stored on ctx, stale": (
        old_style(_store_input_on_ctx, lambda ctx, da: da * (1 - torch.tanh(ctx.z) ** 2)),
        (z,),
        {},
        "in-place safety",
        "stored on ctx",
    ),
    "stored on ctx, leaked": (
        old_style(_store_on_ctx, lambda ctx, da: da * (1 - ctx.a * ctx.a)),
        (z,),
        {},
        "leaks",
        "stored on ctx",
    ),
    "mask redrawn": (
        old_style(_drop, _drop_again),
        (z,),
        {},
        "backward draws no random numbers",
        "drawn again in backward",
    ),
    "changes what was saved": (
        linear(lambda ctx, dz: (dz @ ctx.saved_tensors[1].detach().mul_(2) / 2, None, None)),
        (x, W, b),
        {},
        "backward twice",
        "backward changes what was saved for it",
    ),
    "no vmap": (old_style(_save, _tanh_backward), (z,), {}, "vmap", "setup_context"),
    "no forward mode": (
        type(
            "NoJvp",
            (Function,),
            {
                "forward": staticmethod(lambda z: torch.tanh(z)),
                "setup_context": staticmethod(lambda ctx, inputs, a: ctx.save_for_backward(a)),
                "backward": staticmethod(_tanh_backward),
            },
        ),
        (z,),
        {},
        "forward mode",
        "You must implement the jvp",
    ),
    "wrong jvp": (
        linear(right, jvp=lambda ctx, dx, dW, db: dx @ ctx.saved_tensors[1].T),
        (x, W, b),
        {},
        "forward mode",
        "jvp is wrong",
    ),
    "no second backward": (
        old_style(_save, torch.autograd.function.once_differentiable(_once)),
        (z,),
        {},
        second,
        "once_differentiable",
    ),
    "not compiled": (
        linear(right, lambda x, W, b: TF.linear(x, W, b) * (1 if x.sum().item() else 1)),
        (x, W, b),
        {},
        "compile",
        "cannot be compiled in one graph",
    ),
    "under autocast": (
        linear(right),
        (x, W, b),
        {"reference": lambda x, W, b: TF.linear(x, W, b).float()},
        "autocast",
        "backward mixes dtypes",
    ),
    "strides": (
        linear(
            lambda ctx, dz: (
                dz @ ctx.saved_tensors[1],
                torch.as_strided(dz, dz.shape, (dz.shape[1], 1)).T @ ctx.saved_tensors[0],
                dz.sum(0),
            )
        ),
        (x, W, b),
        {},
        "incoming gradient",
        "transposed in memory",
    ),
    "empty batch": (
        linear(right, lambda x, W, b: TF.linear(x, W, b) + 0 * x.max()),
        (x, W, b),
        {"reference": TF.linear},
        "empty batch",
        "an empty batch is refused",
    ),
}
