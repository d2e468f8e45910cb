"""Attention: a mean of the values, weighted by how well each key answers the query."""

import torch

from manualnn.function import Function, eager, first_order
from manualnn.ops.activations.softmax import softmax_jacobian_product
from manualnn.ops.dropout import as_bools, draw, dropped, keepable
from manualnn.ops.matmul import as_torch, formula, product, summed, way
from manualnn.transforms import forward_mode

flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


class Attention(Function):
    """A = softmax(s q kᵀ + M) by rows,  D = A ∗ r,  o = D v;  r = mask / (1 − p), 1 without dropout
    dv = Dᵀ do;  dA = r ∗ (do vᵀ + dD);  dM = dS = A ∗ (dA − Σ dA ∗ A);  dq = s dS k;  dk = s dSᵀ q
    q (*, l, c), k (*, t, c), v (*, t, d), M to be added to (*, l, t), or None
    -> o (*, l, d), A (*, l, t); with dropout D and the mask as it is kept, too
    Caches A, the mask a bit an element, and what is needed of q, k, v; for dv alone just D. No logits.
    s = s_q s_k, a factor for each operand, or None, as torch rounds them. A row that is −∞ throughout: A is 0
    if ``safe``, else NaN; and M is added after the product, else before it.
    Source: Vaswani et al. 2017, eq. 1; torch.nn.functional.scaled_dot_product_attention
    """

    @staticmethod
    def forward(q, k, v, M, s_q, s_k, safe, p):
        need_q, need_k, need_v, need_M = (t is not None and t.requires_grad for t in (q, k, v, M))
        u, w = scaled(q, s_q), scaled(k.mT, s_k)
        if safe:
            S = product(u, w, way(u, w, need_q, need_k)) if eager() else u @ w
            S = S if M is None else S.add_(M) if eager() else S + M  # M must not widen S
            A = torch._safe_softmax(S, -1) if eager() else safe_softmax(S)
        else:
            S = torch.bmm(u, w) if M is None else torch.baddbmm(M, u, w)
            A = torch.softmax(S, -1)
        if not p:
            return weighted(A, v, need_q or need_k or need_M, need_v), A
        mask = draw(A, p, None)
        D = dropped(A, mask, p)
        return weighted(D, v, need_q or need_k or need_M, need_v), A, D, keepable(mask)

    @staticmethod
    def setup_context(ctx, inputs, output):
        q, k, v, M, ctx.s_q, ctx.s_k, _, ctx.p = inputs
        A, mask = output[1], output[3] if ctx.p else None
        if mask is not None:
            ctx.mark_non_differentiable(mask)
        ctx.set_materialize_grads(False)
        need_q, need_k, need_v, need_M = ctx.needs_input_grad[:4]
        need_A = need_q or need_k or need_M
        ctx.shapes = q.shape, k.mT.shape, v.shape, M if M is None else M.shape
        if eager():
            ctx.ways = way(q, k.mT, need_q, need_k), way(A, v, need_A, need_v)
        if need_A:
            kept = q if need_k else None, k if need_q else None, v, A, mask
        else:
            kept = None, None, None, output[2 if ctx.p else 1] if need_v else None, None
        ctx.save_for_backward(*kept)
        if forward_mode():
            ctx.save_for_forward(q, k, v, A, mask)

    @staticmethod
    def backward(ctx, do, dA=None, dD=None, _=None):
        q, k, v, A, mask = ctx.saved_tensors
        of_q, of_k, of_v, of_M = ctx.shapes
        need_q, need_k, need_v, need_M = ctx.needs_input_grad[:4]
        dq = dk = dv = dM = None
        if do is not None and A is not None:
            D = with_dropout(A, mask, ctx.p) if need_v else None
            from_o, dv = gradients(ctx, 1, do, D, v, (A.shape, of_v))
            dD = from_o if dD is None else dD if from_o is None else dD + from_o
        if dD is not None:
            dD = with_dropout(dD, mask, ctx.p)
            dA = dD if dA is None else dA + dD
        if dA is None or not (need_q or need_k or need_M):
            return None, None, dv, None, None, None, None, None
        dS = through_softmax(dA, A)
        u = scaled(q, ctx.s_q) if need_k else None
        w = scaled(k.mT, ctx.s_k) if need_q else None
        dq, dk = gradients(ctx, 0, dS, u, w, (of_q, of_k))
        dq = scaled(dq, ctx.s_q) if need_q else None
        dk = scaled(dk, ctx.s_k).mT if need_k else None
        dM = summed(dS, of_M) if need_M else None
        return dq, dk, dv, dM, None, None, None, None

    @staticmethod
    def jvp(ctx, dq, dk, dv, dM, *_):
        q, k, v, A, mask = ctx.saved_tensors
        s = ctx.s_q * (1 if ctx.s_k is None else ctx.s_k)
        dS = [] if dM is None else [dM.expand_as(A)]
        if dq is not None:
            dS.append(s * dq @ k.mT)
        if dk is not None:
            dS.append(s * q @ dk.mT)
        D = with_dropout(A, mask, ctx.p)
        do = [] if dv is None else [D @ dv]
        dA, dD = torch.zeros_like(A), torch.zeros_like(A)
        if dS:
            dA = softmax_jacobian_product(sum(dS), A, -1)
            dD = with_dropout(dA, mask, ctx.p)
            do.append(dD @ v)
        return (sum(do), dA, dD, None) if ctx.p else (sum(do), dA)


class FlashAttention(Function):
    """o = softmax(s q kᵀ + M) v, block by block: the weights A are never written down
    dq, dk, dv as of Attention, A = exp(s q kᵀ + M − lse) made again block by block
    q (n, h, l, c), k, v (n, h, t, c), or fewer heads that divide h; M broadcast, or None -> o (n, h, l, c)
    Caches q, k, v, M, o and lse (n, h, l), the logarithm of the sum under each softmax.
    Source: Dao et al. 2022, algorithm 4; torch.nn.functional.scaled_dot_product_attention
    """

    @staticmethod
    def forward(q, k, v, M, causal, s):
        return flash(q, k, v, 0.0, causal, attn_mask=additive(M, q), scale=s)

    @staticmethod
    def setup_context(ctx, inputs, output):
        q, k, v, M, ctx.causal, ctx.s = inputs
        o, lse = output
        ctx.mark_non_differentiable(lse)
        ctx.set_materialize_grads(False)
        if any(ctx.needs_input_grad):
            ctx.save_for_backward(q, k, v, M, o, lse)

    @staticmethod
    def backward(ctx, do, _):
        if do is None:
            return None, None, None, None, None, None
        q, k, v, M, o, lse = ctx.saved_tensors
        if first_order():
            M = additive(M, q)
            d = flash_backward(do, q, k, v, o, lse, 0.0, ctx.causal, attn_mask=M, scale=ctx.s)
        else:
            d = attention_gradients(do, q, k, v, M, ctx.causal, ctx.s)
        d = (t if need else None for t, need in zip(d, ctx.needs_input_grad, strict=False))
        return *d, None, None, None


def attention_gradients(do, q, k, v, M, causal, s):
    """What flash_backward computes, as the formulas of Attention."""
    many = q.shape[-3] // k.shape[-3], q.shape[-3] // v.shape[-3]
    k, v = (t if n == 1 else t.repeat_interleave(n, -3) for t, n in zip((k, v), many, strict=True))
    M = triangle(q, k) if causal else additive(M, q)
    s_q, s_k = factors(q, s)
    _, A = Attention.apply(q, k, v, M, s_q, s_k, True, 0.0)
    dv = A.mT @ do
    dS = softmax_jacobian_product(do @ v.mT, A, -1)
    dq, dk = s_q * s_k * dS @ k, s_q * s_k * dS.mT @ q
    heads = (t.unflatten(-3, (-1, n)).sum(-3) for t, n in zip((dk, dv), many, strict=True))
    return dq, *heads


def factors(q, s):
    """s_q, s_k: the square root of |s| for each operand, s = 1 / √c if it is not given."""
    root = (1 / q.shape[-1] ** 0.5 if s is None else abs(s)) ** 0.5
    return -root if s is not None and s < 0 else root, root


def triangle(q, k):
    """The mask that lets a query see the keys up to its own place."""
    return additive(q.new_ones(q.shape[-2], k.shape[-2], dtype=torch.bool).tril(), q)


def additive(M, q):
    """A mask of truth values as one to add: 0 where True, −∞ where False."""
    if M is None or M.dtype is not torch.bool:
        return M
    return torch.zeros_like(M, dtype=q.dtype).masked_fill(~M, float("-inf"))


def safe_softmax(S):
    nothing = (S == float("-inf")).all(-1, keepdim=True)
    return torch.where(nothing, 0.0, torch.softmax(S, -1))


def scaled(t, s):
    return t if s is None else t * s


def with_dropout(t, mask, p):
    return t if mask is None else dropped(t, as_bools(mask, t.shape), p)


def weighted(D, v, need_D, need_v):
    return product(D, v, way(D, v, need_D, need_v)) if eager() else D @ v


def through_softmax(dA, A):
    """dS = A ∗ (dA − Σ dA ∗ A)"""
    if first_order():
        return torch._softmax_backward_data(dA, A, -1, A.dtype)
    return softmax_jacobian_product(dA, A, -1)


def gradients(ctx, which, dC, A, B, shapes):
    """Of the product A B: dA where B is given, dB where A is."""
    if first_order() and eager():
        return as_torch(dC, A, B, shapes, ctx.ways[which])
    return formula(dC, A, B, shapes)
