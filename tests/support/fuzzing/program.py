"""What a program is: layers, statements of a forward pass, and a script of events; all of them text."""

import re
from dataclasses import dataclass, field

INDENT = "    "


@dataclass
class Statement:
    """A line; or a header with a body under it, the body's last line, and what follows the body."""

    text: str
    body: "list[Statement] | None" = None
    last: str = ""
    after: str = ""

    def lines(self, depth):
        pad = INDENT * depth
        found = [pad + line for line in self.text.splitlines()]
        if self.body is not None:
            inside = [line for s in self.body for line in s.lines(depth + 1)]
            if self.last:
                inside.append(pad + INDENT + self.last)
            found += inside or [pad + INDENT + "pass"]
        if self.after:
            found += [pad + line for line in self.after.splitlines()]
        return found

    def renamed(self, names):
        body = None if self.body is None else [s.renamed(names) for s in self.body]
        return Statement(*(_renamed(t, names) for t in (self.text,)), body=body).with_ends(
            _renamed(self.last, names), _renamed(self.after, names)
        )

    def with_ends(self, last, after):
        self.last, self.after = last, after
        return self


@dataclass
class Program:
    """A model's constructor and forward pass, and what is done with the model."""

    seed: int
    dtype: str
    keep: str
    layers: list[Statement] = field(default_factory=list)
    inputs: list[Statement] = field(default_factory=list)
    body: list[Statement] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    events: list[Statement] = field(default_factory=list)

    PARTS = ("layers", "inputs", "body", "events")

    def source(self):
        """The class Net and the function script, which appends what it sees to a list."""
        lines = ["class Net(nn.Module):", INDENT + "def __init__(self):"]
        lines.append(INDENT * 2 + "super().__init__()")
        lines += [line for s in self.layers for line in s.lines(2)]
        lines += ["", INDENT + "def forward(self, x):"]
        lines += [line for s in self.body for line in s.lines(2)]
        lines.append(INDENT * 2 + "return " + ", ".join(self.outputs))
        lines += ["", "", "def script(model, seen):"]
        lines += [line for s in (*self.inputs, *self.events) for line in s.lines(1)]
        return "\n".join(lines) + "\n"

    def size(self):
        return len(self.source().splitlines())


def names_in(text):
    """The variables of a text: a letter and a number each."""
    return re.findall(r"(?<![\w.])[a-z]\d+\b", text)


def _renamed(text, names):
    for old, new in names.items():
        text = re.sub(rf"(?<![\w.]){old}\b", new, text)
    return text
