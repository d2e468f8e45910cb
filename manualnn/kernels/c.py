"""An expression as C: one loop over the elements, cut where a function takes a whole array.

The compiler makes vectors of it. It may not contract a product and a sum into one rounding, nor reorder
(``manualnn.kernels.build`` says so to it): each step rounds as ATen's operation does.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from manualnn.kernels import library
from manualnn.kernels.expressions import Expression

ROWS = 1024  # elements at a time: what functions of whole arrays take and give stays in the first cache

OPERATORS = {"add": "+", "sub": "-", "mul": "*", "div": "/", "lt": "<", "le": "<=", "gt": ">"}
OPERATORS |= {"ge": ">=", "eq": "==", "ne": "!=", "and": "&", "or": "|", "xor": "^"}
MATHS = {"abs": "fabs", "sqrt": "sqrt", "floor": "floor", "ceil": "ceil", "trunc": "trunc"}
TYPES = {torch.float32: "float", torch.float64: "double", torch.bfloat16: "unsigned short"}
TYPES |= {torch.float16: "_Float16"}

_BFLOAT16 = """
static inline float from_bfloat16(unsigned short x)
{
    union { unsigned int bits; float number; } u = { (unsigned int)x << 16 };
    return u.number;
}

static inline unsigned short to_bfloat16(float x) /* to the nearest, of two the even one */
{
    union { float number; unsigned int bits; } u = { x };
    unsigned int rounded = (u.bits + 0x7fff + ((u.bits >> 16) & 1)) >> 16;
    return x != x ? 0x7fc0 : rounded;
}
"""


class Given(NamedTuple):
    """A tensor that a kernel is given.

    single: one number for all elements. by_channel: one for each channel, of tensors that lie by planes, or, if
    ``last``, by places: the channels of each place together.
    """

    dtype: torch.dtype
    single: bool = False
    by_channel: bool = False
    last: bool = False

    @property
    def uniform(self) -> bool:
        """Whether all elements that are computed together have the same number."""
        return self.single or (self.by_channel and not self.last)


class Program(NamedTuple):
    """One kernel in C.

    declarations: what it needs, and shares with others of one file. body: itself. name: of the function that is
    called. functions: those of torch's library that it calls.
    """

    declarations: tuple[str, ...]
    body: str
    name: str
    functions: tuple[library.Function, ...]

    def names(self) -> tuple[str, ...]:
        """Of what is looked up in the shared object."""
        return (self.name, *(f.pointer for f in self.functions))


def text(programs: Sequence[Program]) -> str:
    """The file of some kernels: what they need, each once, and they."""
    declarations = dict.fromkeys(d for p in programs for d in p.declarations)
    parts = ["typedef long long count;", f"enum {{ ROWS = {ROWS} }};", *declarations]
    return "\n\n".join([*parts, *(p.body for p in programs)]) + "\n"


def program(
    expression: Expression, given: Sequence[Given], out: torch.dtype, name: str = "run"
) -> Program | None:
    """The C of an expression, or None where ATen computes a function otherwise, or torch's library lacks it.

    Args:
        given: how the expression's inputs lie in memory.
        out: the dtype of the result.
        name: of the function that is called: run(how many elements, how many threads, the tensors), or, where
            something has one number for each channel, run(how many planes, channels, elements of a plane,
            threads, the tensors), or, if that lies last, run(how many places, channels, threads, the tensors).
    """
    functions: dict[str, library.Function] = {}
    varies: list[bool] = []  # whether a step has a number for each element
    for step in expression.steps:
        here = step.kind == "input" and not given[int(step.value)].uniform
        varies.append(here or any(varies[i] for i in step.inputs))
        if ":" in step.kind:
            if not varies[-1]:  # of one number ATen computes it otherwise
                return None
            found = library.function(step.kind, expression.dtype)
            if found is None:
                return None
            functions[step.kind] = found
    printer = _Printer(expression, given, out, functions, name)
    body = "\n".join([*printer.block(), "", *printer.run()])
    return Program(tuple(printer.declarations()), body, name, tuple(functions.values()))


class _Printer:
    def __init__(self, expression, given, out, functions, function_name):
        self.expression, self.given, self.out = expression, given, out
        self.functions, self.function_name = functions, function_name
        self.number = TYPES[expression.dtype]
        self.truth = "int" if self.number == "float" else "long long"
        self.places = range(len(expression.steps))
        self.names = expression.names()
        self.first = self.stages()
        self.buffered = self.across_stages()

    def is_call(self, place):
        return ":" in self.expression.steps[place].kind

    def is_constant(self, place):
        return self.expression.steps[place].kind == "constant"

    def is_given(self, place):
        return self.expression.steps[place].kind in ("input", "constant")

    def stages(self):
        """The stage of each step: a call ends one. What is no call is computed as late as can be."""
        steps, ends = self.expression.steps, {}
        early = []
        for step in steps:
            early.append(max((early[i] + self.is_call(i) for i in step.inputs), default=0))
        late = dict.fromkeys(self.places, max(early, default=0) + 1)
        for place in reversed(self.places):
            if self.is_call(place):
                late[place] = early[place]
            elif place == self.expression.output:
                late[place] = early[place]
            for i in steps[place].inputs:
                ends.setdefault(i, []).append(late[place])
                late[i] = min(late[i], late[place])
        return late

    def across_stages(self):
        """The steps kept in an array: given to a call or by one, or needed in a later stage."""
        kept = set()
        for place in self.places:
            step = self.expression.steps[place]
            if self.is_call(place):
                kept.add(place)
                kept.update(i for i in step.inputs if not self.passed_on(place, i))
            for i in step.inputs:
                if not self.is_given(i) and self.first[i] < self.first[place]:
                    kept.add(i)
        return kept

    def passed_on(self, place, i):
        """Whether a call takes input i where it lies: an array function, a whole tensor of the same type."""
        step = self.expression.steps[i]
        if step.kind != "input" or not self.functions[self.expression.steps[place].kind].array:
            return False
        given = self.given[int(step.value)]
        return not given.uniform and TYPES[given.dtype] == self.number

    # --- the text ---------------------------------------------------------------------------------

    def declarations(self):
        if torch.bfloat16 in {self.out, *(g.dtype for g in self.given)}:
            yield _BFLOAT16.strip()
        number, size = self.number, library.width(self.expression.dtype)
        for kind, f in sorted(self.functions.items()):
            if f.array:
                arrays = f"count, const {number} *, {number} *, count"
                yield f"void (*{f.pointer})({arrays}); /* MKL's, in torch's library */"
                continue
            width = size * self.expression.dtype.itemsize
            yield f"typedef {number} {number}s __attribute__((vector_size({width})));"
            given = "xy"[: _arity(kind)]
            takes = ", ".join([f"{number}s"] * len(given))
            arrays = ", ".join(f"const {number} *{name}" for name in given)
            values = ", ".join(f"*(const {number}s *)({name} + i)" for name in given)
            yield "\n".join(
                [
                    f"{number}s (*{f.pointer})({takes}); /* SLEEF's, in torch's library */",
                    "",
                    f"static void {self.over_vectors(kind)}(count n, {arrays}, {number} *out)",
                    "{",
                    f"    for (count i = 0; i < n; i += {size})",
                    f"        *({number}s *)(out + i) = {f.pointer}({values});",
                    "}",
                ]
            )

    def over_vectors(self, kind):
        return f"{kind.replace(':', '_')}{'f' if self.number == 'float' else ''}"

    def block(self):
        steps, lines = self.expression.steps, []
        for place in sorted(self.buffered):
            kind = self.truth if steps[place].truth else self.number
            lines.append(f"    {kind} {self.array(place)}[ROWS] __attribute__((aligned(64)));")
        for stage in range(max(self.first[p] for p in self.places) + 1):
            body = self.loop(stage)
            if body:
                lines += ["    for (count i = 0; i < n; i++) {", *body, "    }"]
            for place in self.places:
                if self.is_call(place) and self.first[place] == stage:
                    lines.append(f"    {self.call(place)}")
        if self.is_call(self.expression.output):
            value = self.stored(f"{self.array(self.expression.output)}[i]")
            lines += ["    for (count i = 0; i < n; i++)", f"        out[i] = {value};"]
        comment = "\n   ".join(str(self.expression).splitlines())
        head = f"static void {self.function_name}_block({self.parameters()})"
        return [f"/* {comment} */", head, "{", *lines, "}"]

    def loop(self, stage):
        """The lines of one stage: what is read, what is computed, what is kept."""
        steps, lines, output = self.expression.steps, [], self.expression.output
        here = [p for p in self.places if self.computed_in(p, stage)]
        named = set()
        for place in here:
            for i in steps[place].inputs:
                if i not in named and i not in here:
                    lines += self.reading(i)
                    named.add(i)
            if self.is_given(place):
                lines += [] if place in named else self.reading(place)
                named.add(place)
            else:
                kind = self.truth if steps[place].truth else self.number
                lines.append(f"        {kind} {self.name(place)} = {self.value(steps[place])};")
            if place in self.buffered:
                lines.append(f"        {self.array(place)}[i] = {self.name(place)};")
            if place == output:
                lines.append(f"        out[i] = {self.stored(self.name(place))};")
        return lines

    def computed_in(self, place, stage):
        if self.is_call(place):
            return False
        if self.is_given(place):
            needed = place in self.buffered or place == self.expression.output
            return needed and self.first[place] == stage
        return self.first[place] == stage

    def reading(self, place):
        step = self.expression.steps[place]
        if step.kind == "constant":
            return []
        if step.kind == "input":
            given = self.given[int(step.value)]
            if given.uniform:
                return []
            read = self.read(given.dtype, f"{self.expression.inputs[int(step.value)]}[i]")
            return [f"        {self.number} {self.name(place)} = {read};"]
        kind = self.truth if step.truth else self.number
        return [f"        {kind} {self.name(place)} = {self.array(place)}[i];"]

    def value(self, step):
        given = [self.name(i) for i in step.inputs]
        if step.kind in OPERATORS:
            return f" {OPERATORS[step.kind]} ".join(given)
        if step.kind in MATHS:
            letter = "f" if self.number == "float" else ""
            return f"__builtin_{MATHS[step.kind]}{letter}({given[0]})"
        if step.kind == "fma":
            return f"__builtin_fma{'f' if self.number == 'float' else ''}({', '.join(given)})"
        if step.kind == "where":
            return f"{given[0]} ? {given[1]} : {given[2]}"
        if step.kind == "narrow":
            if self.expression.narrow is torch.bfloat16:
                return f"from_bfloat16(to_bfloat16({given[0]}))"
            return f"({self.number})({TYPES[self.expression.narrow]}){given[0]}"
        return {
            "neg": f"-{given[0]}",
            "not": f"!{given[0]}",
            "number": f"({self.number}){given[0]}",
        }[step.kind]

    def call(self, place):
        step = self.expression.steps[place]
        f = self.functions[step.kind]
        given = []
        for i in step.inputs:
            if self.passed_on(place, i):
                given.append(self.expression.inputs[int(self.expression.steps[i].value)])
            else:
                given.append(self.array(i))
        if f.array:  # 0x140102: exact to the last place or so, denormals kept, no errors told
            return f"{f.pointer}(n, {given[0]}, {self.array(place)}, 0x140102);"
        return f"{self.over_vectors(step.kind)}(n, {', '.join(given)}, {self.array(place)});"

    def name(self, place):
        step = self.expression.steps[place]
        if step.kind == "constant":
            return _literal(step.value, self.number)
        if step.kind == "input":
            name = self.expression.inputs[int(step.value)]
            return name if self.given[int(step.value)].uniform else f"{name}_i"
        return self.names[place]

    def array(self, place):
        return f"all_{self.names[place]}" if not self.is_constant(place) else f"all_c{place}"

    def read(self, dtype, text):
        if dtype is torch.bfloat16:
            return f"from_bfloat16({text})"
        return text

    def stored(self, text):
        return f"to_bfloat16({text})" if self.out is torch.bfloat16 else text

    def parameters(self):
        parts = ["count n"]
        for name, given in zip(self.expression.inputs, self.given, strict=True):
            kind = TYPES[given.dtype]
            parts.append(
                f"{self.number} {name}" if given.uniform else f"const {kind} *restrict {name}"
            )
        return ", ".join([*parts, f"{TYPES[self.out]} *restrict out"])

    def run(self):
        """What Python calls: the blocks, shared among the threads."""
        lines = [f"    {TYPES[self.out]} *out = tensors[0];"]
        by_channel = [g for g in self.given if g.by_channel]
        by_places = any(g.last for g in by_channel)
        at = "row * size + at" if by_channel else "at"
        passed, within = [], []
        for place, (name, given) in enumerate(zip(self.expression.inputs, self.given, strict=True)):
            kind, number = TYPES[given.dtype], self.number
            if given.single:
                read = self.read(given.dtype, f"*(const {kind} *)tensors[{place + 1}]")
                lines.append(f"    const {number} {name} = {read};")
            elif given.uniform:
                lines.append(f"    const {kind} *each_{name} = tensors[{place + 1}];")
                read = self.read(given.dtype, f"each_{name}[row % channels]")
                within.append(f"        const {number} {name} = {read};")
            else:
                lines.append(f"    const {kind} *{name} = tensors[{place + 1}];")
            whole = name if given.uniform else f"{name} + {at}"
            passed.append(f"{name} + at" if given.last else whole)
        handed = ", ".join([*passed, f"out + {at}"])
        parallel = (
            "    #pragma omp parallel for num_threads(threads) if(threads > 1) schedule(static)"
        )
        if not by_channel:
            return [
                f"void {self.function_name}(count n, int threads, void **tensors)",
                *("{", *lines, parallel),
                "    for (count at = 0; at < n; at += ROWS)",
                f"        {self.function_name}_block(n - at < ROWS ? n - at : ROWS, {handed});",
                "}",
            ]
        # A row is a plane, or the channels of a place.
        rows, size = ("places", "channels") if by_places else ("planes", "places")
        sizes = f"count {rows}, count channels" + ("" if by_places else ", count places")
        return [
            f"void {self.function_name}({sizes}, int threads, void **tensors)",
            *("{", f"    const count size = {size};", *lines, parallel),
            f"    for (count row = 0; row < {rows}; row++) {{",
            *within,
            "        for (count at = 0; at < size; at += ROWS)",
            f"            {self.function_name}_block(size - at < ROWS ? size - at : ROWS, {handed});",
            "    }",
            "}",
        ]


def _arity(kind):
    return 2 if kind == "sleef:pow" else 1


def _literal(value, number):
    """The number in C, exactly: nine digits determine a float32, and repr gives enough for a float64."""
    letter = "f" if number == "float" else ""
    if value != value:
        return f'__builtin_nan{letter}("")'
    if abs(value) == float("inf"):
        return f"{'-' if value < 0 else ''}__builtin_inf{letter}()"
    text = f"{value:.9g}" if letter else repr(value)
    text += "" if "e" in text or "." in text else ".0"
    return f"({text}{letter})" if text.startswith("-") else text + letter
