"""Derivatives from differences, and how far two tensors are apart."""

from dataclasses import dataclass
from itertools import pairwise

import torch

# Shares of max(1, |x|). The error of the fourth-order difference is about step⁴, and 1e-16 / step of
# rounding. The finer ones serve where the function bends strongly, or a kink that nobody declared is near.
STEPS = (1e-3, 1e-4, 1e-5, 1e-6, 1e-7)
WEIGHTS = ((1, 8 / 12), (-1, -8 / 12), (2, -1 / 12), (-2, 1 / 12))


def difference(function, point, direction, step=STEPS[0]):
    """The derivative of ``function`` along ``direction`` at ``point``: fourth-order central difference.

    (8 (f(x + h) − f(x − h)) − (f(x + 2h) − f(x − 2h))) / 12h.  function: tensors -> tuple of tensors.
    """
    total = None
    for times, weight in WEIGHTS:
        moved = [
            x if d is None else x + times * step * d for x, d in zip(point, direction, strict=True)
        ]
        with torch.no_grad():
            values = [weight / step * v.detach() for v in function(moved)]
        total = values if total is None else [a + b for a, b in zip(total, values, strict=True)]
    return total


@dataclass(frozen=True)
class Numeric:
    """A gradient from differences, at the elements looked at: all of them, or a sample.

    index: flat indices looked at; values: the derivative at each.
    """

    index: torch.Tensor
    values: torch.Tensor
    shape: torch.Size

    @property
    def complete(self):
        return len(self.index) == self.shape.numel()

    def of(self, gradient):
        """The elements of a gradient that were looked at."""
        return gradient.reshape(-1)[self.index]

    def whole(self):
        return self.values.view(self.shape)


def gradient(loss, inputs, i, budget, seed, given=None, close=0.0):
    """dloss/d(inputs[i]) by differences, element by element, of at most ``budget`` elements.

    Where that is further than ``close`` (relative) from the gradient ``given``, finer steps are tried, and
    the one on which two neighbours agree best is taken; what they differ by is its uncertainty.
    """
    shape, count = inputs[i].shape, inputs[i].numel()
    index = torch.arange(count)
    if count > budget:
        generator = torch.Generator().manual_seed(seed)
        index = torch.randperm(count, generator=generator)[:budget].sort().values

    def moved(at, step):
        direction = [None] * len(inputs)
        one = torch.zeros(count, dtype=inputs[i].dtype, device=inputs[i].device)
        scale = max(1.0, inputs[i].reshape(-1)[at].abs().item())
        one[at] = scale
        direction[i] = one.view(shape)
        return difference(loss, inputs, direction, step)[0] / scale

    values = torch.tensor([moved(at, STEPS[0]) for at in index.tolist()], dtype=torch.float64)
    if given is not None and len(index):
        given = given.detach().double().reshape(-1)[index]
        far = (given - values).abs() > close * values.abs().max()
        for k in far.nonzero().flatten().tolist():
            tried = [values[k].item(), *(float(moved(int(index[k]), s)) for s in STEPS[1:])]
            apart_by = [abs(a - b) for a, b in pairwise(tried)]
            best = min(range(len(apart_by)), key=apart_by.__getitem__)
            values[k] = tried[best]
            if abs(given[k] - tried[best]) <= 3 * apart_by[best]:
                values[k] = given[k]
    return Numeric(index, values, shape)


def apart(ours, theirs):
    """(largest relative error, flat index of it): |ours − theirs| over the largest |theirs|.

    Equal infinities and NaN at the same place count as equal; a NaN on one side alone is infinitely far.
    """
    if ours.numel() == 0:
        return 0.0, None
    mine, other = ours.detach().double().reshape(-1), theirs.detach().double().reshape(-1)
    same = (mine == other) | (mine.isnan() & other.isnan())
    distance = torch.where(same, 0.0, (mine - other).abs()).nan_to_num(float("inf"))
    finite = other[other.isfinite()].abs()
    scale = finite.max().item() if len(finite) else 0.0
    at = distance.argmax().item()
    return distance[at].item() / (scale if scale > 0 else 1.0), at


def place(name, shape, flat_index):
    """``dW[2, 1]``: an element by its indices."""
    if flat_index is None or not shape:
        return name
    indices = torch.unravel_index(torch.tensor(flat_index), shape)
    return f"{name}[{', '.join(str(i.item()) for i in indices)}]"
