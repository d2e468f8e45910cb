"""Makes a failing program small: statements go one by one, sizes shrink, while it fails in the same way."""

import copy
import re
import time

from fuzzing.program import Statement, names_in
from fuzzing.running import judge

SECONDS = 20.0


def minimise(program, key, judge=judge, seconds=SECONDS):
    """The smallest program found whose verdict's key is still ``key``."""
    until = time.monotonic() + seconds

    def fails(candidate):
        try:
            return judge(candidate).key() == key
        except SyntaxError:
            return False

    smaller = True
    while smaller and time.monotonic() < until:
        smaller = False
        for candidate in candidates(program):
            if time.monotonic() > until:
                break
            if candidate.size() <= program.size() and candidate.source() != program.source():
                if fails(candidate):
                    program, smaller = candidate, True
                    break
    return program


def candidates(program):
    """Smaller programs, the much smaller ones first."""
    for part in ("events", "body"):
        n = len(getattr(program, part))
        for width in (n // 2, n // 4):
            if width > 1:
                for at in range(0, n, width):
                    yield from _without(program, part, range(at, min(at + width, n)))
    for part in ("events", "body", "layers", "inputs"):
        for i in reversed(range(len(getattr(program, part)))):
            yield from _without(program, part, range(i, i + 1))
    for part in ("events", "body"):
        for i, statement in enumerate(getattr(program, part)):
            for made in _simpler(statement):
                smaller = copy.deepcopy(program)
                getattr(smaller, part)[i : i + 1] = made
                yield smaller
    for i in range(len(program.outputs)):
        if len(program.outputs) > 1:
            smaller = copy.deepcopy(program)
            del smaller.outputs[i]
            yield smaller
    yield from _shrunk(program)


def _without(program, part, places):
    """Without these statements; what they made is replaced by something that they were given."""
    smaller = copy.deepcopy(program)
    statements = getattr(smaller, part)
    gone = [statements[i] for i in places]
    setattr(smaller, part, [s for i, s in enumerate(statements) if i not in places])
    if part != "body" or len(gone) != 1:
        if part == "body" and gone:
            _rename_lost(smaller, gone)
        yield smaller
        return
    text = "\n".join(gone[0].lines(0))
    made = re.findall(r"(?m)^([a-z]\d+)\b(?:, ([a-z]\d+))? = ", text)
    made = [m for pair in made for m in pair if m]
    given = [n for n in dict.fromkeys(names_in(text)) if n not in made and n[0] == "h"]
    if not made:
        yield smaller
    for name in given[:3]:
        other = copy.deepcopy(smaller)
        names = dict.fromkeys(made, name)
        other.body = [s.renamed(names) for s in other.body]
        other.outputs = [names.get(o, o) for o in other.outputs]
        yield other


def _rename_lost(program, gone):
    made = [m for s in gone for m in re.findall(r"(?m)^ *([a-z]\d+)\b", "\n".join(s.lines(0)))]
    left = [
        m for s in program.body for m in re.findall(r"(?m)^([a-z]\d+) = ", "\n".join(s.lines(0)))
    ]
    lost = [m for m in made if m not in left]
    names = dict.fromkeys(lost, left[-1] if left else "x")
    program.body = [s.renamed(names) for s in program.body]
    program.outputs = [names.get(o, o) for o in program.outputs]


def _simpler(statement):
    """A block's body alone, or the block with less in it; a line of several."""
    if statement.body is not None:
        if not statement.after:
            yield statement.body
        else:
            match = re.match(r"def \w+\((\w+)\):", statement.text)
            target = statement.after.split(" = ")[0]
            if match and statement.last.startswith("return "):
                yield [*statement.body, Statement(f"{target} = {statement.last[7:]}")]
            made = [n for s in statement.body for n in re.findall(r"(?m)^([a-z]\d+) = ", s.text)]
            for name in [match[1], *made] if match else ():
                yield [Statement(statement.text, statement.body, f"return {name}", statement.after)]
        for i in range(len(statement.body)):
            if len(statement.body) > 1:
                rest = statement.body[:i] + statement.body[i + 1 :]
                yield [Statement(statement.text, rest, statement.last, statement.after)]
            for made in _simpler(statement.body[i]):
                rest = statement.body[:i] + made + statement.body[i + 1 :]
                yield [Statement(statement.text, rest, statement.last, statement.after)]
    elif "\n" in statement.text:
        lines = statement.text.splitlines()
        for i in range(len(lines)):
            yield [Statement("\n".join(lines[:i] + lines[i + 1 :]))]


def _shrunk(program):
    """Every whole number of the layers and inputs smaller, everywhere at once."""
    source = "\n".join(s.text for s in (*program.layers, *program.inputs))
    for number in sorted(
        {int(n) for n in re.findall(r"(?<![\w.])\d+\b(?!\.)", source)}, reverse=True
    ):
        for less in sorted({2, 3, number // 2}):
            if 0 < less < number:
                smaller = copy.deepcopy(program)
                for part in program.PARTS:
                    setattr(
                        smaller, part, [_replaced(s, number, less) for s in getattr(smaller, part)]
                    )
                yield smaller


def _replaced(statement, number, less):
    def change(text):
        return re.sub(rf"(?<![\w.]){number}\b(?!\.)", str(less), text)

    body = None if statement.body is None else [_replaced(s, number, less) for s in statement.body]
    return Statement(change(statement.text), body, change(statement.last), change(statement.after))


def outline(program):
    """The same for programs that differ in names, sizes and numbers alone."""
    text = re.sub(r"[\d.]+", "", program.source())
    return text
