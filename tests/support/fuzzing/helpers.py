"""What the programs call: losses, gradients, the user's own Functions, modes and hooks.

A printed program brings the source of those that it mentions, so each stands on its own.
"""

import concurrent.futures
import contextlib

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode


def loss_of(out):
    """Treats each element of each tensor that comes out differently."""
    outs = out if isinstance(out, tuple) else (out,)
    total = 0.0
    for o in outs:
        if o.is_floating_point():
            weights = torch.arange(o.numel(), dtype=torch.get_default_dtype()).cos().view(o.shape)
            total = total + (o.to(weights.dtype) * weights).sum()
    return total


def seeded(seed):
    """On the CPU alone: `torch.manual_seed` sees to all devices, which takes longer than most programs."""
    torch.default_generator.manual_seed(seed)


def call(model, *inputs, seed=0):
    seeded(seed)
    return model(*inputs)


def leaves(model, inputs):
    return [t for t in (*model.parameters(), *inputs) if t.requires_grad and t.is_leaf]


def grads(out, model, *inputs, **options):
    """The gradients of all parameters and inputs; nothing where nothing needs one."""
    loss, wrt = loss_of(out), leaves(model, inputs)
    if not wrt or not isinstance(loss, torch.Tensor) or not loss.requires_grad:
        return []
    return list(torch.autograd.grad(loss, wrt, allow_unused=True, **options))


def one_by_one(out, model, *inputs):
    """Each gradient alone, the last parameter's first, the graph retained."""
    loss = loss_of(out)
    if not isinstance(loss, torch.Tensor) or not loss.requires_grad:
        return []
    found = []
    for t in reversed(leaves(model, inputs)):
        found += torch.autograd.grad(loss, t, allow_unused=True, retain_graph=True)
    return found


def second(out, model, *inputs):
    """First and second derivatives."""
    first = grads(out, model, *inputs, create_graph=True)
    wrt = leaves(model, inputs) if first else []
    total = sum(g.square().sum() for g in first if g is not None and g.requires_grad)
    more = [None] * len(wrt)
    if isinstance(total, torch.Tensor):
        more = torch.autograd.grad(total, wrt, allow_unused=True)
    # Whether a derivative that is zero is None is torch's own affair.
    zeros = [torch.zeros_like(t) if g is None else g for t, g in zip(wrt, more, strict=True)]
    return [None if g is None else g.detach() for g in first] + zeros


def backward(out, **options):
    loss = loss_of(out)
    if isinstance(loss, torch.Tensor) and loss.requires_grad:
        loss.backward(**options)


def descend(model, rate=0.1):
    """A step of gradient descent, as optimizers make it."""
    with torch.no_grad():
        for p in model.parameters():
            if p.grad is not None:
                p.sub_(p.grad.clamp(-1, 1), alpha=rate)
                p.grad = None


def descend_by_data(model):
    """A step that no version counter shows."""
    for p in model.parameters():
        p.data.mul_(0.75)


class OwnInput(torch.autograd.Function):
    """z · tanh z, keeping z."""

    @staticmethod
    def forward(ctx, z):
        ctx.save_for_backward(z)
        return z * torch.tanh(z)

    @staticmethod
    def backward(ctx, d):
        (z,) = ctx.saved_tensors
        t = torch.tanh(z)
        return d * (t + z * (1 - t * t))


class OwnOutput(torch.autograd.Function):
    """tanh z, keeping what comes out."""

    @staticmethod
    def forward(ctx, z):
        a = torch.tanh(z)
        ctx.save_for_backward(a)
        return a

    @staticmethod
    def backward(ctx, d):
        (a,) = ctx.saved_tensors
        return d * (1 - a * a)


class OwnInPlace(torch.autograd.Function):
    """Doubles its input in place."""

    @staticmethod
    def forward(ctx, z):
        ctx.mark_dirty(z)
        return z.mul_(2)

    @staticmethod
    def backward(ctx, d):
        return d * 2


class OwnTwo(torch.autograd.Function):
    """Two outputs, of which the second keeps the first."""

    @staticmethod
    def forward(ctx, z):
        a = z.sigmoid()
        b = a * z
        ctx.save_for_backward(z, a)
        return a, b

    @staticmethod
    def backward(ctx, da, db):
        z, a = ctx.saved_tensors
        slope = a * (1 - a)
        return da * slope + db * (a + z * slope)


class Seeing(TorchFunctionMode):
    """Somebody's function mode that only counts."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.calls += 1
        return func(*args, **(kwargs or {}))


class Replacing(TorchFunctionMode):
    """Somebody's function mode that changes what some calls do."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func in (torch.sin, torch.flip, torch.Tensor.sin, torch.atan):
            return out * 1.5
        return out


class SeeingOps(TorchDispatchMode):
    """Somebody's dispatch mode that only counts."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls += 1
        return func(*args, **(kwargs or {}))


class ShiftingSums(TorchDispatchMode):
    """Somebody's dispatch mode that changes what sine gives."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        return out + 0.25 if func is torch.ops.aten.sin.default else out


def numpy_hooks():
    """Somebody's hooks that keep what is saved as numpy arrays."""

    def pack(t):
        return t.detach().to(torch.float64).numpy().copy(), t.dtype

    def unpack(packed):
        return torch.from_numpy(packed[0]).to(packed[1])

    return torch.autograd.graph.saved_tensors_hooks(pack, unpack)


def copying_hooks():
    """Somebody's hooks; those that hand back the tensor itself would hide writes from torch."""
    return torch.autograd.graph.saved_tensors_hooks(lambda t: t.detach().clone(), lambda t: t)


def in_a_thread(function, *args):
    """The same call in a thread of its own, which has no grad mode or modes of ours."""
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        return pool.submit(function, *args).result()


def dual(function, h):
    """The tangent of a function, by forward-mode differentiation."""
    with torch.autograd.forward_ad.dual_level():
        made = torch.autograd.forward_ad.make_dual(h, torch.ones_like(h))
        tangent = torch.autograd.forward_ad.unpack_dual(function(made)).tangent
        return torch.zeros_like(h) if tangent is None else tangent


def gathered(t, other):
    """``other`` arrives in ``t`` by a collective, of a group of one."""
    if not dist.is_initialized():
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    with torch.no_grad():
        dist.all_gather([t.detach()], other.detach().contiguous())


def compiled(function):
    return torch.compile(function, backend="eager")


def unversioned(t):
    return torch.autograd._unsafe_preserve_version_counter(t)


class Block(nn.Module):
    """A residual block."""

    def __init__(self, width):
        super().__init__()
        self.norm, self.up, self.down = (
            nn.LayerNorm(width),
            nn.Linear(width, 8),
            nn.Linear(8, width),
        )

    def forward(self, h):
        return h + self.down(F.gelu(self.up(self.norm(h))))


class Picture(nn.Module):
    """A residual block of convolutions."""

    def __init__(self, width):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width)
        self.act = nn.ReLU(inplace=True)

    def forward(self, h):
        y = self.norm(self.conv(h))
        y += h
        return self.act(y)


NAMES = {
    name: value
    for name, value in list(globals().items())
    if getattr(value, "__module__", None) == __name__
}
SHORT = {"torch": torch, "nn": nn, "F": F, "np": np, "contextlib": contextlib}
