"""The hints of the public names are whole, and an editor finds nothing wrong in what the pages show."""

import ast
import doctest
import inspect
import re
import shutil
import subprocess
import sys
import typing
from pathlib import Path

import pytest
import torch
from test_docs_code import CODE, blocks

import manualnn
from manualnn import equations, functional, nn

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))

# What mypy must refuse, so that its silence about the rest means something.
WRONG = """
import torch
import manualnn
from manualnn import Activation, functional, nn
model = nn.MLP([1, 2])
functional.relu("a text")  # wrong
functional.softmax(torch.ones(2), dim="last")  # wrong
functional.conv2d(torch.ones(1), torch.ones(1), stride=0.5)  # wrong
functional.mse_loss(torch.ones(2), torch.ones(2), reductions="sum")  # wrong
nn.MLP(3)  # wrong
nn.Linear(2, 2).forward(3)  # wrong
manualnn.convert("resnet50")  # wrong
manualnn.convert(model).no_such_method().more()  # wrong
manualnn.check(model).failurs  # wrong
manualnn.ledger(model).total + "bytes"  # wrong
manualnn.explain(model).plot(5)  # wrong
manualnn.export(model)  # wrong
manualnn.equations  # wrong
class Own(Activation):
    learned = "alpha"  # wrong
    @staticmethod
    def g(z, alpha):
        return z + torch.sin(alpha, z, out=3)  # wrong
def untyped(x):
    return functional.relu(x) + functional.gelu(x).no_such()  # wrong
"""

# Mistakes in the package: what stands there, and what is put in its place.
PLANTED = {
    "functional/losses.py": (
        '_pair("mse_loss", input, target, weight)',
        '_pair("mse_loss", input, target, reduction)',
    ),
    "nn/norms.py": ("self.weight, self.bias, self.eps)", "self.weight, self.bias, str(self.eps))"),
    "nn/fully_connected.py": ("(self, input: Tensor) -> Tensor:", "(self, input):"),
    "conversion/layers.py": ("_is_swappable(module, twins):", "_is_swappable(module):"),
    "tools/ledgers/report.py": ("return self.ours.total", "return str(self.ours.total)"),
    "tools/checks/graph.py": ("seen.add(node)", "seen.add(node, 2)"),  # without hints
    "autograd/blockwise.py": ("torch.empty_like(", "torch.empty_like(2, "),  # without hints
    "ops/fully_connected.py": ("torch.mm(dz.t(), x)", "torch.mm(dz.t(), x, 3)"),  # without hints
    "equations/__init__.py": ("return dA_prev, dW, db", "return dA_prev, dW"),
}


def public():
    """Name -> thing, of all that a user may call."""
    for module in (manualnn, nn, functional, equations):
        for name in getattr(module, "__all__", dir(module)):
            thing = getattr(module, name)
            home = getattr(thing, "__module__", None) or ""
            if callable(thing) and not name.startswith("_") and home.startswith("manualnn"):
                yield f"{module.__name__}.{name}", thing


def methods(cls):
    """Name -> function, of what a class of ours states itself."""
    for name, method in vars(cls).items():
        method = method.fget if isinstance(method, property) else method
        method = getattr(method, "__func__", method)
        ours = inspect.isfunction(method) and method.__module__.startswith("manualnn")
        if ours and (not name.startswith("_") or name == "__init__"):
            yield name, method


PUBLIC = dict(public())


def test_the_public_names_are_found():
    assert {"manualnn.check", "manualnn.nn.Linear", "manualnn.functional.relu"} <= set(PUBLIC)
    assert {"manualnn.CheckError", "manualnn.Report", "manualnn.equations.cost"} <= set(PUBLIC)
    assert len(PUBLIC) > 150


@pytest.mark.parametrize("name", PUBLIC)
def test_the_hints_are_whole_and_can_be_resolved(name):
    thing = PUBLIC[name]
    generated = getattr(thing, "__dataclass_params__", None)
    parts = dict(methods(thing)) if inspect.isclass(thing) else {"": thing}
    for part, function in parts.items():
        if generated and part == "__init__":
            continue
        hints = typing.get_type_hints(function)
        parameters = list(inspect.signature(function).parameters)
        if inspect.isclass(thing) and not isinstance(vars(thing).get(part), staticmethod):
            parameters = parameters[1:]
        assert {*parameters, "return"} <= set(hints), f"{name}.{part} lacks hints"


def of_page(page):
    """The Python of a page as one file, in which line n is line n of the page."""
    lines = []
    for language, code, line in blocks(page, "python", "pycon"):
        if language == "pycon":
            examples = doctest.DocTestParser().get_examples(code)
            pieces = [(line + 1 + e.lineno, e.source) for e in examples]
        else:
            pieces = [(line + 1, code)]
        for at, piece in pieces:
            lines += [""] * (at - 1 - len(lines))
            lines += piece.splitlines()
    return "\n".join(lines) + "\n"


@pytest.fixture(scope="module")
def found():
    """What mypy says of all pages, all examples and WRONG, in one call: (file, line, error)."""
    # In one place, so that mypy's cache serves the next run; pyproject.toml knows "shown".
    folder = ROOT / ".mypy_cache" / "shown"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "__init__.py").touch()
    files = {page: folder / re.sub(r"\W", "_", page.removesuffix(".md")) for page in CODE}
    files = {page: path.with_suffix(".py") for page, path in files.items()}
    texts = {path: of_page(page) for page, path in files.items()}
    files["WRONG"] = folder / "wrong.py"
    for path, text in {**texts, files["WRONG"]: WRONG}.items():
        if not path.exists() or path.read_text() != text:  # another process may be reading it
            path.write_text(text)
    files |= {path.relative_to(ROOT).as_posix(): path for path in EXAMPLES}
    run = subprocess.run(
        [sys.executable, "-m", "mypy", *map(str, files.values())],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert run.returncode in (0, 1), run.stdout + run.stderr
    assert f"(checked {len(files)} source files)" in run.stdout, run.stdout + run.stderr
    # By the two last parts: mypy's cache names a file by where it was when it was last read.
    names = {path.parts[-2:]: name for name, path in files.items()}
    said = re.findall(r"(?m)^(.+?):(\d+): error: (.*)$", run.stdout)
    return [
        (names.get(Path(path).parts[-2:], path), int(line), message) for path, line, message in said
    ]


@pytest.mark.parametrize("shown", [*CODE, *(p.relative_to(ROOT).as_posix() for p in EXAMPLES)])
def test_what_is_shown_is_clean_in_an_editor(shown, found):
    assert [(line, message) for name, line, message in found if name == shown] == []


def test_each_wrong_type_is_seen(found):
    marked = [n for n, line in enumerate(WRONG.splitlines(), 1) if line.endswith("# wrong")]
    assert sorted({line for name, line, _ in found if name == "WRONG"}) == marked


def test_a_wrong_type_in_the_package_is_seen(found, tmp_path):
    shutil.copytree(ROOT / ".mypy_cache", tmp_path / "cache")  # which the planted ones would spoil
    shadows = []
    for number, (path, (old, new)) in enumerate(PLANTED.items()):
        text = (ROOT / "manualnn" / path).read_text()
        assert old in text, path
        (tmp_path / f"{number}.py").write_text(text.replace(old, new, 1))
        shadows += ["--shadow-file", f"manualnn/{path}", str(tmp_path / f"{number}.py")]
    command = [sys.executable, "-m", "mypy", "--cache-dir", str(tmp_path / "cache"), *shadows]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    wrong = set(re.findall(r"(?m)^manualnn/(.+?):\d+: error:", run.stdout))
    assert wrong == set(PLANTED), run.stdout + run.stderr


def formulas(code):
    """The functions in the bodies of activations whose first argument is no self or cls."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ClassDef) and "Activation" in map(ast.unparse, node.bases):
            for part in node.body:
                if isinstance(part, ast.FunctionDef) and not part.name.startswith("__"):
                    yield part


@pytest.mark.parametrize(
    "place",
    [*CODE, *EXAMPLES, ROOT / "manualnn/ops/activations/pointwise.py", "Activation"],
    ids=str,
)
def test_the_formulas_that_are_shown_are_static_methods(place):
    if place == "Activation":
        examples = doctest.DocTestParser().get_examples(manualnn.Activation.__doc__)
        code = "".join(e.source for e in examples)
    else:
        code = place.read_text() if isinstance(place, Path) else of_page(place)
    for formula in formulas(code):
        assert "staticmethod" in map(ast.unparse, formula.decorator_list), formula.name


def test_a_plain_function_is_a_formula_too():
    class Square(manualnn.Activation):
        def g(z):
            return z * z

        def g_prime(z):
            return 2 * z

    z = torch.tensor([3.0], requires_grad=True)
    Square.apply(z).backward()
    assert z.grad == 6
