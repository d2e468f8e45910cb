"""What an editor or a reader asks of the public names: help, members, attributes. None of it may raise."""

import copy
import inspect
import pickle
import pydoc
import re
import subprocess
import sys

import pytest
import torch

import manualnn
from manualnn import functional, nn, ops
from manualnn.ops.docstrings import joined, parts, without_verb

PUBLIC = {
    f"{module.__name__}.{name}": getattr(module, name)
    for module in (manualnn, nn, functional, ops.activations, ops.losses, ops.norms)
    for name in dir(module)
    if not name.startswith("_")
}


@pytest.mark.parametrize("name", PUBLIC)
def test_help_and_members(name):
    thing = PUBLIC[name]
    assert pydoc.plain(pydoc.render_doc(thing)).strip()
    assert inspect.getmembers(thing)
    assert not hasattr(thing, "no_such_attribute")


def test_an_activation_without_a_formula_has_no_module():
    assert not hasattr(manualnn.Activation, "Module")
    with pytest.raises(AttributeError, match="Activation states no formula"):
        manualnn.Activation.Module  # noqa: B018
    assert issubclass(ops.activations.ReLU.Module, torch.nn.Module)


LAYERS = {
    name: cls
    for name, cls in vars(nn).items()
    if inspect.isclass(cls) and cls.__module__.startswith("manualnn.")
}


def shown(layer):
    """The lines of help() of a layer, below its signature."""
    text = pydoc.plain(pydoc.render_doc(layer))
    lines = [line.removeprefix(" |").strip() for line in text.splitlines()]
    # From 3.13 on a long signature has a line for each parameter; it ends with what it returns.
    begins = next(n for n, line in enumerate(lines) if line.startswith(f"{layer.__name__}("))
    ends = next(n for n, line in enumerate(lines) if n >= begins and ") ->" in line)
    start = next(n for n, line in enumerate(lines) if "a backward written by hand" in line)
    assert begins < 5 and start - ends < 4, text[:500]
    return lines[start:]


def test_the_layers_are_found():
    assert len(LAYERS) > 60 and {"Linear", "MLP", "StochasticDepth"} <= set(LAYERS)


@pytest.mark.parametrize("name", LAYERS)
def test_help_of_a_layer_says_first_what_is_its_own(name):
    lines = shown(LAYERS[name])
    if hasattr(torch.nn, name):
        assert lines[0] == f"torch.nn.{name} with a backward written by hand; all else is torch's."
    place = next(n for n, line in enumerate(lines[:8]) if line.startswith("The formula is in "))
    module, _, op_name = lines[place].removeprefix("The formula is in ").strip(":").rpartition(".")
    op = getattr(sys.modules[module], op_name)
    mathematics, saved, _, _ = parts(op)
    assert joined(" ".join(lines[2:place])) == f"Saved for backward: {without_verb(saved)}"
    formula = [line.strip() for line in mathematics.splitlines()]
    assert lines[place + 2 : place + 2 + len(formula)] == formula


@pytest.mark.parametrize("name", LAYERS)
def test_the_formula_is_that_of_an_op_that_the_layer_runs(name, monkeypatch):
    monkeypatch.syspath_prepend("docs")
    rendering = pytest.importorskip("rendering.ops")
    op = re.search(r"The formula is in ([\w.]+):", LAYERS[name].__doc__)[1]
    reached = {f"{c.__module__}.{c.__qualname__}" for c in rendering.reached(LAYERS[name])}
    assert op in reached


def test_a_docstring_survives_what_python_does_to_classes():
    class Own(nn.Linear):
        pass

    assert Own.__doc__ is None and "nn.Linear with" in inspect.getdoc(Own)
    assert nn.Linear(2, 2).__doc__ == nn.Linear.__doc__
    assert "nn.Linear with" in type("Other", (), dict(vars(nn.Linear))).__doc__
    model = manualnn.convert(torch.nn.Sequential(torch.nn.Linear(2, 2)))
    assert "nn.Linear with" in model[0].__doc__ and pydoc.render_doc(model)


def test_help_without_docstrings():
    program = "from manualnn import nn; import pydoc; print(pydoc.render_doc(nn.Linear)[:400])"
    run = subprocess.run([sys.executable, "-OO", "-c", program], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "with a backward written by hand" in pydoc.plain(run.stdout)


@pytest.mark.parametrize(
    "name", ["CheckError", "ExportError", "RecomputationError", "Report", "Ledger", "Explanation"]
)
def test_what_a_tool_raises_or_returns_has_a_public_name(name):
    assert name in manualnn.__all__
    thing = getattr(manualnn, name)
    assert pickle.loads(pickle.dumps(thing)) is thing
    if issubclass(thing, Exception):
        assert f"{thing.__module__}.{thing.__qualname__}" == f"manualnn.{name}"  # in a traceback


def test_the_names_that_check_was_said_to_have():
    for name in ("CheckError", "Report"):
        with pytest.warns(
            DeprecationWarning, match=f"manualnn.check.{name} is called manualnn.{name}"
        ):
            assert getattr(manualnn.check, name) is getattr(manualnn, name)
    with pytest.raises(AttributeError, match="check has no attribute 'Ledger'"):
        manualnn.check.Ledger  # noqa: B018


def test_check_is_a_function_all_the_same():
    check = manualnn.check
    assert callable(check) and next(iter(inspect.signature(check).parameters)) == "target"
    assert pickle.loads(pickle.dumps(check)) is check and copy.deepcopy(check) is check
    text = pydoc.plain(pydoc.render_doc(check))
    assert text.startswith("Python Library Documentation: function check in module manualnn.")
    signature = " ".join(text.split()).partition("check(")[2]  # from 3.13 on in many lines
    assert signature.strip().startswith("target: Any, *inputs: Any, reference: ")
    assert "Checks a hand-written backward" in text
    assert inspect.isfunction(check) and inspect.getsource(check).startswith("@with_old_names")
