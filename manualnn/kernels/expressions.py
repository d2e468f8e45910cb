"""Expressions: what a formula computes, step by step, each step once.

An expression is a list of steps. A step has a kind, earlier steps as its inputs, and rounds its result to the
expression's dtype, or is a truth value. The kinds are few, and exact: whoever prints them in another language
prints each as one operation.

    input constant                          what is given
    add sub mul div neg abs sqrt floor ceil trunc          rounded once
    lt le gt ge eq ne                       of numbers, a truth value
    and or xor not                          of truth values
    fma                                     a product and a sum, rounded once
    where number                            a choice; a truth value as 0 or 1
    narrow                                  rounded to a narrower dtype, as what lies in memory between is
    vml:NAME sleef:NAME                     a function of MKL's or SLEEF's, as ATen calls it
"""

import math
import struct
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

TRUTH = ("lt", "le", "gt", "ge", "eq", "ne", "and", "or", "xor", "not")
SIGNS = {"add": "+", "sub": "−", "mul": "·", "div": "/", "lt": "<", "le": "≤", "gt": ">", "ge": "≥"}
SIGNS |= {"eq": "=", "ne": "≠", "and": "and", "or": "or", "xor": "xor"}


class Step(NamedTuple):
    """One step: its kind, the places of its inputs, a constant's number or an input's place."""

    kind: str
    inputs: tuple[int, ...] = ()
    value: float = 0.0

    @property
    def truth(self) -> bool:
        """Whether it is a truth value, and no number."""
        return self.kind in TRUTH


@dataclass(frozen=True)
class Expression:
    """What a formula computes.

    steps: in order. output: the place of the result. inputs: the names of what is given. dtype: in which it is
    computed, float32 or float64. ragged: ATen computes some step in another way at the end of a tensor, where
    no whole vector is left. by_rows: the result lies by rows even where the input does not. narrow: the dtype
    to which results are rounded on the way, bfloat16 or float16, if any.
    """

    steps: tuple[Step, ...]
    output: int
    inputs: tuple[str, ...]
    dtype: torch.dtype
    ragged: bool = False
    by_rows: bool = False
    narrow: torch.dtype | None = None

    def __str__(self) -> str:
        names = self.names()
        lines = []
        for place, step in enumerate(self.steps):
            if step.kind not in ("input", "constant"):
                lines.append(f"{names[place]} = {_right_hand_side(step, names)}")
        return "\n".join([*lines, f"result: {names[self.output]}"])

    def names(self) -> list[str]:
        """A name for each step: an input's own, a constant's number, t1, t2, ..."""
        names, count = [], 0
        for step in self.steps:
            if step.kind == "input":
                names.append(self.inputs[int(step.value)])
            elif step.kind == "constant":
                names.append(f"{step.value:.9g}")
            else:
                count += 1
                names.append(f"t{count}")
        return names


def _right_hand_side(step, names):
    given = [names[i] for i in step.inputs]
    if step.kind in SIGNS:
        return f" {SIGNS[step.kind]} ".join(given)
    if step.kind == "where":
        return f"{given[1]} where {given[0]}, else {given[2]}"
    return f"{step.kind.partition(':')[2] or step.kind}({', '.join(given)})"


@dataclass
class Builder:
    """Collects steps; a step that is there already is shared."""

    dtype: torch.dtype
    steps: list[Step] = field(default_factory=list)
    ragged: bool = False
    by_rows: bool = False
    narrow: torch.dtype | None = None
    _places: dict[Any, int] = field(default_factory=dict)

    def step(self, kind: str, *inputs: int, value: float = 0.0) -> int:
        """The place of this step, a new one or the same that was made before."""
        made = Step(kind, inputs, value)
        key = (kind, inputs, struct.pack("d", value))  # −0 is not 0, and NaN is itself
        if key not in self._places:
            self._places[key] = len(self.steps)
            self.steps.append(made)
        return self._places[key]

    def constant(self, value: float) -> int:
        """The number, rounded to the dtype as ATen rounds it."""
        return self.step("constant", value=rounded(float(value), self.dtype))

    def narrowed(self, place: int) -> int:
        """The place of its number rounded to the narrow dtype; itself, if that holds it as it is."""
        return place if self._is_narrow(place) else self.step("narrow", place)

    def _is_narrow(self, place: int) -> bool:
        step = self.steps[place]
        if step.kind in ("narrow", "number"):
            return True
        if step.kind == "constant":
            number = torch.tensor(step.value, dtype=torch.float64, device="cpu")
            return float(number.to(self.narrow)) == step.value
        if step.kind == "where":
            return all(map(self._is_narrow, step.inputs[1:]))
        return step.kind in ("neg", "abs") and self._is_narrow(step.inputs[0])

    def finished(self, output: int, inputs: tuple[str, ...]) -> Expression:
        """The expression without the steps that its result does not need."""
        needed = {output}
        for place in range(len(self.steps) - 1, -1, -1):
            if place in needed:
                needed.update(self.steps[place].inputs)
            elif self.steps[place].kind == "input":
                needed.add(place)
        kept = sorted(needed)
        moved = {old: new for new, old in enumerate(kept)}
        steps = []
        for old in kept:
            step = self.steps[old]
            steps.append(step._replace(inputs=tuple(moved[i] for i in step.inputs)))
        flags = self.ragged, self.by_rows, self.narrow
        return Expression(tuple(steps), moved[output], inputs, self.dtype, *flags)


def rounded(value: float, dtype: torch.dtype) -> float:
    """A Python number as the dtype holds it; too large a one is infinite."""
    if dtype is torch.float64 or not math.isfinite(value):
        return value
    try:
        return struct.unpack("f", struct.pack("f", value))[0]
    except OverflowError:
        return math.copysign(math.inf, value)
