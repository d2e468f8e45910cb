"""The dtype rule under autocast: what torch does to the inputs of its own op of the same name, by device.

Cast once, before apply: inside a Function a product under autocast would return the lower precision while the
float32 operand is what was saved.
"""

from typing import Any

import torch

from manualnn._torch import any_autocast

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


def autocast(op: str, *tensors: torch.Tensor | None) -> tuple[Any, ...]:
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


def _cast(t: Any, dtype: torch.dtype) -> Any:
    # As torch: autocast leaves float64 and integers alone.
    if t is None or not t.is_floating_point() or t.dtype in (dtype, torch.float64):
        return t
    return t.to(dtype)
