"""The equations of a hand-written op, read from the op itself: its docstring, its g and g′."""

import ast
import inspect
import re
import textwrap
from dataclasses import dataclass

from manualnn.autograd.activation import Activation
from manualnn.ops import docstrings

_BACKWARD = re.compile(r"(transposed: )?(d[A-Za-z_]\w*(\[.*?\])?(, d\w+)*( = |, | as )|g′ )")
_SHAPES = re.compile(r"->|^\w+ \((\*|N|n|C|\))")


@dataclass(frozen=True)
class Formula:
    """What an op's docstring states, line by line.

    forward, backward: equations; shapes: of the tensors; caches: what is saved; source: where it is from.
    """

    forward: tuple = ()
    backward: tuple = ()
    shapes: tuple = ()
    caches: str = ""
    source: str = ""


def formula(cls):
    """The Formula of a hand-written Function; an empty one where its docstring states none."""
    text, caches, source, _ = docstrings.stated(cls)
    found = {"forward": [], "backward": [], "shapes": [], "caches": []}
    for lines_of, part in ((text, "forward"), (caches, "caches")):
        for line in map(str.strip, lines_of.partition("\n\n")[0].splitlines()):
            if _BACKWARD.match(line):
                part = "backward"
            elif part != "caches" and _SHAPES.search(line):
                part = "shapes"
            found[part].append(line)
    if not found["backward"] and not issubclass(cls, Activation):
        return Formula()  # a docstring of another kind
    forward, backward, shapes = (tuple(found[part]) for part in ("forward", "backward", "shapes"))
    caches, source = " ".join(found["caches"]), docstrings.joined(source)
    return Formula(forward, backward, shapes, caches, source)


@dataclass(frozen=True)
class G:
    """An activation as its op writes it.

    name: the op's; a, slope: g(z) and g′ as text, with what is said of the kink; where: the rest of the
    definitions in it; code, slope_code: the op's own lines of g and g′; from_output: whether g′ is made from
    a, which is then what is saved, or from z; options: {name: value}; elementwise: whether dz = da ∗ g′(z);
    learned: {name: ∂a/∂name}; cls: the op.
    """

    cls: type
    name: str
    a: str
    slope: str
    code: str | None
    slope_code: str | None
    from_output: bool
    options: dict
    elementwise: bool
    learned: dict


def g_of(cls, options, dtype):
    """The G of an op with these options; ``dtype`` is the one that it runs in."""
    stated = formula(cls)
    whole = issubclass(cls, Activation)
    a = next((_after(line, "a") for line in stated.forward if _after(line, "a")), None)
    slope = next((_after(line, "g′") for line in stated.backward if _after(line, "g′")), None)
    if whole:
        # _saves_output looks at a tensor's dtype alone.
        from_output = not cls.caches_input and cls._saves_output(_Like(dtype), options)
        code = lines(cls.g)
        slope_code = lines(cls.g_prime_a if from_output else cls.g_prime)
        named = dict(zip((p.name for p in cls.options()), options, strict=False))
        learned = {name: lines(getattr(cls, f"d_{name}")) for name in cls.learned}
    else:
        from_output, code, slope_code, named = False, None, None, {}
        slope = "; ".join(stated.backward)
        learned = dict(re.findall(r"d(\w+) = Σ da (.*?)(?:;|$)", slope))
    return G(
        cls,
        cls.__name__,
        a or code or "g(z)",
        slope or slope_code or "g′(z)",
        code,
        slope_code,
        from_output,
        named,
        whole,
        learned,
    )


def unstated(cls):
    """What can be said of an op whose docstring states no formula: the code of an activation's."""
    if not issubclass(cls, Activation):
        return ["its docstring states no formula"]
    slope = "g′ = " + str(lines(cls.g_prime or cls.g_prime_a))
    return [f"a = {lines(cls.g)}", slope + ("" if cls.g_prime else ", from a")]


class _Like:
    def __init__(self, dtype):
        self.dtype = dtype


def _after(line, symbol):
    found = re.match(rf"{symbol}(_i)? = (.*)", line)
    return None if found is None else found[2]


def lines(function):
    """What a function's body computes, as its own line of Python; None where the source is not at hand."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError):
        return None
    found = next((n for n in ast.walk(tree) if isinstance(n, (ast.FunctionDef, ast.Lambda))), None)
    if found is None:
        return None
    if isinstance(found, ast.Lambda):
        return ast.unparse(found.body)
    body = [
        ast.unparse(getattr(n, "value", n) if isinstance(n, ast.Return) else n) for n in found.body
    ]
    return ", ".join([body[-1], *(f"{line}" for line in body[:-1])])


def path_of(cls: type) -> str:
    """Where a person finds it: manualnn.ops.activations.ReLU."""
    package = cls.__module__.rpartition(".")
    if package[0].startswith("manualnn.ops.") or package[0] == "manualnn.ops":
        import sys

        if getattr(sys.modules.get(package[0]), cls.__name__, None) is cls:
            return f"{package[0]}.{cls.__name__}"
    return f"{cls.__module__}.{cls.__qualname__}"
