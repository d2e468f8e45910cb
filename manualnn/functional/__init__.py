"""torch.nn.functional's names, arguments, defaults and exceptions, over hand-written Functions.

Each function differs from torch's of the same name in one thing: its backward is ours. The formulas,
what is cached and the values at kinks stand with the Functions in ``manualnn.ops``. Every function
casts once, here, by the rule that autocast has for torch's.

>>> import torch
>>> from manualnn import functional as F
>>> z = torch.tensor([[2.0, 0.0, 1.0]], requires_grad=True)
>>> loss = F.cross_entropy(z, torch.tensor([0]))
>>> loss.grad_fn.name()
'CrossEntropyBackward'
>>> loss.backward()
>>> torch.allclose(z.grad, F.softmax(z, -1) - torch.tensor([[1.0, 0.0, 0.0]]))
True
"""

from manualnn.functional import activations
from manualnn.functional.activations import *
from manualnn.functional.attention import scaled_dot_product_attention
from manualnn.functional.convolutions import (
    conv1d,
    conv2d,
    conv3d,
    conv_transpose1d,
    conv_transpose2d,
    conv_transpose3d,
)
from manualnn.functional.dropouts import (
    alpha_dropout,
    dropout,
    dropout1d,
    dropout2d,
    stochastic_depth,
)
from manualnn.functional.embeddings import embedding
from manualnn.functional.fully_connected import linear
from manualnn.functional.losses import (
    binary_cross_entropy,
    binary_cross_entropy_with_logits,
    cross_entropy,
    huber_loss,
    l1_loss,
    mse_loss,
    nll_loss,
    smooth_l1_loss,
)
from manualnn.functional.multi_head import multi_head_attention_forward
from manualnn.functional.norms import batch_norm, group_norm, instance_norm, layer_norm, rms_norm
from manualnn.functional.pooling import (
    adaptive_avg_pool1d,
    adaptive_avg_pool2d,
    adaptive_avg_pool3d,
    adaptive_max_pool1d,
    adaptive_max_pool2d,
    adaptive_max_pool3d,
    avg_pool1d,
    avg_pool2d,
    avg_pool3d,
    max_pool1d,
    max_pool2d,
    max_pool3d,
)

__all__ = [
    "adaptive_avg_pool1d",
    "adaptive_avg_pool2d",
    "adaptive_avg_pool3d",
    "adaptive_max_pool1d",
    "adaptive_max_pool2d",
    "adaptive_max_pool3d",
    "alpha_dropout",
    "avg_pool1d",
    "avg_pool2d",
    "avg_pool3d",
    "batch_norm",
    "binary_cross_entropy",
    "binary_cross_entropy_with_logits",
    "conv1d",
    "conv2d",
    "conv3d",
    "conv_transpose1d",
    "conv_transpose2d",
    "conv_transpose3d",
    "cross_entropy",
    "dropout",
    "dropout1d",
    "dropout2d",
    "embedding",
    "group_norm",
    "huber_loss",
    "instance_norm",
    "l1_loss",
    "layer_norm",
    "linear",
    "max_pool1d",
    "max_pool2d",
    "max_pool3d",
    "mse_loss",
    "multi_head_attention_forward",
    "nll_loss",
    "rms_norm",
    "scaled_dot_product_attention",
    "smooth_l1_loss",
    "stochastic_depth",
]
__all__ += activations.__all__
