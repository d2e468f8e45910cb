"""Rows of the registry: matrix product, embedding, attention."""

import math
from dataclasses import replace
from functools import partial

import torch
from op import Op, classes, inputs, normal, pair, row
from ops_examples import attention

from manualnn.functional.products import matmul


def _product(option, *shapes, batch=(), keeps_inputs=False):
    make = inputs(*(normal(*shape, scale=1.0) for shape in shapes))
    op = Op("matmul", option, matmul, torch.matmul, make, batch=batch)
    return replace(op, keeps_inputs=keeps_inputs)


PRODUCTS = [
    _product("vectors", (3,), (3,)),
    _product("matrices", (2, 3), (3, 4), batch=(0,)),
    _product("matrix,vector", (2, 3), (3,), batch=(0,)),
    _product("vector,matrix", (3,), (3, 2)),
    _product("stack,matrix", (2, 2, 3), (3, 2), batch=(0,)),
    _product("stack,vector", (2, 2, 3), (3,), batch=(0,)),
    _product("matrix,stack", (2, 3), (2, 3, 2), batch=(1,)),
    _product("vector,stack", (3,), (2, 3, 2), batch=(1,)),
    _product("stacks", (2, 2, 2, 3), (2, 2, 3, 2), batch=(0, 1)),
    _product("one,stack", (1, 2, 3), (2, 3, 2)),
    _product("broadcast", (2, 1, 2, 3), (2, 3, 2), batch=(0,), keeps_inputs=True),
]


def _once(n, *shape):
    """Every place another row: where a row is taken twice, some options are no true derivative."""
    return lambda dtype: torch.randperm(n)[: math.prod(shape)].view(shape)


def _embedding(option, indices, batch=(0,), **options):
    op = pair("embedding", option, inputs(indices, normal(6, 3)), batch=batch, **options)
    return replace(op, parameters=(1,))


EMBEDDINGS = [
    _embedding("one", classes(high=6), batch=()),
    _embedding("padding_idx", classes(2, 3, high=5), padding_idx=-1),
    _embedding("scale_grad_by_freq", _once(6, 2, 2), scale_grad_by_freq=True),
]


def _attention(option, *shapes, mask=None, batch=(0, 1, 2), differentiable=None, **options):
    makers = [normal(*shape, scale=1.0) for shape in shapes] + ([mask] if mask else [])
    exact = None if "dropout_p" in options else partial(attention, **options)
    random = "dropout_p" in options
    name = "scaled_dot_product_attention"
    op = pair(name, option, inputs(*makers), batch, (), random, exact=exact, **options)
    # Where the fused kernel does not serve, torch keeps q and k multiplied by a factor.
    fused = option.startswith("flash") and option not in ("flash,numbers", "flash,heads")
    return replace(op, differentiable=differentiable, keeps_inputs=not fused)


def _rows(*shape):
    """Truth values, a row of them without any True."""

    def make(dtype):
        mask = torch.arange(math.prod(shape)).view(shape) % 3 < 2
        mask[..., 0, :] = False
        return mask

    return make


Q, K = (2, 1, 2, 2), (2, 1, 3, 2)
FROZEN = {"differentiable": (0, 1, 2)}
ATTENTION = [
    _attention("flash,causal,scale", Q, K, K, is_causal=True, scale=0.4),
    _attention("flash,truths", Q, K, K, mask=_rows(2, 3), **FROZEN),
    _attention("flash,numbers", Q, K, K, mask=normal(2, 1, 2, 3), batch=(0, 1, 2, 3), **FROZEN),
    _attention("flash,heads", (1, 4, 2, 2), (1, 2, 3, 2), (1, 1, 3, 2), enable_gqa=True),
    _attention("flash,unbatched", (2, 2, 2), (2, 3, 2), (2, 3, 2), batch=()),
    _attention("matrices", (2, 2), (3, 2), (3, 3), batch=()),
    _attention("matrices,causal", (3, 2), (3, 2), (3, 2), batch=(), is_causal=True),
    _attention("learned mask", Q, K, K, mask=normal(2, 3)),
    _attention("values of another width", Q, K, (2, 1, 3, 3), mask=_rows(2, 3), **FROZEN),
    _attention("five dimensions", (1, 2, *Q[1:]), (1, 2, *K[1:]), (1, 2, *K[1:]), batch=()),
    _attention("dropout", Q, K, K, dropout_p=0.4),
    _attention(
        "dropout,learned mask,heads",
        (1, 2, 2, 2),
        (1, 1, 3, 2),
        (1, 1, 3, 2),
        mask=normal(1, 1, 1, 3),
        batch=(),
        dropout_p=0.4,
        enable_gqa=True,
    ),
]


def _multi_head(M, x, k, W, b, W_out, b_out, p=0.0, **options):
    z, A = M.multi_head_attention_forward(
        x, k, k, 2, 2, W, b, None, None, False, p, W_out, b_out, **options
    )
    return z if A is None else torch.cat((z.flatten(), A.flatten()))


def _self(M, x, *weights, **options):
    return _multi_head(M, x, x, *weights, **options)


def _heads(option, call, *shapes, **options):
    """Two heads, each one wide."""
    makers = [normal(*s, scale=0.7) for s in (*shapes, (6, 2), (6,), (2, 2), (2,))]
    name, n = "multi_head_attention_forward", len(shapes)
    op = row(name, option, partial(call, **options), inputs(*makers), ())
    # Without weights torch takes its fused kernel; with them it computes the same of plain products.
    exact = None if options.get("need_weights", True) else partial(op.torchs, need_weights=True)
    if exact is not None:
        exact = partial(_first, exact, math.prod(shapes[0]), shapes[0])
    random = "p" in options
    return replace(op, parameters=(n, n + 1, n + 2, n + 3), exact=exact, random=random)


def _first(function, number, shape, *tensors):
    return function(*tensors)[:number].view(shape)


MULTI_HEAD = [
    _heads("self", _self, (2, 1, 2), need_weights=False),
    _heads("self,weights", _self, (2, 1, 2)),
    _heads("self,unbatched,a matrix a head", _self, (2, 2), average_attn_weights=False),
    _heads("cross,dropout", _multi_head, (1, 2, 2), (2, 2, 2), p=0.4, need_weights=False),
    _heads("cross,dropout,weights", _multi_head, (1, 2, 2), (2, 2, 2), p=0.4),
]
ROWS = PRODUCTS + EMBEDDINGS + ATTENTION + MULTI_HEAD
