"""Every module of manualnn.nn beside its twin in torch.nn, with inputs; for the tests of regimes."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from inspect import signature

import pytest
import torch
import torchvision

from manualnn import convert, nn
from manualnn.ops.catalogue import elementwise


@dataclass(frozen=True)
class Case:
    """One module with one choice of arguments.

    shape: of the input, the batch first.
    inputs: takes a number of the batch and gives the tensors forward takes, in float64.
    random: draws random numbers while training.
    pointwise: takes any shape and works element by element.
    """

    name: str
    args: tuple = ()
    kwargs: dict = field(default_factory=dict)
    inputs: Callable = None
    random: bool = False
    pointwise: bool = False
    twin: Callable = None

    @property
    def id(self):
        options = [str(a) for a in self.args] + [f"{k}={v}" for k, v in self.kwargs.items()]
        options = [o for o in options if "tensor" not in o]
        weighted = "weight" if len(options) < len(self.args) + len(self.kwargs) else ""
        return "-".join(p for p in (self.name, ",".join(options).replace(" ", ""), weighted) if p)

    @property
    def loss(self):
        return self.name.endswith("Loss")

    @property
    def close(self):
        """How near torch's own is in float64: its constant of 1/6 is rounded to float32."""
        return 1e-7 if self.name == "Hardsigmoid" else 1e-12

    def arguments(self):
        return copy.deepcopy(self.args), copy.deepcopy(self.kwargs)

    def pair(self, dtype=torch.float64, training=True, seed=0):
        """Ours and torch's with the same parameters."""
        torch.manual_seed(seed)
        args, kwargs = self.arguments()
        ours = getattr(nn, self.name)(*args, **kwargs)
        args, kwargs = self.arguments()
        theirs = self.twin() if self.twin else getattr(torch.nn, self.name)(*args, **kwargs)
        theirs.load_state_dict(ours.state_dict())
        assert type(ours) is not type(theirs)
        return ours.to(dtype).train(training), theirs.to(dtype).train(training)

    def sample(self, batch=4, dtype=torch.float64, seed=1):
        torch.manual_seed(seed)
        made = self.inputs(batch)
        return tuple(t.to(dtype) if t.is_floating_point() else t for t in made)


def normal(*shape):
    return lambda batch: (torch.randn(batch, *shape, dtype=torch.float64) * 2,)


def regression(batch):
    return torch.randn(batch, 6).double() * 2, torch.randn(batch, 6).double()


def classes(batch):
    return torch.randn(batch, 6).double(), torch.randint(0, 6, (batch,))


def log_probabilities(batch):
    z, y = classes(batch)
    return z.log_softmax(1), y


def probabilities(batch):
    return torch.rand(batch, 6).double() * 0.9 + 0.05, torch.rand(batch, 6).double()


def logits(batch):
    return torch.randn(batch, 6).double() * 2, torch.rand(batch, 6).double()


WEIGHT = torch.linspace(0.5, 1.5, 6, dtype=torch.float64)
X = normal(6)
_OF_ONE_NUMBER = [op.twin.module for op in elementwise()]
_ALONE = [name for name in dict.fromkeys(_OF_ONE_NUMBER) if name != "Threshold"]  # needs options
IN_PLACE = [name for name in _ALONE if "inplace" in signature(getattr(nn, name)).parameters]
PLAIN = [name for name in _ALONE if name not in IN_PLACE]


def network(*args, **kwargs):
    """nn.MLP and the Sequential of torch.nn's layers that computes the same."""

    def twin():
        sizes, activation = args
        dropout, bias = kwargs.get("dropout", 0.0), kwargs.get("bias", True)
        layers = []
        for n_prev, n in zip(sizes[:-2], sizes[1:-1], strict=True):
            layers.append(torch.nn.Linear(n_prev, n, bias=bias))
            layers.append(getattr(torch.nn, activation)())
            layers += [torch.nn.Dropout(dropout)] if dropout else []
        return torch.nn.Sequential(*layers, torch.nn.Linear(*sizes[-2:], bias=bias))

    return Case("MLP", args, kwargs, X, random="dropout" in kwargs, twin=twin)


ACTIVATIONS = [Case(name, (), {}, X, pointwise=True) for name in IN_PLACE + PLAIN]
ACTIVATIONS += [
    Case("GELU", (), {"approximate": "tanh"}, X, pointwise=True),
    Case("Threshold", (0.1, -0.7), {}, X, pointwise=True),
    Case("RReLU", (), {}, X, random=True, pointwise=True),
    Case("PReLU", (), {}, X, pointwise=True),
    Case("PReLU", (6,), {}, X),
    Case("GLU", (), {}, X),
    Case("Softmax", (-1,), {}, X),
    Case("Softmin", (-1,), {}, X),
    Case("LogSoftmax", (-1,), {}, X),
    Case("Softmax2d", (), {}, normal(3, 4, 5)),
]
WRITING = [Case(name, (), {"inplace": True}, X, pointwise=True) for name in IN_PLACE]
WRITING += [
    Case("Threshold", (0.1, -0.7, True), {}, X, pointwise=True),
    Case("RReLU", (), {"inplace": True}, X, random=True, pointwise=True),
    Case("Dropout", (0.4, True), {}, X, random=True, pointwise=True),
]
LAYERS = [
    Case("Dropout", (0.4,), {}, X, random=True, pointwise=True),
    Case("AlphaDropout", (0.4,), {}, X, random=True, pointwise=True),
    Case("Dropout1d", (0.4,), {}, normal(5, 3), random=True),
    Case("Dropout2d", (0.4,), {}, normal(3, 4, 5), random=True),
    Case("Linear", (6, 5), {}, X),
    Case("Linear", (6, 5), {"bias": False}, X),
    network([6, 5, 4, 3], "ReLU"),
    network([6, 5, 4, 3], "GELU"),
    network([6, 5, 4, 3], "Tanh", dropout=0.4),
    network([6, 5, 3], "SiLU", bias=False),
]
LOSSES = [
    Case(name, (), {"reduction": reduction}, inputs)
    for name, inputs in {
        "MSELoss": regression,
        "L1Loss": regression,
        "SmoothL1Loss": regression,
        "HuberLoss": regression,
        "BCELoss": probabilities,
        "BCEWithLogitsLoss": logits,
        "CrossEntropyLoss": classes,
        "NLLLoss": log_probabilities,
    }.items()
    for reduction in ("mean", "none")
]
LOSSES += [
    Case("CrossEntropyLoss", (WEIGHT,), {"label_smoothing": 0.1}, classes),
    Case("NLLLoss", (WEIGHT,), {}, log_probabilities),
    Case("BCELoss", (WEIGHT,), {}, probabilities),
    Case("BCEWithLogitsLoss", (WEIGHT,), {"pos_weight": WEIGHT + 1}, logits),
]
VISION = [
    Case("Conv1d", (2, 4, 3), {"padding": "same"}, normal(2, 5)),
    Case("Conv2d", (2, 4, 3), {"padding": 1, "stride": 2, "groups": 2}, normal(2, 5, 4)),
    Case("Conv2d", (2, 3, 2), {"padding": 1, "padding_mode": "reflect"}, normal(2, 4, 3)),
    Case("Conv3d", (2, 2, 2), {"bias": False}, normal(2, 3, 2, 3)),
    Case("ConvTranspose1d", (2, 3, 2), {"stride": 2}, normal(2, 4)),
    Case("ConvTranspose2d", (2, 3, 3), {"stride": 2, "output_padding": 1}, normal(2, 3, 2)),
    Case("ConvTranspose3d", (2, 1, 2), {}, normal(2, 2, 2, 3)),
    Case("MaxPool1d", (2,), {}, normal(2, 6)),
    Case("MaxPool2d", (3, 2, 1), {}, normal(2, 5, 6)),
    Case("MaxPool3d", (2,), {"stride": 1}, normal(2, 3, 2, 3)),
    Case("AvgPool1d", (2,), {}, normal(2, 6)),
    Case("AvgPool2d", (3, 2, 1), {"count_include_pad": False}, normal(2, 5, 6)),
    Case("AvgPool3d", (2,), {"stride": 1}, normal(2, 3, 2, 3)),
    Case("AdaptiveMaxPool1d", (3,), {}, normal(2, 7)),
    Case("AdaptiveMaxPool2d", ((3, None),), {}, normal(2, 5, 2)),
    Case("AdaptiveMaxPool3d", (2,), {}, normal(1, 3, 4, 3)),
    Case("AdaptiveAvgPool1d", (3,), {}, normal(2, 7)),
    Case("AdaptiveAvgPool2d", (1,), {}, normal(2, 4, 3)),
    Case("AdaptiveAvgPool3d", ((2, None, 2),), {}, normal(1, 3, 4, 3)),
]
# torch's batch, group and instance norms take bias=False from 2.12 on.
NO_BIAS = {"bias": False} if "bias" in signature(torch.nn.InstanceNorm3d).parameters else {}
NORMS = [
    Case("BatchNorm1d", (6,), {}, normal(6, 3)),
    Case("BatchNorm2d", (3,), {"momentum": None}, normal(3, 2, 4)),
    Case("BatchNorm3d", (3,), {"affine": False}, normal(3, 2, 1, 2)),
    Case("SyncBatchNorm", (3,), {"track_running_stats": False}, normal(3, 4)),
    Case("InstanceNorm1d", (3,), {"affine": True, "track_running_stats": True}, normal(3, 4)),
    Case("InstanceNorm2d", (3,), {}, normal(3, 2, 4)),
    Case("InstanceNorm3d", (2,), {"affine": True, **NO_BIAS}, normal(2, 2, 2, 1)),
    Case("LayerNorm", (6,), {}, X),
    Case("LayerNorm", ([3, 2],), {"bias": False, "eps": 0.01}, normal(3, 2)),
    Case("GroupNorm", (2, 4), {}, normal(4, 3)),
    Case("GroupNorm", (4, 4), {"affine": False}, normal(4, 2, 2)),
    Case("RMSNorm", (6,), {}, X),
    Case("RMSNorm", ([6],), {"eps": 0.01, "elementwise_affine": False}, X),
    Case(
        "StochasticDepth",
        (0.4, "row"),
        {},
        X,
        random=True,
        twin=lambda: torchvision.ops.StochasticDepth(0.4, "row"),
    ),
]
CASES = ACTIVATIONS + LAYERS + LOSSES + VISION + NORMS
each_case = pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)


def each(cases):
    return pytest.mark.parametrize("case", cases, ids=lambda c: c.id)


def blocks(p=0.0):
    """A converted Sequential and torch's twin of it; Linear, PReLU, Dropout(p), Softmax."""
    torch.manual_seed(0)
    theirs = torch.nn.Sequential(
        torch.nn.Linear(6, 8),
        torch.nn.PReLU(8),
        torch.nn.Dropout(p),
        torch.nn.Linear(8, 5),
        torch.nn.ReLU(),
        torch.nn.Linear(5, 3),
        torch.nn.LogSoftmax(-1),
    ).double()
    ours = convert(copy.deepcopy(theirs), strict=True)
    assert type(ours[0]) is nn.Linear and type(ours[1]) is nn.PReLU
    return ours, theirs


def step(module, tensors, seed=7, needs_input=True):
    """The output and the gradients of the input and of all parameters, for a d_out of both signs."""
    x, *rest = (t.detach().clone() for t in tensors)
    x.requires_grad_(needs_input)
    params = list(module.parameters())
    torch.manual_seed(seed)
    out = module(x * 1, *rest)
    wrt = ([x] if needs_input else []) + params
    grads = torch.autograd.grad(out, wrt, incoming(out))
    return out.detach(), *grads


def incoming(out, seed=3):
    """The same numbers whatever the strides are; never all of one sign."""
    torch.manual_seed(seed)
    return torch.randn(out.shape, dtype=torch.float64).to(out.dtype)


def assert_same(mine, other, tolerance=1e-12):
    for a, b in zip(mine, other, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            assert a.dtype == b.dtype and a.shape == b.shape
            torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance, equal_nan=True)


def outcome(function, *args):
    """What came back, or the exception."""
    try:
        return function(*args), None
    except Exception as error:
        return None, error


def same_outcome(ours, theirs):
    """Both results, where both answer; None where both refuse, in the same words.

    By the same class, or by one of ours that is derived from torch's: torch's own are of narrower
    classes from release to release (complex silu: a RuntimeError, from 2.15 on a NotImplementedError).
    """
    (mine, my_error), (other, their_error) = outcome(ours), outcome(theirs)
    assert (my_error is None) == (their_error is None), f"ours {my_error!r}, torch {their_error!r}"
    if their_error is None:
        return mine, other
    assert isinstance(my_error, type(their_error)), f"ours {my_error!r}, torch {their_error!r}"
    assert first_line(my_error) == first_line(their_error)
    return None


def first_line(error):
    return str(error).strip().split("\n")[0]
