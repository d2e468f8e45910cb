"""The rooms of the package: imports run one way, at function level too, and nowhere in a circle."""

import ast
from pathlib import Path

import pytest
from training_rooms import TRAINING_ROOMS

import manualnn

ROOT = Path(manualnn.__file__).parent
# A room knows those before it. `manualnn` itself is the public names; the trainer uses them, and is above.
ROOMS = [
    "_torch",
    "_moved",
    "equations",
    "kernels",
    "autograd",
    "memory",
    "ops",
    "functional",
    "nn",
    "conversion",
]
ROOMS += ["tools", "", "training", "__main__"]
# Of these no line may come into the file that imports nothing of the rest.
ALONE = {"_torch", "_moved", "equations"}


def module_of(path):
    """The dotted name of a file, without the package's own."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in sorted(ROOT.rglob("*.py"))}


def imported(tree):
    """The modules of ours that a file imports, wherever in it, by the names in MODULES."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: a relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            if name.split(".")[0] == "manualnn":
                inner = name.removeprefix("manualnn").removeprefix(".")
                yield inner if inner in MODULES else inner.rpartition(".")[0]


ARROWS = {
    name: sorted(set(imported(ast.parse(path.read_text()))) - {name})
    for name, path in MODULES.items()
}


def room(module):
    return module.split(".")[0]


def ups(arrows):
    """The arrows that run up, as text."""
    return [
        f"{a} imports {b}"
        for a, targets in arrows.items()
        for b in targets
        if ROOMS.index(room(b)) > ROOMS.index(room(a))
    ]


def ups_of_training(arrows):
    """Those between the trainer's rooms. Its own file only gathers names."""

    def place(module):
        inner = module.split(".")
        return TRAINING_ROOMS.index(inner[1]) if inner[0] == "training" and inner[1:] else None

    return [
        f"{a} imports {b}"
        for a, targets in arrows.items()
        for b in targets
        if None not in (place(a), place(b)) and place(b) > place(a)
    ]


def circle(arrows):
    """The modules of one circle, in order; none: []. A package's own file only gathers names."""
    state = {}

    def visit(module, path):
        state[module] = "open"
        for target in arrows.get(module, ()):
            if state.get(target) == "open":
                return [*path[path.index(target) :], target]
            if target not in state and (found := visit(target, [*path, target])):
                return found
        state[module] = "done"
        return []

    for module in arrows:
        if module not in state and (found := visit(module, [module])):
            return found
    return []


def test_every_room_has_its_place():
    assert {room(m) for m in MODULES} == set(ROOMS)


def test_no_import_runs_up():
    assert ups(ARROWS) == []


def test_no_import_runs_up_within_training():
    assert {m.split(".")[1] for m in MODULES if m.startswith("training.")} == set(TRAINING_ROOMS)
    assert ups_of_training(ARROWS) == []
    assert ups_of_training({"training.data.split": ["training.model.metrics"]})


def test_no_imports_in_a_circle():
    assert circle(ARROWS) == []


@pytest.mark.parametrize("name", sorted(ALONE))
def test_who_knows_nobody(name):
    assert [b for m, bs in ARROWS.items() if room(m) == name for b in bs if room(b) != name] == []


def test_no_package_bears_the_name_of_a_public_function():
    public = {name for name in manualnn.__all__ if not isinstance(getattr(manualnn, name), type)}
    assert {room(m) for m in MODULES} & public == {"functional", "nn"}  # rooms, public as such


def test_an_arrow_that_runs_up_is_seen():
    tree = ast.parse("def f():\n    from manualnn.nn import MLP\n")
    assert list(imported(tree)) == ["nn"]
    assert ups({"ops.norms.batch": ["nn"]}) == ["ops.norms.batch imports nn"]


def test_a_circle_is_seen():
    assert circle({"a": ["b"], "b": ["c"], "c": ["b"]}) == ["b", "c", "b"]
