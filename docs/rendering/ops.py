"""The pages of the ops: every hand-written Function with its docstring, its plot and its source."""

import importlib
import inspect
import pkgutil
import re
from functools import cache

import torch

from manualnn import functional as F
from manualnn import nn, ops
from manualnn.autograd.activation import Activation
from manualnn.autograd.function import Function
from manualnn.ops.docstrings import joined, parts, without_verb
from manualnn.ops.losses.pointwise import PointwiseLoss
from manualnn.ops.network import Network
from rendering import plots, source
from rendering.formulas import escaped, formula, inline

# How an op is drawn whose options have no defaults, or whose functional has another name.
DRAWN = {
    "GELUTanh": lambda z: F.gelu(z, approximate="tanh"),
    "Threshold": lambda z: F.threshold(z, 1.0, -1.0),
    "PReLU": lambda z: F.prelu(z.reshape(-1, 1), torch.tensor([0.25], dtype=z.dtype)).flatten(),
    "RReLU": lambda z: F.rrelu(z),
    "GLU": lambda z: F.glu(torch.stack((torch.ones_like(z), z), -1)).squeeze(-1),
    "Softmax": lambda z: F.softmax(torch.stack((z, torch.zeros_like(z)), -1), -1)[..., 0],
    "LogSoftmax": lambda z: F.log_softmax(torch.stack((z, torch.zeros_like(z)), -1), -1)[..., 0],
}
CAPTIONS = {
    "Threshold": "θ = 1, v = −1",
    "PReLU": "w = 0.25",
    "RReLU": "in evaluation: the slope is the mean of 1/8 and 1/3",
    "GLU": "u = 1, along v",
    "Softmax": "of two scores, the other 0",
    "LogSoftmax": "of two scores, the other 0",
    "BCE": "y = 1",
    "BCEWithLogits": "y = 1",
}
LOSSES = {
    "MSE": lambda x: F.mse_loss(x, torch.zeros_like(x), reduction="none"),
    "L1": lambda x: F.l1_loss(x, torch.zeros_like(x), reduction="none"),
    "SmoothL1": lambda x: F.smooth_l1_loss(x, torch.zeros_like(x), reduction="none"),
    "Huber": lambda x: F.huber_loss(x, torch.zeros_like(x), reduction="none"),
    "BCE": lambda x: F.binary_cross_entropy(x, torch.ones_like(x), reduction="none"),
    "BCEWithLogits": lambda z: F.binary_cross_entropy_with_logits(
        z, torch.ones_like(z), reduction="none"
    ),
}


@cache
def catalogue():
    """Every op with a source, by the module it is defined in."""
    found = {}
    for info in pkgutil.walk_packages(ops.__path__, "manualnn.ops."):
        module = importlib.import_module(info.name)
        for cls in dict.fromkeys(c for c in vars(module).values() if inspect.isclass(c)):
            if (
                issubclass(cls, Function)
                and cls.__module__ == module.__name__
                and "Source:" in (cls.__doc__ or "")
            ):
                found.setdefault(module.__name__, []).append(cls)
    return found


def section(cls):
    """An op on its page."""
    mathematics, saved, origin, notes = parts(cls)
    place = f"{cls.__module__.replace('.', '/')}.py"
    blocks = [f"## {cls.__name__} {{ #{cls.__name__} }}", picture(cls)]
    blocks.append(formula(mathematics))
    called = ", ".join(f"`{name}`" for name in callers(cls))
    rows = [("Saved", escaped(saved)), ("Called by", called), ("Source", linked(escaped(origin)))]
    blocks += [f"**{name}.** {without_verb(text)}" for name, text in rows if text]
    blocks += [escaped(joined(n)) for n in notes.split("\n\n") if n]
    code = source.fenced(source.excerpt(f"{place}:{cls.__name__}"), place)
    blocks.append('??? quote "The code"\n\n' + indented(code))
    return "\n\n".join(b for b in blocks if b)


def linked(text):
    """Names of PyTorch's as code."""
    return re.sub(r"(torch(?:vision)?\.[\w.\\]+)", lambda m: f"`{m[1]}`".replace("\\", ""), text)


def indented(text):
    return "\n".join(f"    {n}" if n else "" for n in text.splitlines())


def picture(cls):
    function, keywords = drawing(cls)
    if function is None:
        return ""
    caption = CAPTIONS.get(cls.__name__, "")
    caption = f"<figcaption>{caption}</figcaption>" if caption else ""
    return f'<figure class="plot">{plots.curves(function, **keywords)}{caption}</figure>'


def drawing(cls):
    """What to draw of an op; None for one that is no function of one number."""
    name = cls.__name__
    if cls.__module__.startswith("manualnn.ops.activations"):
        if name in DRAWN:
            return DRAWN[name], {}
        reach = {"low": -3.0, "high": 8.0} if name == "ReLU6" else {}
        own = {f.replace("_", ""): f for f in F.__all__ if not f.endswith("_")}
        if not issubclass(cls, Activation) or name.lower() not in own:
            raise LookupError(f"docs/rendering/ops.py does not say how {name} is drawn")
        return getattr(F, own[name.lower()]), reach
    if name in LOSSES:
        label = ("ℓ", "∂ℓ/∂x")
        if name == "BCE":
            return LOSSES[name], {"low": 0.02, "high": 0.99, "label": label, "axis": "x"}
        axis = "z" if name == "BCEWithLogits" else "x − y"
        label = ("ℓ", "∂ℓ/∂z") if axis == "z" else label
        return LOSSES[name], {"label": label, "axis": axis}
    if issubclass(cls, PointwiseLoss):
        raise LookupError(f"docs/rendering/ops.py does not say how {name} is drawn")
    return None, {}


# --- Who calls an op: read off the code --------------------------------------------------------


@cache
def callers(cls):
    """The public functions and modules that an op works for."""
    named = [f"functional.{n}" for n in F.__all__ if cls in reached(getattr(F, n))]
    # A network takes any activation; its own code names the default.
    through = [n for n in layers() if n != "MLP" or cls is Network]
    return named + [f"nn.{n}" for n in through if cls in reached(getattr(nn, n))]


@cache
def layers():
    """The modules of manualnn.nn that compute something by our own backward."""
    return [
        n
        for n, c in vars(nn).items()
        if inspect.isclass(c)
        and issubclass(c, torch.nn.Module)
        and c.__module__.startswith("manualnn.")
    ]


@cache
def reached(thing):
    """The ops that a function, or a class's methods, leads to within manualnn."""
    found, seen, left = set(), set(), [thing]
    while left:
        thing = left.pop()
        if id(thing) in seen:
            continue
        seen.add(id(thing))
        if inspect.isclass(thing):
            if issubclass(thing, Function):
                found.add(thing)
                continue
            left += [m for m in vars(thing).values() if inspect.isfunction(m)]
        elif inspect.isfunction(thing):
            left += mentioned(thing)
    return found


def mentioned(function):
    """Our functions and ops whose names stand in a function's code."""
    names, scope = function.__code__.co_names, function.__globals__
    for name in names:
        value = scope.get(name)
        if inspect.ismodule(value) and value.__name__.startswith("manualnn"):
            for inner in names:
                yield from _ours(getattr(value, inner, None))
        yield from _ours(value)


def _ours(value):
    if inspect.isclass(value) and issubclass(value, Function):
        yield value
    elif inspect.isfunction(value) and value.__module__.startswith("manualnn.functional"):
        yield value
    elif inspect.isfunction(value) and value.__module__.startswith("manualnn.nn"):
        yield value


# --- Tables of all --------------------------------------------------------------------------------


def sections(*modules):
    """The ops of these modules, in the order in which they are defined."""
    known = catalogue()
    unknown = [m for m in modules if m not in known]
    if unknown:
        raise LookupError(f"no ops in {', '.join(unknown)}")
    shown.update(modules)
    return "\n\n".join(section(cls) for module in modules for cls in known[module])


shown = set()


def missing():
    """Modules with ops that no page shows."""
    return sorted(set(catalogue()) - shown)


def first_line(cls):
    return inline(parts(cls)[0].splitlines()[0])


def table(page_of, page):
    """The ops of a page in one line each: the formula, and what is saved; ``page_of`` is by module."""
    modules = [module for module, there in page_of.items() if there == page]
    if not modules:
        raise LookupError(f"{page} shows no ops")
    rows = ["| op | formula | saved for backward |", "|---|---|---|"]
    for cls in [cls for module in modules for cls in catalogue()[module]]:
        # The first sentence: the conditions stand on the op's own page.
        saved = without_verb(parts(cls)[1]).partition(". ")[0].removesuffix(".")
        first = first_line(cls).replace("|", "&#124;")
        rows.append(f"| [{cls.__name__}]({page}#{cls.__name__}) | {first} | {escaped(saved)} |")
    return "\n".join(rows)


def functions(page_of):
    """Every function of manualnn.functional: its signature, what it says of itself, its ops."""
    rows = ["| function | what it gives | op |", "|---|---|---|"]
    for name in F.__all__:
        function = getattr(F, name)
        said_of_it = escaped(joined(inspect.getdoc(function) or "in place"))
        links = [
            f"[{cls.__name__}](ops/{page_of[module]}#{cls.__name__})"
            for module, classes in catalogue().items()
            for cls in classes
            if cls in reached(function)
        ]
        rows.append(f"| `{name}{signature(function)}` | {said_of_it} | {', '.join(links)} |")
    return "\n".join(rows)


def signature(function):
    """The names and defaults alone: the text says what they are."""
    found = inspect.signature(function)
    plain = [p.replace(annotation=p.empty) for p in found.parameters.values()]
    return found.replace(parameters=plain, return_annotation=found.empty)


def converted():
    """The classes of torch.nn's that `convert` replaces, by family."""
    families = {}
    for name in layers():
        cls = getattr(nn, name)
        if hasattr(torch.nn, name) and issubclass(cls, getattr(torch.nn, name)):
            families.setdefault(cls.__module__.rpartition(".")[2], []).append(name)
    rows = ["| family | modules |", "|---|---|"]
    for family, names in families.items():
        rows.append(f"| {family} | {', '.join(f'`{n}`' for n in names)} |")
    return "\n".join(rows)
