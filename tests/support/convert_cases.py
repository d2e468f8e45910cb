"""What the tests of convert share: a small model, a run of it, and what must stay the same."""

import torch

from manualnn import nn as ours

# Constructor arguments of the layers that cannot be made without.
ARGUMENTS = {
    "Embedding": (5, 3),
    "MultiheadAttention": (4, 2),
    "Linear": (3, 2),
    "Bilinear": (3, 2, 4),
    "Threshold": (0.1, -0.2),
    "Conv1d": (2, 4, 2),
    "Conv2d": (2, 4, 2),
    "Conv3d": (2, 4, 2),
    "ConvTranspose1d": (2, 4, 2),
    "ConvTranspose2d": (2, 4, 2),
    "ConvTranspose3d": (2, 4, 2),
    "MaxPool1d": (2,),
    "MaxPool2d": (2,),
    "MaxPool3d": (2,),
    "AvgPool1d": (2,),
    "AvgPool2d": (2,),
    "AvgPool3d": (2,),
    "AdaptiveMaxPool1d": (2,),
    "AdaptiveMaxPool2d": (2,),
    "AdaptiveMaxPool3d": (2,),
    "AdaptiveAvgPool1d": (2,),
    "AdaptiveAvgPool2d": (2,),
    "AdaptiveAvgPool3d": (2,),
    "BatchNorm1d": (3,),
    "BatchNorm2d": (3,),
    "BatchNorm3d": (3,),
    "SyncBatchNorm": (3,),
    "InstanceNorm1d": (3,),
    "InstanceNorm2d": (3,),
    "InstanceNorm3d": (3,),
    "LayerNorm": (3,),
    "GroupNorm": (2, 4),
    "RMSNorm": (3,),
}

TWINS = sorted(
    name
    for name, cls in vars(ours).items()
    if hasattr(torch.nn, name)
    and isinstance(cls, type)
    and issubclass(cls, torch.nn.Module)
    and cls is not getattr(torch.nn, name)
)

# What the library promises to convert, written out: the list above would shrink with a lost class.
PROMISED = """
    Embedding MultiheadAttention
    Linear ReLU ReLU6 LeakyReLU PReLU RReLU ELU CELU SELU GELU SiLU Mish Sigmoid LogSigmoid Tanh
    Hardtanh Hardsigmoid Hardswish Hardshrink Softshrink Tanhshrink Softplus Softsign Threshold GLU
    Softmax Softmin Softmax2d LogSoftmax CrossEntropyLoss NLLLoss BCELoss BCEWithLogitsLoss MSELoss
    L1Loss SmoothL1Loss HuberLoss Dropout Dropout1d Dropout2d AlphaDropout
    Conv1d Conv2d Conv3d ConvTranspose1d ConvTranspose2d ConvTranspose3d
    MaxPool1d MaxPool2d MaxPool3d AvgPool1d AvgPool2d AvgPool3d
    BatchNorm1d BatchNorm2d BatchNorm3d SyncBatchNorm InstanceNorm1d InstanceNorm2d InstanceNorm3d
    LayerNorm GroupNorm RMSNorm
    AdaptiveMaxPool1d AdaptiveMaxPool2d AdaptiveMaxPool3d AdaptiveAvgPool1d AdaptiveAvgPool2d AdaptiveAvgPool3d
"""


class Doubled(torch.nn.Module):
    """A parametrization that depends on nothing and is easily recognised."""

    def forward(self, weight):
        return 2 * weight


class UsersLinear(torch.nn.Linear):
    pass


def small_model():
    return torch.nn.Sequential(
        torch.nn.Flatten(),
        torch.nn.Linear(6, 5),
        torch.nn.ReLU(inplace=True),
        torch.nn.Dropout(0.4),
        torch.nn.Linear(5, 4, bias=False),
        torch.nn.GELU(approximate="tanh"),
        torch.nn.Linear(4, 3),
    ).double()


def types(model):
    return {name: type(module) for name, module in model.named_modules()}


def run(model, x, seed=0):
    """The output of `model` and the gradients of a loss that treats each output differently."""
    torch.manual_seed(seed)
    x = x.clone().requires_grad_()
    y = model(x)
    leaves = [x, *(p for p in model.parameters() if p.requires_grad)]
    weights = torch.linspace(-1, 2, y.numel(), dtype=y.dtype).view_as(y)
    return y.detach(), torch.autograd.grad((y * weights).sum(), leaves, allow_unused=True)


def assert_same_run(got, want):
    torch.testing.assert_close(got[0], want[0])
    assert len(got[1]) == len(want[1])
    for g, w in zip(got[1], want[1], strict=True):
        assert (g is None) == (w is None)
        if w is not None:
            torch.testing.assert_close(g, w)


def assert_same_state(got, want):
    assert list(got) == list(want)
    for key in want:
        assert torch.equal(got[key], want[key]), key


def batch():
    return torch.randn(7, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
