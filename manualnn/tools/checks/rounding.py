"""What the numbers of a function are good for: computed in float32 inside, or rounding and nothing else."""

import torch

from manualnn._torch import TorchDispatchMode, to_copy
from manualnn.tools.checks.numeric import largest


def cancels(subject, outputs):
    """Whether every output is zero, or so small that the rounding of the inputs moves it."""
    size = max(map(largest, outputs), default=0.0)
    if not size or size > 1e-12 or subject.dtype is not torch.float64:
        return not size
    for k in range(3):
        there = _moved(subject, 1e-15, subject.seed + 53 + k)
        if any(largest(a - b) > 0.02 * size for a, b in zip(outputs, there, strict=True)):
            return True
    return False


def is_rounded(subject):
    """Whether numbers of float64 are rounded to less on the way: seen as a cast that changes them, or found
    as an output that is blind to 1e-12 of the inputs, not to 1e-6."""
    try:
        with _Casts() as casts:  # at numbers that a narrower dtype does not hold
            _moved(subject, 1e-3, subject.seed + 3)
        if casts.rounded:
            return True
        base = _moved(subject, 0.0, 0)

        def share(step):
            there = _moved(subject, step, subject.seed + 3)
            changed = sum(int((a != b).sum()) for a, b in zip(there, base, strict=True))
            return changed / max(1, sum(o.numel() for o in base))

        finest = share(1e-12)
        if finest > 0.4:
            return False
        coarse, fine = share(1e-3), share(1e-6)
    except Exception:  # a step out of its domain
        return False
    return coarse > 0 and fine > 0.5 * coarse and finest < 0.1 * coarse


def spread(t, most=1e3):
    """How much larger its largest number is than its smallest one that is not 0; at the most a thousand."""
    sizes = t.detach().abs().flatten()
    sizes = sizes[(sizes > 0) & sizes.isfinite()]
    if not len(sizes):
        return 1.0
    return min(most, (sizes.max() / sizes.min()).item())


def of_nature(grads, true, least):
    """The gradients, with zeros for those below ``least`` that are zero by nature: rounding is all they are."""
    zero = [t is not None and not t.any() for t in true]
    return [
        torch.zeros_like(g)
        if g is not None and z and largest(g) <= least and g.isfinite().all()
        else g
        for g, z in zip(grads, zero, strict=True)
    ]


def _moved(subject, step, seed):
    """The outputs where every input has moved by that share of itself, about."""
    generator = torch.Generator().manual_seed(seed)
    moved = [
        t + step * torch.randn(t.shape, generator=generator, dtype=t.dtype) * t.abs().clamp(min=1.0)
        for t in subject.inputs
    ]
    with torch.no_grad():
        return subject.outputs(moved)


class _Casts(TorchDispatchMode):
    """Sees whether a tensor of float64 becomes a narrower one that has lost digits."""

    rounded = False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func is to_copy and args[0].dtype is torch.float64 and out.is_floating_point():
            given = args[0].detach()
            self.rounded |= bool(((out.double() != given) & given.isfinite()).any())
        return out
