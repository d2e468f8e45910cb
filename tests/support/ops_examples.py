"""Rows of the examples that the ops themselves state; of torch's side of some of them there is more to say."""

import inspect
from functools import partial

import torch
from op import Op
from torch.nn import functional as TF

from manualnn import functional as F
from manualnn.ops.catalogue import elementwise, families


def celu(z, alpha=1.0):
    return torch.where(z > 0, z, alpha * torch.expm1(z / alpha))


def hardsigmoid(z):
    return (z + 3).clamp(0, 6) / 6


def normalized(mean, shape, eps=1e-5, centred=True):
    """The norm in elementary steps: what torch's kernels differentiate once and twice, and no further.

    Their double backward reads mu and rstd without their way to x: of a third derivative batch_norm says so,
    layer_norm gives a wrong one.
    """

    def exact(x, gamma=None, beta=None):
        xhat = x - x.mean(mean, keepdim=True) if centred else x
        xhat = xhat / (xhat.square().mean(mean, keepdim=True) + eps).sqrt()
        y = xhat if gamma is None else xhat * gamma.reshape(shape)
        return y if beta is None else y + beta.reshape(shape)

    return exact


def attention(q, k, v, M=None, is_causal=False, scale=None, enable_gqa=False):
    """Of elementary operations: torch's fused kernel has no second derivative and no forward mode."""
    if enable_gqa:
        k, v = (t.repeat_interleave(q.shape[-3] // t.shape[-3], -3) for t in (k, v))
    S = q @ k.mT * (q.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        M = S.new_ones(S.shape[-2:], dtype=torch.bool).tril()
    if M is not None and M.dtype is torch.bool:
        M = torch.zeros_like(M, dtype=S.dtype).masked_fill(~M, float("-inf"))
    S = S if M is None else S + M
    nothing = (S == float("-inf")).all(-1, keepdim=True)
    A = torch.softmax(torch.where(nothing, torch.zeros_like(S), S), -1)
    return torch.where(nothing, torch.zeros_like(A), A) @ v


# By the row's name, and by its label: what is said of torch's side, or of how it is called.
SPECIAL = {
    "celu": {"exact": celu, "torch_off": 1e6},
    "hardsigmoid": {"exact": hardsigmoid, "torch_off": 1e6},
    "embedding": {"parameters": (1,)},
    "batch_norm": {"exact": normalized((0, 2), (3, 1))},
    "batch_norm-eval": {"exact": None, "differentiable": (0, 3, 4)},
    "instance_norm": {"exact": normalized((2, 3), (3, 1, 1)), "batch": ()},  # torch's refuses none
    "layer_norm": {"exact": normalized((-2, -1), (3, 2))},
    "rms_norm": {
        "exact": normalized((-1,), (2,), 2**-52, centred=False),
        "keeps_inputs": True,  # torch keeps xhat in the place of x, where gamma multiplies it
    },
    "scaled_dot_product_attention": {"exact": attention, "keeps_inputs": True},
}


def row_of(op, example, inplace=False):
    name = example.function or op.twin.function
    options = {k: v for k, v in example.options.items() if k != "inplace"}
    ours, torchs = getattr(F, name), getattr(TF, name)
    if inplace:
        ours, torchs = partial(_inplace, ours), partial(_inplace, torchs)
    label = example.label or ",".join(f"{k}={v}" for k, v in options.items())
    label = (label + ",inplace" if inplace else label).strip(",")
    make, (ours, torchs) = tensors_alone(example.inputs, ours, torchs)
    special = {**SPECIAL.get(name, {}), **SPECIAL.get(f"{name}-{label}", {})}
    if special.get("exact") is not None and options and op in elementwise():
        special["exact"] = partial(special["exact"], **options)
    return Op(
        name,
        label,
        partial(ours, **options),
        partial(torchs, **options),
        make,
        example.kinks,
        pointwise=op in elementwise(),
        **{"batch": example.batch, "random": example.random, **special},
    )


def tensors_alone(make, *functions):
    """Inputs and functions of the tensors among them; what is no tensor is the same in each call."""
    made = make(torch.float64)
    places = [i for i, value in enumerate(made) if isinstance(value, torch.Tensor)]
    if len(places) == len(made):
        return make, functions

    def filled(function, *tensors, **options):
        given = list(made)
        for place, tensor in zip(places, tensors, strict=True):
            given[place] = tensor
        return function(*given, **options)

    return lambda dtype: tuple(make(dtype)[i] for i in places), [
        partial(filled, function) for function in functions
    ]


def rows_of(op):
    """A row an example; of an elementwise op that can be in place, and has no such example, one more."""
    examples = [e for e in op.examples if e.has_twin]
    rows = [row_of(op, e, e.options.get("inplace", False)) for e in examples]
    can_be = "inplace" in inspect.signature(getattr(F, op.twin.function)).parameters
    if op in elementwise() and can_be and not any("inplace" in e.options for e in examples):
        rows.append(row_of(op, examples[0], inplace=True))
    return rows


def _inplace(function, z, **options):
    return function(z * 1, **options, inplace=True)


STATED = [op for ops in families().values() for op in ops]
ROWS = [
    row
    for op in [*elementwise(), *(op for op in STATED if op not in elementwise())]
    for row in rows_of(op)
]
