"""What a saved tensor is, in words: of which kind, and why backward wants it."""

import re

import torch

from manualnn.ops import activations

# The kinds of which a picture is made, in its order; how a kind is called; the ops that are of it.
KINDS = {
    "attention": ("attention", r"attention"),
    "convolution": ("convolution", r"conv"),
    "product": ("matrix product", r"linear|addmm|^mm$|bmm|matmul|addmv|^mv$|^dot$|^network$"),
    "norm": ("norm", r"norm"),
    "pooling": ("pooling", r"pool"),
    "dropout": ("dropout", r"dropout|stochasticdepth|bernoulli"),
    "activation": (
        "activation",
        "|".join({name.lower() for name in activations.__all__}),
    ),
    "loss": ("loss", r"loss|entropy"),
    "other": ("operation", r""),
}
WEIGHT = "weight"
SHORT = {torch.bfloat16: "bfloat16", torch.float16: "float16", torch.float32: "float32"}


def kind_of(op):
    name = op.lower().replace("_", "")
    return next(kind for kind, (_, pattern) in KINDS.items() if re.search(pattern, name))


def reason(op, t, made=None, name=""):
    """(kind, why) of a tensor that ``op`` saved.

    made: the Made of its storage, or None; name: what torch's node calls it, or "".
    """
    kind = kind_of(op)
    word = KINDS[kind][0] if kind != "other" else op
    if made is not None and made.of_parameter:
        return (
            WEIGHT,
            f"weight in {SHORT.get(t.dtype, t.dtype)}" if t.ndim > 1 else "copy of a parameter",
        )
    if t.dtype == torch.uint8:
        return kind, "positions, a byte a window" if kind == "pooling" else "mask, a bit an element"
    if t.dtype == torch.bool:
        return kind, "mask, a byte an element"
    if t.dtype == torch.int64:
        return kind, "positions, 8 bytes a window" if kind == "pooling" else "indices"
    if made is not None and made.random:
        return "dropout", f"mask in {SHORT.get(t.dtype, t.dtype)}"
    if kind == "norm" and (
        t.ndim < 2 or t.shape[-1] == 1 or (t.ndim == 2 and "group" in op.lower())
    ):
        return kind, "statistics of the norm"
    if kind == "attention":
        if name == "logsumexp" or t.ndim == 3 and t.dtype == torch.float32:
            return kind, "log-sum-exp of the attention"
        own = made is not None and "attention" in made.op
        return kind, "output of the attention" if own else "query, key or value of the attention"
    if name == "weight" or name == "mat2" and kind == "product":
        return kind, f"weight of the {word}"
    if kind == "activation" and made is not None and kind_of(made.op) == "activation":
        return kind, f"output of the {word}"
    return kind, f"input of the {word}" if kind != "other" else f"read by {op}"
