"""Draws a program from a seed: each statement is tried on real tensors as soon as it is written.

So rules need not know what torch admits. What raises, or gives numbers that are not finite, is dropped.
"""

import random
import re

import torch
from torch import nn

from fuzzing.helpers import NAMES, SHORT
from fuzzing.program import Program, Statement, names_in

RULES: list[tuple[float, str, object]] = []  # weight, kind, function
LARGEST = 20000  # elements of a tensor
STORED = 300.0  # the largest number that goes on


def rule(weight, kind):
    """A way to write a statement: ``function(author)`` gives its text, a Statement, or None."""

    def add(function):
        RULES.append((weight, kind, function))
        return function

    return add


class Author:
    """Writes one program's forward pass, and knows the tensors that it has by then."""

    def __init__(self, seed, dtype="float64", keep="less"):
        self.rng = random.Random(seed)
        self.program = Program(seed, dtype, keep)
        self.model = nn.Module()
        self.names = dict(SHORT) | NAMES | {"self": self.model, "__name__": "fuzzing.program"}
        self.body = self.program.body
        self.scope = []  # names of float tensors, in order
        self.moved = []  # statements that change something outside of the graph, of `self` or a local name
        self.count = 0
        self.depth = 0
        self.large = self.rng.random() < 0.15

    # What rules ask for.

    def width(self):
        return self.rng.choice((16, 24, 32) if self.large else (2, 4, 4, 6, 8))

    def chance(self, p):
        return self.rng.random() < p

    def one(self, *options):
        return self.rng.choice(options)

    def new(self, letter="h"):
        self.count += 1
        return f"{letter}{self.count}"

    def value(self, name):
        return self.names[name]

    def pick(self, where=None):
        """The name of a tensor, mostly a recent one; None where there is no such."""
        found = [n for n in self.scope if where is None or where(self.names[n])]
        if not found:
            return None
        return self.rng.choice(found[-3:] if self.chance(0.7) else found)

    def alike(self, name, *dims):
        """Another tensor of the same shape, or the same one."""
        shape = self.names[name].shape
        return self.pick(lambda t: t.shape == shape)

    def broad(self, name):
        """A tensor that broadcasts to the other's shape."""
        shape = self.names[name].shape

        def fits(t):
            try:
                return torch.broadcast_shapes(t.shape, shape) == shape
            except RuntimeError:
                return False

        return self.pick(fits)

    def layer(self, text):
        """A layer of the model, made now: ``self.l3``."""
        return self._attribute("l", text)

    def buffer(self, text):
        return self._attribute("c", text)

    def _attribute(self, letter, text):
        self.count += 1
        name = f"self.{letter}{self.count}"
        statement = Statement(f"{name} = {text}")
        exec(statement.text, self.names)
        self.program.layers.append(statement)
        return name

    def lists(self, letter):
        """Names of that letter: lists, index tensors, arrays."""
        return [n for n in self.names if n[0] == letter and n[1:].isdigit()]

    # Writing.

    def write(self):
        """One more statement, by a rule drawn."""
        _, _, function = self.rng.choices(RULES, [w for w, _, _ in RULES])[0]
        return self.attempt(function)

    def attempt(self, function):
        layers = len(self.program.layers)
        before = dict(self.names)
        scope = list(self.scope)
        try:
            made = function(self)
            if made is not None and self.add(made):
                return True
        except Exception:  # torch does not admit it
            pass
        self.names.clear()
        self.names.update(before)
        self.scope = scope
        del self.program.layers[layers:]
        return False

    def add(self, made):
        statement = made if isinstance(made, Statement) else Statement(made)
        text = "\n".join(statement.lines(0))
        exec(compile(text, "<program>", "exec"), self.names)
        local = set()
        if statement.after:  # what a function's body names is its own
            local = {n for s in statement.body for n in names_in("\n".join(s.lines(0)))}
            local -= set(names_in(statement.after))
        fresh = []
        for name in dict.fromkeys(names_in(text)):
            t = self.names.get(name)
            if name in local or not isinstance(t, torch.Tensor):
                continue
            if not t.is_floating_point():
                continue
            if t.numel() > LARGEST or not self._is_sound(t):
                return False
            if name not in self.scope:
                fresh.append(name)
        self.scope += fresh
        self.body.append(statement)
        return True

    def _is_sound(self, t):
        t = t.detach()
        if t.is_sparse or not t.numel():
            return not t.is_sparse
        return bool(t.abs().amax() < STORED)

    def inside(self, n):
        """Statements of a block's body, written with what is known here; the names that they made."""
        outer, self.body = self.body, []
        scope = list(self.scope)
        self.depth += 1
        try:
            for _ in range(n):
                self.write()
            return self.body, [name for name in self.scope if name not in scope]
        finally:
            self.body = outer
            self.depth -= 1

    def function(self, n, inputs):
        """A local function's body: its statements, the name it returns, and its scope is closed."""
        names, scope = dict(self.names), list(self.scope)
        self.scope = list(inputs)
        body, made = self.inside(n)
        result = made[-1] if made else inputs[0]
        layers = {k: v for k, v in self.names.items() if k not in names and k[0] not in "h"}
        self.names.clear()
        self.names.update(names | layers)
        self.scope = scope
        return body, result


def mentions(program, pattern):
    return re.search(pattern, program.source()) is not None
