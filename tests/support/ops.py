"""The registry: the examples that the ops state (ops_examples.py), and further choices of options and shapes.

Every battery, tests/ops/test_battery_*.py, runs over every row.
"""

from functools import partial

import ops_attention
import ops_examples
import ops_norms
import ops_vision
import torch
from op import Op, classes, inputs, normal, pair, probabilities, row, weights
from torch.nn import functional as TF

from manualnn import nn

Z = normal(4, 6)
ROWS = [
    pair("prelu", "one", inputs(normal(4, 6, away=(0.0,)), normal(1)), kinks=(0.0,)),
    pair("prelu", "channels", inputs(normal(3, 2, 4, away=(0.0,)), normal(2)), kinks=(0.0,)),
    pair(
        "rrelu",
        "eval",
        inputs(normal(4, 6, away=(0.0,))),
        kinks=(0.0,),
        # torch's own refuses vmap: it may draw
        exact=partial(TF.leaky_relu, negative_slope=(1 / 8 + 1 / 3) / 2),
    ),
    pair("glu", "dim=1", inputs(normal(3, 4, 2)), dim=1),
    pair("softmax", "dim=1,dtype", inputs(normal(3, 4, 2)), dim=1, dtype=torch.float64),
    pair("log_softmax", "dim=1", inputs(normal(3, 4, 2)), dim=1),
    # linear
    pair("linear", "no-bias", inputs(Z, normal(5, 6))),
    pair("linear", "3d", inputs(normal(2, 3, 6), normal(5, 6), normal(5))),
    pair("linear", "1d", inputs(normal(6), normal(5, 6), normal(5)), batch=()),
    pair("linear", "vector-weight", inputs(Z, normal(6))),
    # dropout
    pair("dropout", "p=0.3", inputs(Z), random=True, p=0.3),
    pair("dropout", "p=1", inputs(Z), p=1.0),
    pair("dropout", "eval", inputs(Z), training=False),
    pair("alpha_dropout", "p=0.3", inputs(Z), random=True, p=0.3, training=True),
    pair("dropout1d", "unbatched", inputs(normal(4, 5)), batch=(), random=True, p=0.4),
]


def _apart(dtype):
    """x and y, the distance between them away from 0, 0.7 and 1: the kinks of the losses below."""
    y = torch.randn(4, 6, dtype=torch.float64)
    distance = torch.tensor([0.2, 0.4, 0.85, 1.5, -0.3, -2.0], dtype=torch.float64)
    return (y + distance).to(dtype), y.to(dtype)


for reduction in ("sum", "none"):  # the mean is the ops' own example
    o = {"reduction": reduction}
    both = inputs(probabilities(4, 6), probabilities(4, 6))
    logits = inputs(Z, probabilities(4, 6))
    ROWS += [
        pair("mse_loss", reduction, inputs(Z, Z), (0, 1), **o),
        pair("binary_cross_entropy", reduction, both, (0, 1), **o),
        pair("binary_cross_entropy_with_logits", reduction, logits, (0, 1), **o),
        pair("cross_entropy", f"classes,{reduction}", inputs(Z, classes(4)), (0, 1), **o),
    ]

for reduction in ("mean", "sum", "none"):
    o = {"reduction": reduction}
    ROWS += [
        pair("l1_loss", reduction, _apart, (0, 1), **o),
        pair("smooth_l1_loss", reduction, _apart, (0, 1), **o),
        pair("smooth_l1_loss", f"{reduction},beta=0.7", _apart, (0, 1), beta=0.7, **o),
        pair("smooth_l1_loss", f"{reduction},beta=0", _apart, (0, 1), beta=0.0, **o),
        pair("huber_loss", reduction, _apart, (0, 1), **o),
        pair("huber_loss", f"{reduction},delta=0.7", _apart, (0, 1), delta=0.7, **o),
        pair(
            "cross_entropy",
            f"classes,ignored,smoothed,{reduction}",
            inputs(Z, classes(4, ignore=2)),
            (0, 1),
            ignore_index=2,
            label_smoothing=0.2,
            **o,
        ),
        pair(
            "cross_entropy",
            f"probabilities,smoothed,{reduction}",
            inputs(Z, probabilities(4, 6, dim=1)),
            (0, 1),
            label_smoothing=0.2,
            **o,
        ),
        pair(
            "cross_entropy",
            f"images,{reduction}",
            inputs(normal(2, 5, 3, 2), classes(2, 3, 2, ignore=-100)),
            (0, 1),
            **o,
        ),
        pair("nll_loss", reduction, inputs(Z, classes(4, ignore=-100)), (0, 1), **o),
        pair(
            "nll_loss", f"images,{reduction}", inputs(normal(2, 5, 3), classes(2, 3)), (0, 1), **o
        ),
    ]


for reduction in ("mean", "sum", "none"):
    ROWS += [
        row(
            "mse_loss",
            f"weight,{reduction}",
            lambda M, x, y, w, r=reduction: M.mse_loss(x, y, weight=w, reduction=r),
            inputs(Z, Z, weights(4, 6)),
            (0, 1, 2),
            keeps_more="x and y, alive anyway, where torch keeps a new tensor: their difference",
        ),
        row(
            "huber_loss",
            f"weight,{reduction}",
            lambda M, x, y, w, r=reduction: M.huber_loss(x, y, weight=w, reduction=r),
            lambda dtype: (*_apart(dtype), weights(4, 6)(dtype)),
            (0, 1, 2),
        ),
        row(
            "l1_loss",
            f"weight,{reduction}",
            lambda M, x, y, w, r=reduction: M.l1_loss(x, y, weight=w, reduction=r),
            lambda dtype: (*_apart(dtype), weights(4, 6)(dtype)),
            (0, 1, 2),
        ),
        row(
            "binary_cross_entropy",
            f"weight,{reduction}",
            lambda M, x, y, w, r=reduction: M.binary_cross_entropy(x, y, w, reduction=r),
            inputs(probabilities(4, 6), probabilities(4, 6), weights(6)),
            (0, 1),
            (0, 1),
        ),
        row(
            "binary_cross_entropy_with_logits",
            f"weight,pos_weight,{reduction}",
            lambda M, x, y, w, p, r=reduction: M.binary_cross_entropy_with_logits(
                x, y, w, pos_weight=p, reduction=r
            ),
            inputs(Z, probabilities(4, 6), weights(6), weights(6)),
            (0, 1),
            (0, 1),
        ),
        row(
            "cross_entropy",
            f"classes,weight,ignored,smoothed,{reduction}",
            lambda M, x, y, w, r=reduction: M.cross_entropy(
                x, y, w, ignore_index=1, label_smoothing=0.1, reduction=r
            ),
            inputs(Z, classes(4, ignore=1), weights(6)),
            (0, 1),
            (0,),
        ),
        row(
            "cross_entropy",
            f"classes,weight,{reduction}",
            lambda M, x, y, w, r=reduction: M.cross_entropy(x, y, w, reduction=r),
            inputs(Z, classes(4, ignore=-100), weights(6)),
            (0, 1),
            (0,),
        ),
        row(
            "cross_entropy",
            f"probabilities,weight,{reduction}",
            lambda M, x, y, w, r=reduction: M.cross_entropy(x, y, w, reduction=r),
            inputs(Z, probabilities(4, 6, dim=1), weights(6)),
            (0, 1),
            (0, 1),
        ),
        row(
            "nll_loss",
            f"weight,{reduction}",
            lambda M, x, y, w, r=reduction: M.nll_loss(x, y, w, ignore_index=1, reduction=r),
            inputs(Z, classes(4, ignore=1), weights(6)),
            (0, 1),
            (0,),
        ),
    ]


def _mlp(model, x, *params):
    names = [name for name, _ in model.named_parameters()]
    return torch.func.functional_call(model, dict(zip(names, params, strict=True)), (x,))


def network(option, activation, torchs, dropout=0.0, away=(), bias=True):
    """nn.MLP, and the same network of torch.nn's single layers."""
    sizes = [4, 5, 3, 2]
    ours = nn.MLP(sizes, activation, dropout=dropout, bias=bias)
    layers = []
    for n_prev, n in zip(sizes[:-2], sizes[1:-1], strict=True):
        layers += [torch.nn.Linear(n_prev, n, bias=bias), torchs()]
        layers += [torch.nn.Dropout(dropout)] if dropout else []
    theirs = torch.nn.Sequential(*layers, torch.nn.Linear(*sizes[-2:], bias=bias))
    makers = [normal(*p.shape, scale=0.8) for p in theirs.parameters()]
    return Op(
        "MLP",
        option,
        partial(_mlp, ours),
        partial(_mlp, theirs),
        inputs(normal(6, 4, scale=1.0), *makers),
        random=dropout > 0,
        parameters=tuple(range(1, 1 + len(makers))),
    )


ROWS += [
    network("relu", "relu", torch.nn.ReLU),
    network("tanh,dropout", "tanh", torch.nn.Tanh, dropout=0.4),
    network("gelu,dropout", nn.GELU, torch.nn.GELU, dropout=0.4),
    network("silu", "SiLU", torch.nn.SiLU, bias=False),
    network("leaky_relu", nn.LeakyReLU(0.2), lambda: torch.nn.LeakyReLU(0.2)),
]
OPS = ops_examples.ROWS + ROWS + ops_attention.ROWS + ops_vision.ROWS + ops_norms.ROWS
