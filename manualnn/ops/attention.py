"""Attention: a mean of the values, weighted by how well each key answers the query."""

import torch

from manualnn._torch import (
    flash_attention,
    flash_attention_backward,
    safe_softmax_kernel,
    softmax_backward,
)
from manualnn.autograd.examples import Example, Twin, inputs, normal
from manualnn.autograd.function import Function
from manualnn.autograd.masks import as_bools, draw, dropped, keepable
from manualnn.ops.activations.softmax import Softmax
from manualnn.ops.products import summed
from manualnn.ops.products_order import gradients as by_order
from manualnn.ops.products_order import product, way


class Attention(Function):
    """A = softmax(s q kᵀ + M) by rows,  D = A ∗ r,  o = D v;  r = mask / (1 − p), 1 without dropout
    dv = Dᵀ do;  dA = r ∗ (do vᵀ + dD);  dM = dS = A ∗ (dA − Σ dA ∗ A);  dq = s dS k;  dk = s dSᵀ q
    q (*, l, c), k (*, t, c), v (*, t, d), M to be added to (*, l, t), or None
    -> o (*, l, d), A (*, l, t); with dropout D and the mask as it is saved, too
    Caches A, the mask a bit an element, and what is needed of q, k, v; for dv alone just D. No logits.
    s = s_q s_k, a factor for each operand, or None, as torch rounds them. A row that is −∞ throughout: A is 0
    if ``safe``, else NaN; and M is added after the product, else before it.
    Source: Vaswani et al. 2017, eq. 1; torch.nn.functional.scaled_dot_product_attention
    """

    twin = Twin("scaled_dot_product_attention", "MultiheadAttention")
    _qkv = normal(2, 2, 3, 4), normal(2, 2, 5, 4), normal(2, 2, 5, 4)
    examples = (
        Example(inputs(*_qkv), batch=(0, 1, 2)),
        Example(inputs(*_qkv, normal(3, 5)), label="mask", batch=(0, 1, 2)),
    )

    outputs = 3

    @staticmethod
    def forward(q, k, v, M, s_q, s_k, safe, p):
        u, w = scaled(q, s_q), scaled(k.mT, s_k)
        if safe:
            S = u @ w
            A = safe_softmax(S if M is None else S + M)
        else:
            S = torch.bmm(u, w) if M is None else torch.baddbmm(M, u, w)
            A = torch.softmax(S, -1)
        if not p:
            return A @ v, A
        mask = draw(A, p)
        D = dropped(A, mask, p)
        return D @ v, A, D, keepable(mask)

    @staticmethod
    def save(needs, output, q, k, v, M, s_q, s_k, safe, p):
        shapes = q.shape, k.shape, v.shape, None if M is None else M.shape
        if not (needs.q or needs.k or needs.M):
            D = output[2 if p else 1] if needs.v else None
            return (None, None, None, D, None), (s_q, s_k, p, shapes)
        mask = output[3] if p else None
        saved = q if needs.k else None, k if needs.q else None, v, output[1], mask
        return saved, (s_q, s_k, p, shapes)

    @staticmethod
    def gradients(needs, do, dA, dD, q, k, v, A, mask, s_q, s_k, p, shapes):
        of_q, of_k, of_v, of_M = shapes
        need_A = needs.q or needs.k or needs.M
        dq = dk = dv = dM = None
        if do is not None:
            if needs.v:
                D = with_dropout(A, mask, p) if need_A else A
                dv = summed(D.mH @ do, of_v)
            if need_A:
                dD = plus(dD, summed(do @ v.mH, A.shape))
        if not need_A:
            return dq, dk, dv, dM
        if dD is not None:
            dA = plus(dA, with_dropout(dD, mask, p))
        if dA is None:
            return dq, dk, dv, dM
        dS = Softmax.gradients(None, dA, A, -1)
        if needs.q:
            dq = scaled(summed(dS @ scaled(k.mT, s_k).mH, of_q), s_q)
        if needs.k:
            dk = summed(scaled(q, s_q).mH @ dS, of_k[:-2] + (of_k[-1], of_k[-2]))
            dk = scaled(dk, s_k).mT
        if needs.M:
            dM = summed(dS, of_M)
        return dq, dk, dv, dM

    @staticmethod
    def tangent(step, q, k, v, A, mask, s_q, s_k, p, shapes):
        s = s_q * (1 if s_k is None else s_k)
        dS = [] if step.M is None else [step.M.expand_as(A)]
        if step.q is not None:
            dS.append(s * step.q @ k.mT)
        if step.k is not None:
            dS.append(s * q @ step.k.mT)
        D = with_dropout(A, mask, p)
        do = [] if step.v is None else [D @ step.v]
        dA, dD = torch.zeros_like(A), torch.zeros_like(A)
        if dS:
            dA = Softmax.gradients(None, sum(dS), A, -1)
            dD = with_dropout(dA, mask, p)
            do.append(dD @ v)
        return (sum(do), dA, dD) if p else (sum(do), dA)

    # --- The same products in the order of torch's own, so that they round alike ---

    @staticmethod
    def kernel_forward(q, k, v, M, s_q, s_k, safe, p):
        need_q, need_k, need_v, need_M = (t is not None and t.requires_grad for t in (q, k, v, M))
        need_A = need_q or need_k or need_M
        u, w = scaled(q, s_q), scaled(k.mT, s_k)
        if safe:
            S = product(u, w, way(u, w, need_q, need_k))
            A = safe_softmax_kernel(S if M is None else S.add_(M), -1)  # M must not widen S
        else:
            S = torch.bmm(u, w) if M is None else torch.baddbmm(M, u, w)
            A = torch.softmax(S, -1)
        if not p:
            return product(A, v, way(A, v, need_A, need_v)), A
        mask = draw(A, p)
        D = dropped(A, mask, p)
        return product(D, v, way(D, v, need_A, need_v)), A, D, keepable(mask)

    @staticmethod
    def layout(needs, output, q, k, v, M, *options):
        need_A = needs.q or needs.k or needs.M
        return way(q, k.mT, needs.q, needs.k), way(output[1], v, need_A, needs.v)

    @staticmethod
    def kernel_gradients(needs, do, dA, dD, q, k, v, A, mask, s_q, s_k, p, shapes, of_S, of_o):
        of_q, of_k, of_v, of_M = shapes
        need_A = needs.q or needs.k or needs.M
        dq = dk = dv = dM = None
        if do is not None and need_A:
            D = with_dropout(A, mask, p) if needs.v else None
            from_o, dv = by_order(do, D, v, A.shape, of_v, of_o)
            dD = plus(dD, from_o)
        elif do is not None:
            _, dv = by_order(do, A, None, A.shape, of_v, of_o)
        if not need_A:
            return dq, dk, dv, dM
        if dD is not None:
            dA = plus(dA, with_dropout(dD, mask, p))
        if dA is None:
            return dq, dk, dv, dM
        dS = softmax_backward(dA, A, -1, A.dtype)
        u = scaled(q, s_q) if needs.k else None
        w = scaled(k.mT, s_k) if needs.q else None
        of_kT = of_k[:-2] + (of_k[-1], of_k[-2])
        dq, dk = by_order(dS, u, w, of_q, of_kT, of_S)
        dq = scaled(dq, s_q) if needs.q else None
        dk = scaled(dk, s_k).mT if needs.k else None
        dM = summed(dS, of_M) if needs.M else None
        return dq, dk, dv, dM


class FlashAttention(Function):
    """o = softmax(s q kᵀ + M) v, block by block: the weights A are never written down
    dq, dk, dv as of Attention, A = exp(s q kᵀ + M − lse) recomputed block by block
    q (n, h, l, c), k, v (n, h, t, c), or fewer heads that divide h; M broadcast, or None -> o (n, h, l, c)
    Caches q, k, v, M, o and lse (n, h, l), the logarithm of the sum under each softmax.
    Source: Dao et al. 2022, algorithm 4; torch.nn.functional.scaled_dot_product_attention
    """

    outputs = 1

    @staticmethod
    def forward(q, k, v, M, causal, s):
        return flash_attention(q, k, v, 0.0, causal, attn_mask=additive(M, q), scale=s)

    @staticmethod
    def save(needs, output, q, k, v, M, causal, s):
        return (q, k, v, M, *output), (causal, s)

    @staticmethod
    def gradients(needs, do, q, k, v, M, o, lse, causal, s):
        many = q.shape[-3] // k.shape[-3], q.shape[-3] // v.shape[-3]
        k, v = (
            t if n == 1 else t.repeat_interleave(n, -3) for t, n in zip((k, v), many, strict=True)
        )
        M = triangle(q, k) if causal else additive(M, q)
        s_q, s_k = factors(q, s)
        _, A = Attention.apply(q, k, v, M, s_q, s_k, True, 0.0)
        dv = A.mT @ do
        dS = Softmax.gradients(None, do @ v.mT, A, -1)
        dq, dk = s_q * s_k * dS @ k, s_q * s_k * dS.mT @ q
        dk, dv = (t.unflatten(-3, (-1, n)).sum(-3) for t, n in zip((dk, dv), many, strict=True))
        return dq if needs.q else None, dk if needs.k else None, dv if needs.v else None

    @staticmethod
    def kernel_gradients(needs, do, q, k, v, M, o, lse, causal, s):
        M = additive(M, q)
        grads = flash_attention_backward(do, q, k, v, o, lse, 0.0, causal, attn_mask=M, scale=s)
        return tuple(d if need else None for d, need in zip(grads, needs, strict=False))


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


def plus(one, other):
    """The sum of those that are there."""
    return other if one is None else one if other is None else one + other
