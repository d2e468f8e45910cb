"""An expression as Triton: the same steps, for a GPU.

The text is a file of its own: ``kernel`` and ``run``, which launches it. Nothing of manualnn calls it, and
nothing is promised of its bits: a GPU's exp is not a processor's.
"""

import torch

from manualnn.kernels.c import OPERATORS
from manualnn.kernels.expressions import Expression

_TYPES = {torch.float32: "tl.float32", torch.float64: "tl.float64"}
_LANGUAGE = {"exp", "log", "sin", "cos", "erf", "exp2", "log2", "abs", "floor", "ceil", "fma"}


def source(expression: Expression, singles: tuple[bool, ...] = ()) -> str:
    """The text of a file with the expression's kernel.

    Args:
        singles: of each input, whether it is one number for all elements; left out: none is.
    """
    return _Printer(expression, singles or (False,) * len(expression.inputs)).text()


class _Printer:
    def __init__(self, expression, singles):
        self.expression, self.singles = expression, singles
        self.type = _TYPES[expression.dtype]
        self.names = [self.name(i, name) for i, name in enumerate(expression.names())]

    def name(self, place, name):
        step = self.expression.steps[place]
        if step.kind == "input":
            return f"{name}_i"
        if step.kind != "constant":
            return name
        number = repr(step.value) if abs(step.value) < float("inf") else f'float("{step.value}")'
        if self.type == "tl.float64" or "float" in number:
            return f"tl.full((), {number}, {self.type})"
        return f"({number})" if number.startswith("-") else number

    def text(self):
        inputs = ", ".join(self.expression.inputs)
        steps = self.expression.steps
        lines = [self.line(p) for p, s in enumerate(steps) if s.kind not in ("input", "constant")]
        uses = ["from triton.language.extra import libdevice"] * any(
            "libdevice" in x for x in lines
        )
        return "\n".join(
            [
                "import torch",
                "import triton",
                "import triton.language as tl",
                *uses,
                "",
                "",
                "@triton.jit",
                f"def kernel({inputs}, out, n, ROWS: tl.constexpr):",
                "    at = tl.program_id(0) * ROWS + tl.arange(0, ROWS)",
                "    here = at < n",
                *map(self.reading, self.expression.inputs, self.singles),
                *lines,
                f"    tl.store(out + at, {self.names[self.expression.output]}, mask=here)",
                "",
                "",
                f"def run({inputs}):",
                f"    out = torch.empty_like({self.expression.inputs[0]})",
                f"    kernel[(triton.cdiv(out.numel(), 1024),)]({inputs}, out, out.numel(), ROWS=1024)",
                "    return out",
                "",
            ]
        )

    def reading(self, name, single):
        place = f"{name}" if single else f"{name} + at, mask=here"
        return f"    {name}_i = tl.load({place}).to({self.type})"

    def line(self, place):
        return f"    {self.names[place]} = {self.value(self.expression.steps[place])}"

    def value(self, step):
        given = [self.names[i] for i in step.inputs]
        kind = step.kind.partition(":")[2] or step.kind
        if kind == "div" and self.type == "tl.float32":  # a plain / is not rounded to the nearest
            return f"tl.div_rn({', '.join(given)})" if self.is_tensor(step) else " / ".join(given)
        if kind == "sqrt" and self.type == "tl.float32":
            return f"tl.sqrt_rn({given[0]})"
        if kind in OPERATORS:
            return f" {OPERATORS[kind]} ".join(given)
        if kind == "neg":
            return f"-{given[0]}"
        if kind == "not":
            return f"~{given[0]}"
        if kind == "number":
            return f"{given[0]}.to({self.type})"
        if kind == "where":
            return f"tl.where({', '.join(given)})"
        of = "tl" if kind in (*_LANGUAGE, "sqrt") else "libdevice"
        return f"{of}.{kind}({', '.join(given)})"

    def is_tensor(self, step):
        return all(self.expression.steps[i].kind != "constant" for i in step.inputs)
