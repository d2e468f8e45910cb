"""Attention."""

import torch
from torch import Tensor
from torch.nn import functional as TF

from manualnn._torch import any_autocast, attention_choice, transforms_active
from manualnn.autograd.autocast import autocast
from manualnn.autograd.moment import eager, forward_mode
from manualnn.functional.names import number, require_tensor
from manualnn.ops.attention import Attention, FlashAttention, additive, factors, triangle

FLASH = 1  # torch.nn.attention.SDPBackend.FLASH_ATTENTION


def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """softmax(q kᵀ / √d + mask) v. query (*, l, d), key (*, t, d), value (*, t, e) -> (*, l, e).

    attn_mask: broadcast to (*, l, t); True where a key takes part, or numbers to add. Where torch takes
    its flash kernel of the processor, so does this; on other devices its fused kernels are torch's own,
    backward included.
    """
    operands = {"query": query, "key": key, "value": value}
    for position, (name, operand) in enumerate(operands.items(), 1):
        require_tensor("scaled_dot_product_attention", position, name, operand)
    scale = number("scaled_dot_product_attention", "scale", scale)
    dropout_p = number("scaled_dot_product_attention", "dropout_p", dropout_p)
    q, k, v, M = autocast("scaled_dot_product_attention", query, key, value, attn_mask)
    if not any_autocast():
        return _cast(q, k, v, M, dropout_p, is_causal, scale, enable_gqa)
    with torch.autocast(q.device.type, enabled=False):  # inside, torch computes in float32
        return _cast(q, k, v, M, dropout_p, is_causal, scale, enable_gqa)


def _cast(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    M: Tensor | None,
    dropout_p: float,
    is_causal: bool,
    scale: float | None,
    enable_gqa: bool,
) -> Tensor:
    """The operands as autocast gives them."""
    if not _is_ours(q, k, v, M, dropout_p, is_causal, scale, enable_gqa):
        return TF.scaled_dot_product_attention(
            q, k, v, M, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )
    lone = q.dim() == k.dim() == v.dim() == 3  # torch makes it a batch of one
    if lone:
        q, k, v = (t.unsqueeze(0) for t in (q, k, v))
        if M is not None and M.dim() < 4:
            M = M.unsqueeze(0) if M.dim() == 3 else M.expand(1, 1, *(1,) * (2 - M.dim()), *M.shape)
    if _flash_serves(q, k, v, M, dropout_p, is_causal, scale, enable_gqa):
        o = FlashAttention.apply(q, k, v, M, is_causal, scale)[0]
    else:
        o = _attention(q, k, v, M, float(dropout_p), is_causal, scale, enable_gqa)
    return o.squeeze(0) if lone else o


def _attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    M: Tensor | None,
    p: float,
    is_causal: bool,
    scale: float | None,
    enable_gqa: bool,
) -> Tensor:
    """As torch.nn.functional's composition of elementary operations; low precision in float32."""
    dtype = q.dtype
    if dtype in (torch.float16, torch.bfloat16) and not _reduces_in_half():
        q, k, v = q.float(), k.float(), v.float()
    M = triangle(q, k) if is_causal else additive(M, q)
    if enable_gqa and not q.shape[-3] == k.shape[-3] == v.shape[-3]:
        k, v = (t.repeat_interleave(q.shape[-3] // t.shape[-3], -3) for t in (k, v))
    return Attention.apply(q, k, v, M, *factors(q, scale), True, p)[0].to(dtype)


def _reduces_in_half() -> bool:
    return torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed()


def _is_ours(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    M: Tensor | None,
    p: float,
    is_causal: bool,
    scale: float | None,
    enable_gqa: bool,
) -> bool:
    """False for what torch refuses, in its own words; for an empty batch; for fused kernels elsewhere."""
    if torch.jit.is_tracing():  # where a size is a tensor, and the scale would be one of float32
        return False
    tensors = (q, k, v) if M is None else (q, k, v, M)
    if any(t.is_nested for t in tensors) or not q.dtype == k.dtype == v.dtype:
        return False
    if not q.dtype.is_floating_point or min(t.dim() for t in (q, k, v)) < 2:
        return False
    if not 0 <= p < 1 or not (q.numel() and k.numel() and v.numel()):
        return False
    if M is not None and (is_causal or M.dtype not in (torch.bool, torch.float32, q.dtype)):
        return False
    if enable_gqa and (
        min(t.dim() for t in (q, k, v)) < 3 or any(q.shape[-3] % t.shape[-3] for t in (k, v))
    ):
        return False
    if q.device.type in ("cpu", "meta") or not eager() or forward_mode():
        return True
    kernel = attention_choice(q, k, v, M, p, is_causal, scale=scale, enable_gqa=enable_gqa)
    return kernel == 0


def _flash_serves(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    M: Tensor | None,
    p: float,
    is_causal: bool,
    scale: float | None,
    enable_gqa: bool,
) -> bool:
    if q.device.type != "cpu" or transforms_active() or forward_mode():
        return False  # torch's kernel has neither a rule for vmap nor a forward mode
    if k.shape[-2] != v.shape[-2]:
        return False  # it would read the values beyond their end; the products refuse them
    if is_causal and scale is not None and scale <= 0:
        return False  # it multiplies the −∞ of its mask with the scale: NaN
    if torch.compiler.is_compiling():
        # Dynamo cannot trace the question that is asked below; these are its terms.
        return (
            not p
            and q.dim() == k.dim() == v.dim() == 4
            and q.shape[0] == k.shape[0] == v.shape[0]
            and k.shape[1] == v.shape[1]
            and (enable_gqa or q.shape[1] == k.shape[1])
            and q.shape[-1] == k.shape[-1] == v.shape[-1]
            and (M is None or (M.dim() in (2, 4) and not M.requires_grad))
        )
    choice = attention_choice(q, k, v, M, p, is_causal, scale=scale, enable_gqa=enable_gqa)
    return choice == FLASH
