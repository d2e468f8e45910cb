"""Derivatives from differences, what they cannot tell apart, and how far two tensors are apart.

A difference is not a derivative at a kink (two slopes), at a jump or an infinite slope (none), and at the
edge of a domain (values on one side only). ``judge`` tells these from a wrong gradient.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch

WEIGHTS = ((1, 8 / 12), (-1, -8 / 12), (2, -1 / 12), (-2, 1 / 12))
RIGHT, KINK, CORNER, UNSURE, WRONG = "right", "kink", "corner", "unsure", "wrong"
EXAMINED = 24  # wrong elements of an input that finer steps are tried at


@dataclass(frozen=True)
class Precision:
    """What numbers are good for: eps, the steps of differences, how close a derivative must be to one
    (relative), and how close two computations of the same."""

    eps: float
    steps: tuple
    close: float
    exact: float


# Steps are shares of max(1, |x|). The error of the fourth-order difference is about step⁴, and eps / step of
# rounding. The finer ones serve where the function bends strongly, or a kink that nobody declared is near.
DOUBLE = Precision(2.3e-16, (1e-3, 1e-4, 1e-5, 1e-6, 1e-7), 1e-8, 1e-10)
SINGLE = Precision(1.2e-7, (3e-2, 1e-1, 1e-2, 3e-3), 1e-3, 1e-4)


def difference(function, point, direction, step):
    """The derivative of ``function`` along ``direction`` at ``point``: fourth-order central difference.

    (8 (f(x + h) − f(x − h)) − (f(x + 2h) − f(x − 2h))) / 12h.  function: tensors -> tuple of tensors.
    """
    total = None
    for times, weight in WEIGHTS:
        moved = [x if d is None else x + times * step * d for x, d in _pairs(point, direction)]
        with torch.no_grad():
            values = [weight / step * v.detach().double() for v in function(moved)]
        total = values if total is None else [a + b for a, b in zip(total, values, strict=True)]
    return total


def _pairs(point, direction):
    return zip(point, direction, strict=True)


def along(loss, inputs, i, direction):
    """t -> loss with inputs[i] moved by t · direction; NaN where it cannot be computed."""
    known = {}

    def at(t):
        if t not in known:
            moved = list(inputs)
            moved[i] = inputs[i] + t * direction
            try:
                known[t] = float(loss(moved))
            except Exception:  # outside its domain, a person's function may raise anything
                known[t] = math.nan
        return known[t]

    return at


def central(at, h):
    return sum(weight * at(times * h) for times, weight in WEIGHTS) / h


def judge(at: Callable, given: float, steps, tolerance: float, noise: float):
    """(RIGHT, KINK, CORNER, UNSURE or WRONG, the derivative of ``at`` at 0 or what comes nearest to it).

    given: what the derivative is said to be; noise: the rounding of one value of ``at``. KINK: it lies
    between the slopes of the two sides; CORNER: outside. UNSURE: the differences settle on nothing.
    """
    tried = []
    for h in steps:
        tried.append(central(at, h))
        if abs(tried[-1] - given) <= tolerance + 8 * noise / steps[0]:
            return RIGHT, tried[-1]
    left, right = (_side(at, side, steps, noise) for side in (-1, 1))
    if left is None and right is None:
        return UNSURE, math.nan
    if left is None or right is None:  # the edge of the domain
        value, doubt = left or right
        if abs(value - given) <= tolerance + 3 * doubt + 1e-4 * abs(value):
            return RIGHT, value
        return (UNSURE if _settles_not(value, doubt) else WRONG), value
    low, high = sorted((left, right))
    doubt = low[1] + high[1]
    if _settles_not(*low) or _settles_not(*high):  # a jump, or an infinite slope
        if low[0] <= given <= high[0]:
            return KINK, given
        return (
            WRONG if math.isnan(given) and not _settles_not(*min(low, high, key=_doubt)) else UNSURE
        ), low[0]
    if high[0] - low[0] > 3 * doubt + 1e-3 * max(abs(low[0]), abs(high[0])) + tolerance:
        room = doubt + 1e-3 * (abs(low[0]) + abs(high[0]))
        if low[0] - room <= given <= high[0] + room:
            return KINK, given
        nearer = low[0] if abs(low[0] - given) < abs(high[0] - given) else high[0]
        return CORNER, nearer
    settled = [
        (a, abs(a - b) + 0.2 * noise / h)
        for h, (a, b) in zip(steps, pairwise(tried), strict=False)
        if math.isfinite(a) and math.isfinite(b)
    ]
    if not settled:
        return UNSURE, low[0]
    value, doubt = min(settled, key=_doubt)
    if abs(value - given) <= tolerance + 3 * doubt:
        return RIGHT, value
    return (UNSURE if doubt > 0.1 * abs(value - given) else WRONG), value


def _side(at, side, steps, noise):
    """(the slope on one side, its doubt), by second-order differences; None where there are no values."""
    if not math.isfinite(at(0.0)):
        return None
    slopes = [
        (side * (4 * at(side * h) - at(side * 2 * h) - 3 * at(0.0)) / (2 * h), 8 * noise / h)
        for h in steps
    ]
    slopes = [(value, rounding) for value, rounding in slopes if math.isfinite(value)]
    if len(slopes) < 2:
        return None
    pairs = [(b[0], abs(a[0] - b[0]) + b[1]) for a, b in pairwise(slopes)]
    finest, before = slopes[-1][0], slopes[-2][0]
    if abs(finest) > 2 * abs(before) and abs(finest) > 100 * slopes[-1][1]:
        return finest, abs(finest)  # it grows as the step shrinks
    return min(pairs, key=_doubt)


def _doubt(slope):
    return slope[1]


def _settles_not(value, doubt):
    return doubt > 0.3 * abs(value) and doubt > 1e-3


@dataclass(frozen=True)
class Numeric:
    """A gradient from differences, at the elements looked at: all of them, or a sample.

    index: flat indices looked at; values: the derivative at each, which is the given one where nothing
    speaks against it; wrong: positions in ``index`` where something does; kinks: those at a kink.
    """

    index: torch.Tensor
    values: torch.Tensor
    shape: torch.Size
    wrong: tuple = ()
    kinks: tuple = ()

    @property
    def complete(self):
        return len(self.index) == self.shape.numel()

    def of(self, gradient):
        """The elements of a gradient that were looked at."""
        return gradient.reshape(-1)[self.index]


@dataclass(frozen=True)
class Question:
    """dloss/d(inputs[i]), of which it is said that it is ``given`` (None: zero).

    loss: tensors -> number; noise: the rounding of the loss; nearby: asks for what backward answers close by.
    mixed: whether several functions are called in turn, so that kinks may meet here: each has a slope between
    its own two sides, and what comes of them all need not lie between the two sides of the whole.
    """

    loss: Callable
    inputs: list
    i: int
    given: torch.Tensor | None
    noise: float
    precision: Precision
    seed: int = 0
    nearby: Callable | None = None
    mixed: bool = False

    def near(self, given, direction):
        """Whether it is the slope of backward beside the kink, at one of the sides that cannot be reached by
        moving along that direction: of three equal numbers, say, of which the largest two count."""
        if self.nearby is None or not math.isfinite(given):
            return False
        beside = [
            (g.reshape(-1).double() * direction).sum().item()
            for g in self.nearby()
            if g is not None
        ]
        room = 1e-4 * max(map(abs, beside), default=0.0)
        return bool(beside) and min(beside) - room <= given <= max(beside) + room

    def near_one(self, at, given):
        """The same of one element."""
        if self.mixed:
            return True
        direction = torch.zeros(self.x.numel(), dtype=torch.float64)
        direction[at] = 1
        return self.near(given, direction)

    @property
    def x(self):
        return self.inputs[self.i]

    @property
    def claims(self):
        if self.given is None:
            return torch.zeros(self.x.numel(), dtype=torch.float64)
        return self.given.detach().double().reshape(-1)

    def one(self, at):
        """t -> loss with one element moved, and the steps to take there."""
        direction = torch.zeros_like(self.x).reshape(-1)
        value = self.x.reshape(-1)[at].abs().item()
        direction[at] = 1.0
        scale = max(1.0, value) if math.isfinite(value) else 1.0
        steps = tuple(h * scale for h in self.precision.steps)
        if 0 < value < 0.1 and self.precision is DOUBLE:
            steps += (1e-3 * value, 1e-4 * value)
        return along(self.loss, self.inputs, self.i, direction.view(self.x.shape)), steps

    def towards(self, direction):
        """The verdict along a direction, given as a flat tensor."""
        at = along(self.loss, self.inputs, self.i, direction.view(self.x.shape))
        parts = (self.claims * direction.double())[direction != 0]
        size = parts[parts.isfinite()].norm().item()
        verdict, value = judge(
            at, parts.sum().item(), self.precision.steps, self.precision.close * size, self.noise
        )
        if verdict == CORNER:
            verdict = KINK if self.mixed else WRONG
        return verdict, value


def gradient(question, budget):
    """The Numeric of at most ``budget`` elements, one by one; the first and the last are among them."""
    count, claims = question.x.numel(), question.claims
    index = torch.arange(count)
    if count > budget:
        generator = torch.Generator().manual_seed(question.seed)
        ends = torch.tensor([0, 1, count - 2, count - 1])
        index = torch.cat((torch.randperm(count, generator=generator)[:budget], ends)).unique()
    places = [question.one(k) for k in index.tolist()]
    coarse = [central(at, steps[0]) for at, steps in places]
    sizes = [
        abs(v if math.isfinite(v) else claims[at].item())
        for at, v in zip(index.tolist(), coarse, strict=True)
    ]
    sizes = [size for size in sizes if math.isfinite(size)]
    tolerance = question.precision.close * max(sizes, default=0.0)
    values, wrong, kinks = torch.tensor(coarse, dtype=torch.float64), [], []
    for k, (at, steps) in enumerate(places):
        given = claims[index[k]].item()
        if abs(coarse[k] - given) <= tolerance + 8 * question.noise / steps[0]:
            continue
        if len(wrong) >= EXAMINED:
            wrong.append(k)
            continue
        verdict, value = judge(at, given, steps, tolerance, question.noise)
        if verdict == CORNER:
            verdict = KINK if question.near_one(int(index[k]), given) else WRONG
        values[k] = value if verdict == WRONG else given
        if verdict == WRONG:
            wrong.append(k)
        if verdict == KINK:
            kinks.append(k)
    return Numeric(index, values, question.x.shape, tuple(wrong), tuple(kinks))


def search(question, directions=2):
    """(flat index, derivative) of an element that is wrong, found along random directions; or None.

    Each direction moves every element. Where one does not agree, halves of it lead to an element.
    """
    count = question.x.numel()
    generator = torch.Generator().manual_seed(question.seed + 5)
    free, agreed = torch.ones(count, dtype=question.x.dtype), 0
    for _ in range(directions + 6):
        numbers = torch.rand(count, generator=generator) + 0.5
        signs = torch.randint(0, 2, (count,), generator=generator) * 2 - 1
        direction = (numbers * signs).to(question.x.dtype) * free
        if question.towards(direction)[0] != WRONG:
            agreed += 1
            if agreed == directions:
                return None
            continue
        low, high = 0, count
        while high - low > 1:
            middle = (low + high) // 2
            half = torch.zeros_like(direction)
            half[low:middle] = direction[low:middle]
            low, high = (low, middle) if question.towards(half)[0] == WRONG else (middle, high)
        at, steps = question.one(low)
        given = question.claims[low].item()
        tolerance = question.precision.close * max(abs(central(at, steps[0])), 1e-30)
        verdict, value = judge(at, given, steps, tolerance, question.noise)
        if verdict == WRONG or (verdict == CORNER and not question.near_one(low, given)):
            return low, value
        free[low] = 0  # a kink, or a number too small to tell: look elsewhere
    return None


def apart(ours, theirs, floor=0.0):
    """(largest relative error, flat index of it): |ours − theirs| over the largest |theirs|, or ``floor``.

    Equal infinities and NaN at the same place count as equal; a NaN on one side alone is infinitely far.
    """
    if ours.numel() == 0:
        return 0.0, None
    mine, other = ours.detach().double().reshape(-1), theirs.detach().double().reshape(-1)
    same = (mine == other) | (mine.isnan() & other.isnan())
    distance = torch.where(same, 0.0, (mine - other).abs()).nan_to_num(float("inf"))
    scale = max(largest(other), floor)
    at = int(distance.argmax())
    return distance[at].item() / (scale if scale > 0 else 1.0), at


def are_knots(t):
    """Whether all its numbers rise, as those of knots do, which are to go on rising."""
    return t.dim() == 1 and len(t) > 2 and bool((t.diff() > 0).all())


def largest(t):
    """The largest finite |element|."""
    finite = t.detach().double().abs().reshape(-1)
    finite = finite[finite.isfinite()]
    return finite.max().item() if len(finite) else 0.0


def place(name, shape, flat_index):
    """``dW[2, 1]``: an element by its indices."""
    if flat_index is None or not shape:
        return name
    indices = torch.unravel_index(torch.tensor(flat_index), shape)
    return f"{name}[{', '.join(str(i.item()) for i in indices)}]"
