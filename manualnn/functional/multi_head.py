"""Multi-head attention: attention in several subspaces at once."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as TF

from manualnn._torch import any_autocast, canonical_mask, none_or_dtype
from manualnn.autograd.autocast import autocast
from manualnn.functional.attention import scaled_dot_product_attention
from manualnn.functional.fully_connected import linear
from manualnn.ops.attention import Attention


def multi_head_attention_forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    embed_dim_to_check: int,
    num_heads: int,
    in_proj_weight: Tensor | None,
    in_proj_bias: Tensor | None,
    bias_k: Tensor | None,
    bias_v: Tensor | None,
    add_zero_attn: bool,
    dropout_p: float,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    training: bool = True,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    use_separate_proj_weight: bool = False,
    q_proj_weight: Tensor | None = None,
    k_proj_weight: Tensor | None = None,
    v_proj_weight: Tensor | None = None,
    static_k: Tensor | None = None,
    static_v: Tensor | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Query, key and value projected, attention in num_heads heads, and its output projected.

    query (l, n, e) or (l, e), key, value (t, n, ·) or (t, ·) -> (l, n, e) or (l, e), and with
    need_weights the weights (n, l, t) or (l, t): the mean over the heads, or a matrix a head.
    """
    # Not locals(), and no function below may capture one of them: Dynamo reads neither.
    given: dict[str, Any] = {
        "query": query,
        "key": key,
        "value": value,
        "embed_dim_to_check": embed_dim_to_check,
        "num_heads": num_heads,
        "in_proj_weight": in_proj_weight,
        "in_proj_bias": in_proj_bias,
        "bias_k": bias_k,
        "bias_v": bias_v,
        "add_zero_attn": add_zero_attn,
        "dropout_p": dropout_p,
        "out_proj_weight": out_proj_weight,
        "out_proj_bias": out_proj_bias,
        "training": training,
        "key_padding_mask": key_padding_mask,
        "need_weights": need_weights,
        "attn_mask": attn_mask,
        "use_separate_proj_weight": use_separate_proj_weight,
        "q_proj_weight": q_proj_weight,
        "k_proj_weight": k_proj_weight,
        "v_proj_weight": v_proj_weight,
        "static_k": static_k,
        "static_v": static_v,
        "average_attn_weights": average_attn_weights,
        "is_causal": is_causal,
    }
    if torch.jit.is_tracing() or not _is_ours(**given):
        return TF.multi_head_attention_forward(**given)
    batched = query.dim() == 3
    if not batched:
        query, key, value = (t.unsqueeze(1) for t in (query, key, value))
        if key_padding_mask is not None:
            key_padding_mask = key_padding_mask.unsqueeze(0)
    (l, n, e), h, p = query.shape, num_heads, dropout_p if training else 0.0

    key_padding_mask = canonical_mask(
        key_padding_mask, "key_padding_mask", none_or_dtype(attn_mask), "attn_mask", query.dtype
    )
    is_causal = is_causal and key_padding_mask is None and not need_weights
    attn_mask = canonical_mask(
        None if is_causal else attn_mask, "attn_mask", None, "", query.dtype, check_other=False
    )
    more = int(bias_k is not None) + int(add_zero_attn)
    M = _merged_mask(attn_mask, key_padding_mask, n, h, more)

    # The flash kernel takes q, k and v as they lie in the projection; for products each is apart.
    apart = need_weights or p > 0 or (M is not None and M.requires_grad)
    W = (
        (q_proj_weight, k_proj_weight, v_proj_weight)
        if use_separate_proj_weight
        else in_proj_weight
    )
    q, k, v = _in_projection(query, key, value, W, in_proj_bias, apart)
    if bias_k is not None and bias_v is not None:
        k, v = torch.cat([k, bias_k.repeat(1, n, 1)]), torch.cat([v, bias_v.repeat(1, n, 1)])
    q = _heads(q, h)
    k = _heads(k, h) if static_k is None else static_k.unflatten(0, (n, h))
    v = _heads(v, h) if static_v is None else static_v.unflatten(0, (n, h))
    if add_zero_attn:
        k, v = _zero_added(k), _zero_added(v)

    A = None
    if need_weights:
        o, A = _weights_too(q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1), M, p)
        o = o.transpose(0, 1)
        A = A.unflatten(0, (n, h))
        A = A.mean(dim=1) if average_attn_weights else A
        A = A if batched else A.squeeze(0)
    else:
        if M is not None:
            M = M.unsqueeze(0) if M.shape[0] == 1 else M.unflatten(0, (n, h))
        o = scaled_dot_product_attention(q, k, v, M, p, is_causal).permute(2, 0, 1, 3)
    z = linear(o.reshape(l * n, e), out_proj_weight, out_proj_bias)
    z = z.view(l, n, z.shape[1])
    return z if batched else z.squeeze(1), A


def _weights_too(
    q: Tensor, k: Tensor, v: Tensor, M: Tensor | None, p: float
) -> tuple[Tensor, Tensor]:
    """Attention and its weights, a matrix a head; rounded as torch's composition for this case."""
    q, k, v, M = autocast("baddbmm", q, k, v, M)
    o, A, *dropped = Attention.apply(q, k, v, M, math.sqrt(1 / q.shape[-1]), None, False, float(p))
    return o, dropped[0] if dropped else A


def _in_projection(
    query: Tensor, key: Tensor, value: Tensor, W: Any, b: Any, apart: bool
) -> Sequence[Tensor]:
    """q, k, v (·, n, e), projected by one product where their sources are one tensor and W is one."""
    e, whole = query.shape[-1], isinstance(W, torch.Tensor)
    if whole and query is key is value:
        return _parts(linear(query, W, b), 3, apart)
    if whole and key is value:
        W_q, W_kv = W.split([e, 2 * e])
        b_q, b_kv = (None, None) if b is None else b.split([e, 2 * e])
        q, kv = linear(query, W_q, b_q), linear(key, W_kv, b_kv)
        return [*_parts(q, 1, apart), *_parts(kv, 2, apart)]
    W, b = W.chunk(3) if whole else W, (None,) * 3 if b is None else b.chunk(3)
    each = zip((query, key, value), W, b, strict=True)
    return [_parts(linear(*one), 1, apart)[0] for one in each]


def _parts(z: Tensor, number: int, apart: bool) -> Sequence[Tensor]:
    """The parts of a projection, their gradients gathered in one tensor: views of it, or, apart,
    of a copy in which each is contiguous."""
    if apart and number == 1:
        return [z]
    z = z.unflatten(-1, (number, -1))
    return z.movedim(-2, 0).contiguous().unbind(0) if apart else z.unbind(-2)


def _heads(t: Tensor, h: int) -> Tensor:
    """(l, n, e) -> (n, h, l, e / h)"""
    return t.unflatten(-1, (h, -1)).permute(1, 2, 0, 3)


def _zero_added(t: Tensor) -> Tensor:
    """t (n, h, s, d) with a row of zeros after the last: (n, h, s + 1, d)"""
    n, h, _, d = t.shape
    return torch.cat([t.flatten(0, 1), t.new_zeros(n * h, 1, d)], dim=1).unflatten(0, (n, h))


def _merged_mask(
    attn_mask: Tensor | None, key_padding_mask: Tensor | None, n: int, h: int, more: int
) -> Tensor | None:
    """Both masks as one to add, (1, l, t) or (n h, l or 1, t), with zeros for the keys that are added."""
    if more:
        attn_mask, key_padding_mask = (
            None if m is None else TF.pad(m, (0, more)) for m in (attn_mask, key_padding_mask)
        )
    if attn_mask is not None and attn_mask.dim() == 2:
        attn_mask = attn_mask.unsqueeze(0)
    if key_padding_mask is None:
        return attn_mask
    each = key_padding_mask[:, None, None].expand(-1, h, -1, -1).reshape(n * h, 1, -1)
    return each if attn_mask is None else attn_mask + each


def _is_ours(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    embed_dim_to_check: int,
    num_heads: int,
    in_proj_weight: Tensor | None,
    in_proj_bias: Tensor | None,
    bias_k: Tensor | None,
    bias_v: Tensor | None,
    add_zero_attn: bool,
    dropout_p: float,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    key_padding_mask: Tensor | None,
    need_weights: bool,
    attn_mask: Tensor | None,
    use_separate_proj_weight: bool,
    q_proj_weight: Tensor | None,
    k_proj_weight: Tensor | None,
    v_proj_weight: Tensor | None,
    static_k: Tensor | None,
    static_v: Tensor | None,
    is_causal: bool,
    **_: object,
) -> bool:
    """False for what torch's own refuses, so that it does so in its own words."""
    sources, masks = (query, key, value), (key_padding_mask, attn_mask)
    if any(t.is_nested for t in sources) or not query.dim() == key.dim() == value.dim():
        return False
    if query.dim() not in (2, 3) or any(
        m is not None and not (m.dtype is torch.bool or m.is_floating_point()) for m in masks
    ):
        return False
    if query.device.type != "cpu" and need_weights and any_autocast():
        return False  # elsewhere autocast has a float32 softmax between its products
    n = (query.shape[1],) if query.dim() == 3 else ()
    l, e, h = query.shape[0], query.shape[-1], num_heads
    t = key.shape[0] if static_k is None else static_k.shape[1]
    if key_padding_mask is not None and key_padding_mask.shape != (*n, t):
        return False
    if attn_mask is None:
        if is_causal:
            return False
    elif attn_mask.shape not in ((l, key.shape[0]), (*n, h, l, key.shape[0])[-3:]):
        if not n or attn_mask.shape != (n[0] * h, l, key.shape[0]):
            return False
    if e != embed_dim_to_check or e % h or (bias_k is None) != (bias_v is None):
        return False
    static = [s for s in (static_k, static_v) if s is not None]
    if static and (bias_k is not None or any(_differs(s, (*n, 1)[0] * h, e // h) for s in static)):
        return False
    if not use_separate_proj_weight:
        return key.shape == value.shape and in_proj_weight is not None
    weights = q_proj_weight, k_proj_weight, v_proj_weight
    return key.shape[:-1] == value.shape[:-1] and all(
        W is not None and W.shape == (e, x.shape[-1]) for W, x in zip(weights, sources, strict=True)
    )


def _differs(static: Tensor, heads: int, width: int) -> bool:
    return static.shape[0] != heads or static.shape[2] != width
