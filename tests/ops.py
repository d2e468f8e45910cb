"""The registry: one row an op and option. Every battery, tests/test_battery_*.py, runs over every row."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch.nn import functional as TF

from manualnn import functional as F
from manualnn import nn


@dataclass(frozen=True)
class Op:
    """One op with one choice of options.

    name: of the function in manualnn.functional (or of the module, for MLP).
    ours, torchs: take the tensors that ``inputs(dtype)`` makes.
    kinks: values of the first input at which the derivative jumps; random inputs are kept away.
    random: draws random numbers; seeded before each call.
    batch: the inputs that carry the batch as their first dimension.
    differentiable: the inputs that may require a gradient; all floating ones if None.
    keeps_more: why it keeps more bytes than torch; empty for all that do not.
    parameters: the inputs that a module owns: alive anyway, so they do not count as kept.
    exact: the op composed of torch's elementary ones, where torch's own backward has constants that
        are rounded to float32 even in float64 (its error is then torch_off · 1e-12).
    """

    name: str
    option: str
    ours: Callable
    torchs: Callable
    inputs: Callable
    kinks: tuple = ()
    random: bool = False
    batch: tuple = (0,)
    differentiable: tuple | None = None
    pointwise: bool = False
    exact: Callable | None = None
    torch_off: float = 5.0
    parameters: tuple = ()
    keeps_more: str = ""

    @property
    def reference(self):
        return self.exact or self.torchs

    @property
    def id(self):
        return f"{self.name}-{self.option}" if self.option else self.name


def normal(*shape, away=(), scale=2.0):
    """Both signs, and at least 0.05 away from every kink, so that a finite difference does not cross."""

    def make(dtype):
        z = torch.randn(*shape, dtype=torch.float64) * scale
        for kink in away:
            near = (z - kink).abs() < 0.05
            z = torch.where(near, z + 0.2, z)
        for kink in away:
            assert ((z - kink).abs() > 0.01).all()
        return z.to(dtype)

    return make


def inputs(*makers):
    return lambda dtype: tuple(make(dtype) for make in makers)


def classes(*shape, high=5, ignore=None):
    def make(dtype):
        y = torch.randint(0, high, shape)
        if ignore is not None:
            y.view(-1)[0] = ignore
        return y

    return make


def probabilities(*shape, dim=None, low=0.05):
    def make(dtype):
        y = torch.rand(*shape, dtype=torch.float64) * (1 - 2 * low) + low
        return (y if dim is None else y / y.sum(dim, keepdim=True)).to(dtype)

    return make


def _celu(z, alpha=1.0):
    return torch.where(z > 0, z, alpha * torch.expm1(z / alpha))


def _hardsigmoid(z):
    return (z + 3).clamp(0, 6) / 6


_EXACT = {"celu": _celu, "hardsigmoid": _hardsigmoid}


def pointwise(name, *kinks, inplace=False, **options):
    option = ",".join(f"{k}={v}" for k, v in options.items()) + (",inplace" if inplace else "")
    ours, torchs = getattr(F, name), getattr(TF, name)
    if inplace:
        ours, torchs = partial(_inplace, ours, options), partial(_inplace, torchs, options)
    else:
        ours, torchs = partial(ours, **options), partial(torchs, **options)
    make = inputs(normal(4, 6, away=kinks))
    exact = partial(_EXACT[name], **options) if name in _EXACT else None
    return Op(
        name,
        option.strip(","),
        ours,
        torchs,
        make,
        kinks,
        pointwise=True,
        exact=exact,
        torch_off=1e6 if exact else 5.0,
    )


def _inplace(function, options, z):
    return function(z * 1, **options, inplace=True)


ACTIVATIONS = [
    pointwise("relu", 0.0),
    pointwise("relu", 0.0, inplace=True),
    pointwise("relu6", 0.0, 6.0),
    pointwise("relu6", 0.0, 6.0, inplace=True),
    pointwise("leaky_relu", 0.0),
    pointwise("leaky_relu", 0.0, negative_slope=0.3, inplace=True),
    pointwise("leaky_relu", 0.0, negative_slope=-0.3),
    pointwise("leaky_relu", 0.0, negative_slope=0.0),
    pointwise("elu", 0.0),
    pointwise("elu", 0.0, alpha=1.7, inplace=True),
    pointwise("elu", 0.0, alpha=-0.5),
    pointwise("celu", 0.0),
    pointwise("celu", 0.0, alpha=1.7),
    pointwise("celu", 0.0, alpha=-0.5),
    pointwise("celu", 0.0, alpha=0.7, inplace=True),
    pointwise("selu", 0.0),
    pointwise("selu", 0.0, inplace=True),
    pointwise("gelu"),
    pointwise("gelu", approximate="tanh"),
    pointwise("silu"),
    pointwise("silu", inplace=True),
    pointwise("mish"),
    pointwise("mish", inplace=True),
    pointwise("sigmoid"),
    pointwise("logsigmoid"),
    pointwise("tanh"),
    pointwise("hardtanh", -1.0, 1.0),
    pointwise("hardtanh", -0.5, 2.0, min_val=-0.5, max_val=2.0, inplace=True),
    pointwise("hardsigmoid", -3.0, 3.0),
    pointwise("hardsigmoid", -3.0, 3.0, inplace=True),
    pointwise("hardswish", -3.0, 3.0),
    pointwise("hardswish", -3.0, 3.0, inplace=True),
    pointwise("hardshrink", -0.5, 0.5),
    pointwise("hardshrink", lambd=-0.1),
    pointwise("softshrink", -0.5, 0.5),
    pointwise("softshrink", -1.25, 1.25, lambd=1.25),
    pointwise("tanhshrink"),
    pointwise("softplus"),
    pointwise("softplus", 1.0, beta=2, threshold=2),
    pointwise("softsign"),
    pointwise("threshold", 0.1, threshold=0.1, value=-0.7),
    pointwise("threshold", 0.1, threshold=0.1, value=20.0),
    pointwise("threshold", 0.1, threshold=0.1, value=0.0, inplace=True),
]


def _pair(
    name, option, make, batch=(0,), kinks=(), random=False, torchs=None, exact=None, **options
):
    ours, theirs = getattr(F, name), torchs or getattr(TF, name)
    return Op(
        name,
        option,
        partial(ours, **options),
        partial(theirs, **options),
        make,
        kinks,
        random,
        batch,
        exact=exact,
    )


Z = normal(4, 6)
ROWS = [
    _pair("prelu", "one", inputs(normal(4, 6, away=(0.0,)), normal(1)), kinks=(0.0,)),
    _pair("prelu", "channels", inputs(normal(3, 2, 4, away=(0.0,)), normal(2)), kinks=(0.0,)),
    _pair(
        "rrelu",
        "eval",
        inputs(normal(4, 6, away=(0.0,))),
        kinks=(0.0,),
        # torch's own refuses vmap: it may draw
        exact=partial(TF.leaky_relu, negative_slope=(1 / 8 + 1 / 3) / 2),
    ),
    _pair(
        "rrelu",
        "training",
        inputs(normal(4, 6, away=(0.0,))),
        kinks=(0.0,),
        random=True,
        training=True,
    ),
    _pair("glu", "", inputs(Z)),
    _pair("glu", "dim=1", inputs(normal(3, 4, 2)), dim=1),
    _pair("softmax", "dim=-1", inputs(Z), dim=-1),
    _pair("softmax", "dim=1,dtype", inputs(normal(3, 4, 2)), dim=1, dtype=torch.float64),
    _pair("softmin", "dim=-1", inputs(Z), dim=-1),
    _pair("log_softmax", "dim=-1", inputs(Z), dim=-1),
    _pair("log_softmax", "dim=1", inputs(normal(3, 4, 2)), dim=1),
    # linear
    _pair("linear", "bias", inputs(Z, normal(5, 6), normal(5))),
    _pair("linear", "no-bias", inputs(Z, normal(5, 6))),
    _pair("linear", "3d", inputs(normal(2, 3, 6), normal(5, 6), normal(5))),
    _pair("linear", "1d", inputs(normal(6), normal(5, 6), normal(5)), batch=()),
    _pair("linear", "vector-weight", inputs(Z, normal(6))),
    # dropout
    _pair("dropout", "p=0.3", inputs(Z), random=True, p=0.3),
    _pair("dropout", "p=1", inputs(Z), p=1.0),
    _pair("dropout", "eval", inputs(Z), training=False),
    _pair("alpha_dropout", "p=0.3", inputs(Z), random=True, p=0.3, training=True),
    _pair("dropout1d", "p=0.4", inputs(normal(3, 4, 5)), random=True, p=0.4),
    _pair("dropout1d", "unbatched", inputs(normal(4, 5)), batch=(), random=True, p=0.4),
    _pair("dropout2d", "p=0.4", inputs(normal(3, 4, 2, 3)), random=True, p=0.4),
]

SIGN = normal(4, 6, away=(0.0,))
FIXED = torch.linspace(-1, 1, 24, dtype=torch.float64).view(4, 6)


def weights(*shape):
    return lambda dtype: (torch.rand(*shape, dtype=torch.float64) + 0.5).to(dtype)


def _apart(dtype):
    """x and y, the distance between them away from 0, 0.7 and 1: the kinks of the losses below."""
    y = torch.randn(4, 6, dtype=torch.float64)
    distance = torch.tensor([0.2, 0.4, 0.85, 1.5, -0.3, -2.0], dtype=torch.float64)
    return (y + distance).to(dtype), y.to(dtype)


for reduction in ("mean", "sum", "none"):
    o = {"reduction": reduction}
    ROWS += [
        _pair("mse_loss", reduction, inputs(Z, Z), (0, 1), **o),
        _pair("l1_loss", reduction, _apart, (0, 1), **o),
        _pair("smooth_l1_loss", reduction, _apart, (0, 1), **o),
        _pair("smooth_l1_loss", f"{reduction},beta=0.7", _apart, (0, 1), beta=0.7, **o),
        _pair("smooth_l1_loss", f"{reduction},beta=0", _apart, (0, 1), beta=0.0, **o),
        _pair("huber_loss", reduction, _apart, (0, 1), **o),
        _pair("huber_loss", f"{reduction},delta=0.7", _apart, (0, 1), delta=0.7, **o),
        _pair(
            "binary_cross_entropy",
            reduction,
            inputs(probabilities(4, 6), probabilities(4, 6)),
            (0, 1),
            **o,
        ),
        _pair(
            "binary_cross_entropy_with_logits",
            reduction,
            inputs(Z, probabilities(4, 6)),
            (0, 1),
            **o,
        ),
        _pair("cross_entropy", f"classes,{reduction}", inputs(Z, classes(4)), (0, 1), **o),
        _pair(
            "cross_entropy",
            f"classes,ignored,smoothed,{reduction}",
            inputs(Z, classes(4, ignore=2)),
            (0, 1),
            ignore_index=2,
            label_smoothing=0.2,
            **o,
        ),
        _pair(
            "cross_entropy",
            f"probabilities,smoothed,{reduction}",
            inputs(Z, probabilities(4, 6, dim=1)),
            (0, 1),
            label_smoothing=0.2,
            **o,
        ),
        _pair(
            "cross_entropy",
            f"images,{reduction}",
            inputs(normal(2, 5, 3, 2), classes(2, 3, 2, ignore=-100)),
            (0, 1),
            **o,
        ),
        _pair("nll_loss", reduction, inputs(Z, classes(4, ignore=-100)), (0, 1), **o),
        _pair(
            "nll_loss", f"images,{reduction}", inputs(normal(2, 5, 3), classes(2, 3)), (0, 1), **o
        ),
    ]


def _row(name, option, call, make, batch, differentiable=None, keeps_more=""):
    """A row whose weights are tensors too: call(module of functions, *tensors)."""
    return Op(
        name,
        option,
        partial(call, F),
        partial(call, TF),
        make,
        batch=batch,
        differentiable=differentiable,
        keeps_more=keeps_more,
    )


for reduction in ("mean", "sum", "none"):
    ROWS += [
        _row(
            "mse_loss",
            f"weight,{reduction}",
            lambda M, x, y, w, r=reduction: M.mse_loss(x, y, weight=w, reduction=r),
            inputs(Z, Z, weights(4, 6)),
            (0, 1, 2),
            keeps_more="x and y, alive anyway, where torch keeps a new tensor: their difference",
        ),
        _row(
            "huber_loss",
            f"weight,{reduction}",
            lambda M, x, y, w, r=reduction: M.huber_loss(x, y, weight=w, reduction=r),
            lambda dtype: (*_apart(dtype), weights(4, 6)(dtype)),
            (0, 1, 2),
        ),
        _row(
            "l1_loss",
            f"weight,{reduction}",
            lambda M, x, y, w, r=reduction: M.l1_loss(x, y, weight=w, reduction=r),
            lambda dtype: (*_apart(dtype), weights(4, 6)(dtype)),
            (0, 1, 2),
        ),
        _row(
            "binary_cross_entropy",
            f"weight,{reduction}",
            lambda M, x, y, w, r=reduction: M.binary_cross_entropy(x, y, w, reduction=r),
            inputs(probabilities(4, 6), probabilities(4, 6), weights(6)),
            (0, 1),
            (0, 1),
        ),
        _row(
            "binary_cross_entropy_with_logits",
            f"weight,pos_weight,{reduction}",
            lambda M, x, y, w, p, r=reduction: M.binary_cross_entropy_with_logits(
                x, y, w, pos_weight=p, reduction=r
            ),
            inputs(Z, probabilities(4, 6), weights(6), weights(6)),
            (0, 1),
            (0, 1),
        ),
        _row(
            "cross_entropy",
            f"classes,weight,ignored,smoothed,{reduction}",
            lambda M, x, y, w, r=reduction: M.cross_entropy(
                x, y, w, ignore_index=1, label_smoothing=0.1, reduction=r
            ),
            inputs(Z, classes(4, ignore=1), weights(6)),
            (0, 1),
            (0,),
        ),
        _row(
            "cross_entropy",
            f"classes,weight,{reduction}",
            lambda M, x, y, w, r=reduction: M.cross_entropy(x, y, w, reduction=r),
            inputs(Z, classes(4, ignore=-100), weights(6)),
            (0, 1),
            (0,),
        ),
        _row(
            "cross_entropy",
            f"probabilities,weight,{reduction}",
            lambda M, x, y, w, r=reduction: M.cross_entropy(x, y, w, reduction=r),
            inputs(Z, probabilities(4, 6, dim=1), weights(6)),
            (0, 1),
            (0, 1),
        ),
        _row(
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
OPS = ACTIVATIONS + ROWS
