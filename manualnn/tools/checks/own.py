"""Everything of manualnn's own, with inputs to check it with and torch's twin to compare it with."""

from functools import partial

import torch

from manualnn import functional as ours
from manualnn import nn
from manualnn.ops.catalogue import elementwise

theirs = torch.nn.functional

# Where torch's own derivative is rounded to float32 even in float64, is not there, or is not that of its
# function: binary_cross_entropy has logarithms of at least −100, and of the target the slope as if not.
TORCH_OFF = {
    "binary_cross_entropy": ("other values",),
    "hardsigmoid": ("backward against the reference", "kinks", "NaN and infinity"),
    "hardswish": ("backward against the reference", "kinks", "NaN and infinity"),
    "softplus": ("forward against the reference", "NaN and infinity"),
    "avg_pool3d": ("bfloat16",),
}


def catalogue():
    """Family -> list of (name, function, inputs, options of ``check``)."""
    g = torch.Generator().manual_seed(0)
    normal = partial(torch.randn, generator=g, dtype=torch.float64)
    x, y = normal(4, 6) * 2, normal(4, 6)
    probabilities = torch.rand(4, 6, generator=g, dtype=torch.float64)
    classes = torch.tensor([0, 5, 2, 2])
    twins = {}

    def add(family, name, inputs, label=None, kinks=(), **options):
        function = partial(getattr(ours, name), **options) if options else getattr(ours, name)
        reference = partial(getattr(theirs, name), **options)
        given = {"reference": reference, "kinks": kinks, "skip": TORCH_OFF.get(name, ())}
        twins.setdefault(family, []).append((label or name, function, inputs, given))

    add("linear", "linear", (normal(4, 3), normal(5, 3), normal(5)))
    add("linear", "linear", (normal(2, 4, 3), normal(5, 3)), "linear, (2, 4, 3), no bias")
    for op in elementwise():
        first = op.examples[0]
        label = ", ".join([op.twin.function, *map(str, first.options.values())])
        add("activations", op.twin.function, (x,), label, first.kinks, **first.options)
    add("activations", "prelu", (x, normal(6)))
    add("activations", "rrelu", (x,), training=True)
    add("activations", "glu", (x,))
    for name in ("softmax", "softmin", "log_softmax"):
        add("activations", name, (x,), dim=-1)
    for name in ("mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss"):
        add("losses", name, (x, y))
    inside = probabilities * 0.9 + 0.05
    add("losses", "binary_cross_entropy", (inside, probabilities))
    of_x = (inside, probabilities), {"not_variables": ("target",)}
    twins["losses"].append(("binary_cross_entropy, of x", ours.binary_cross_entropy, *of_x))
    add("losses", "binary_cross_entropy_with_logits", (x, probabilities))
    add("losses", "cross_entropy", (x, classes))
    add("losses", "cross_entropy", (x, probabilities), "cross_entropy, probabilities")
    add("losses", "nll_loss", (x.log_softmax(1), classes))
    add("dropout", "dropout", (x,))
    add("dropout", "dropout1d", (normal(2, 4, 3),))
    add("dropout", "dropout2d", (normal(2, 3, 2, 2),))
    add("dropout", "alpha_dropout", (x,), training=True)
    image = normal(2, 2, 5, 4)
    for dims, x in ((1, image[..., 0]), (2, image), (3, image.unsqueeze(-1))):
        kernel = (2, 2, 1)[:dims]
        W, b = normal(2, 2, *kernel), normal(2)
        add("convolution", f"conv{dims}d", (x, W, b))
        add("convolution", f"conv_transpose{dims}d", (x, W, b), stride=2)
        add("pooling", f"max_pool{dims}d", (x,), kernel_size=kernel)
        add("pooling", f"avg_pool{dims}d", (x,), kernel_size=kernel)
        add("pooling", f"adaptive_max_pool{dims}d", (x,), output_size=kernel)
        add("pooling", f"adaptive_avg_pool{dims}d", (x,), output_size=kernel)
    add("embedding", "embedding", (torch.tensor([[0, 3], [2, 2]]), normal(4, 3)))
    q, k, v = normal(2, 2, 3, 4), normal(2, 2, 5, 4), normal(2, 2, 5, 4)
    attention = "scaled_dot_product_attention"
    add("attention", attention, (q, k, v))
    add("attention", attention, (q, k, v, normal(3, 5)), f"{attention}, mask")
    add_norms(add, twins, normal)
    for activation in ("relu", "tanh", "gelu"):
        torch.manual_seed(0)
        model = nn.MLP([4, 5, 3], activation, dtype=torch.float64)
        twins.setdefault("MLP", []).append((f"MLP, {activation}", model, (normal(6, 4),), {}))
    return twins


def add_norms(add, twins, normal):
    x, image, gamma, beta = normal(4, 3, 2), normal(2, 3, 2, 2), normal(3), normal(3)
    family = "normalisation"
    add(family, "batch_norm", (x, None, None, gamma, beta), training=True)
    add(family, "instance_norm", (image, None, None, gamma, beta))
    add(family, "layer_norm", (x, (3, 2), normal(3, 2), normal(3, 2)))
    add(family, "group_norm", (image, 3, gamma, beta))
    add(family, "rms_norm", (x, (2,), normal(2)))
    layer = nn.BatchNorm1d(3).eval()
    layer.running_mean.copy_(normal(3))
    layer.running_var.copy_(normal(3).square() + 0.5)
    given = {"reference": torch.nn.BatchNorm1d(3).eval()}
    twins[family].append(("batch_norm, eval", layer, (x,), given))
    rows = {"p": 0.4, "mode": "row"}
    twins["dropout"].append(("stochastic_depth", partial(ours.stochastic_depth, **rows), (x,), {}))
