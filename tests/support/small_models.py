"""Small models that are put together as torchvision's are, of torch's layers; for the tests of origins."""

import copy

import torch
from torch import nn
from torch.nn import functional as F

from manualnn import convert


class Residual(nn.Module):
    """ResNet: norms, activations in place, a residual sum in place, a shortcut with a norm of its own."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, 2, 1),
        )
        self.blocks = nn.ModuleList(Bottleneck(8 if i == 0 else 16, 16) for i in range(4))
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))


class Bottleneck(nn.Module):
    def __init__(self, n, m):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(n, 4, 1, bias=False), nn.BatchNorm2d(4)
        self.conv2, self.bn2 = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.conv3, self.bn3 = nn.Conv2d(4, m, 1, bias=False), nn.BatchNorm2d(m)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut = None
        if n != m:
            self.shortcut = nn.Sequential(nn.Conv2d(n, m, 1, bias=False), nn.BatchNorm2d(m))

    def forward(self, x):
        identity = x if self.shortcut is None else self.shortcut(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        out += identity
        return self.relu(out)


class Dense(nn.Module):
    """DenseNet: each layer sees all before it; F.relu in place, dropout, a transition that pools."""

    def __init__(self):
        super().__init__()
        self.conv0 = nn.Conv2d(3, 8, 3, padding=1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(8 + 4 * i) for i in range(4))
        self.convs = nn.ModuleList(nn.Conv2d(8 + 4 * i, 4, 3, padding=1) for i in range(4))
        self.drop = nn.Dropout(0.3)
        self.transition = nn.Sequential(
            nn.BatchNorm2d(24), nn.ReLU(inplace=True), nn.Conv2d(24, 8, 1), nn.AvgPool2d(2)
        )
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        features = [self.conv0(x)]
        for norm, conv in zip(self.norms, self.convs, strict=True):
            joined = torch.cat(features, 1)
            features.append(self.drop(conv(F.relu(norm(joined), inplace=True))))
        x = self.transition(torch.cat(features, 1))
        return self.head(x.mean((2, 3)))


class Inverted(nn.Module):
    """MobileNet, EfficientNet: SiLU and Hardswish in place, squeeze and excitation, rows dropped at random."""

    def __init__(self):
        super().__init__()
        self.expand = nn.Sequential(
            nn.Conv2d(3, 8, 1, bias=False), nn.BatchNorm2d(8), nn.SiLU(True)
        )
        self.depth = nn.Sequential(
            nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False),
            nn.BatchNorm2d(8),
            nn.Hardswish(inplace=True),
        )
        self.squeeze, self.excite = nn.Conv2d(8, 2, 1), nn.Conv2d(2, 8, 1)
        self.gate = nn.Hardsigmoid()
        self.project = nn.Sequential(nn.Conv2d(8, 8, 1, bias=False), nn.BatchNorm2d(8))
        self.again = nn.Sequential(
            nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU6(inplace=True)
        )
        self.drop, self.head = nn.Dropout(0.2, inplace=True), nn.Linear(8, 5)

    def forward(self, x):
        first = self.expand(x)
        x = self.depth(first)
        scale = self.gate(self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(x, 1)))))
        x = self.project(scale * x)
        noise = torch.empty(x.shape[0], 1, 1, 1, dtype=x.dtype, device=x.device).bernoulli_(0.5)
        x = x * noise.div_(0.5)
        x += first
        x = self.again(x) + x
        return self.head(self.drop(x.mean((2, 3))))


class Scaled(nn.Module):
    """ConvNeXt: a norm over permuted channels, linear layers as 1×1 convolutions, a learned scale."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 2, 2)
        self.depth = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1, groups=8) for _ in range(3))
        self.norm = nn.ModuleList(nn.LayerNorm(8) for _ in range(3))
        self.up = nn.ModuleList(nn.Linear(8, 32) for _ in range(3))
        self.down = nn.ModuleList(nn.Linear(32, 8) for _ in range(3))
        self.scale = nn.Parameter(torch.rand(3, 8, 1, 1) + 0.5)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = self.stem(x)
        for i in range(3):
            y = self.norm[i](self.depth[i](x).permute(0, 2, 3, 1))
            y = self.down[i](F.gelu(self.up[i](y))).permute(0, 3, 1, 2)
            x = x + self.scale[i] * y
        return self.head(x.mean((2, 3)))


class Transformer(nn.Module):
    """ViT and Swin: attention from torch's module and from matrix products, a class token, rolled windows."""

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 2, 2)
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(8) for _ in range(3))
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 8)
        self.bias = nn.Parameter(torch.randn(2, 17, 17))
        self.up, self.down, self.head = nn.Linear(8, 32), nn.Linear(32, 8), nn.Linear(8, 5)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], dim=1)
        y = self.norm1(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        y = torch.roll(self.norm2(x), 3, dims=1)
        q, k, v = self.qkv(y).reshape(*y.shape[:2], 3, 2, 4).permute(2, 0, 3, 1, 4)
        weights = (q * 0.5).matmul(k.transpose(-2, -1)) + self.bias
        y = F.softmax(weights, dim=-1).matmul(v).transpose(1, 2).reshape(y.shape)
        x = x + torch.roll(self.out(y), -3, dims=1)
        x = x + self.down(F.gelu(self.up(self.norm3(x))))
        return self.head(x[:, 0])


MODELS = [Residual, Dense, Inverted, Scaled, Transformer]


def pair(cls, dtype=torch.float32, seed=0):
    """A model and its converted copy."""
    torch.manual_seed(seed)
    theirs = cls().to(dtype)
    with torch.no_grad():  # norms that do something
        for p in theirs.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    return convert(copy.deepcopy(theirs)), theirs


def pictures(n=4, dtype=torch.float32, seed=1):
    return torch.randn(n, 3, 8, 8, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def loss_of(out):
    return (out * torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view(out.shape)).sum()


def gradients(model, x, seed=7, **options):
    """The output, and the gradients of all parameters and of x."""
    torch.manual_seed(seed)
    x = x.detach().clone().requires_grad_()
    out = model(x)
    wrt = [p for p in model.parameters() if p.requires_grad] + [x]
    grads = torch.autograd.grad(loss_of(out), wrt, allow_unused=True, **options)
    return out, list(grads)


def assert_equal(mine, other):
    for a, b in zip(mine, other, strict=True):
        assert (a is None) == (b is None)
        assert a is None or (torch.equal(a, b) and a.dtype == b.dtype)


def assert_same_run(ours, theirs, x, **options):
    out, grads = gradients(ours, x, **options)
    ref, ref_grads = gradients(theirs, x, **options)
    assert torch.equal(out, ref)
    assert_equal(grads, ref_grads)
    return out, grads


def second_derivatives(model, x):
    x = x.detach().clone().requires_grad_()
    torch.manual_seed(0)
    wrt = [*model.parameters(), x]
    grads = torch.autograd.grad(loss_of(model(x)), wrt, create_graph=True)
    total = sum(g.square().sum() for g in grads)
    second = torch.autograd.grad(total, wrt, allow_unused=True)
    return [torch.zeros_like(t) if g is None else g for t, g in zip(wrt, second, strict=True)]
