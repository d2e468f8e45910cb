"""Every example in a docstring is true."""

import doctest
import importlib
import pkgutil

import pytest

import manualnn

# The public names that a person meets first: each has an example.
SHOWN = {
    "manualnn.autograd.activation.Activation",
    "manualnn.tools.checks.check",
    "manualnn.conversion.layers.convert",
    "manualnn.conversion.layers.revert",
    "manualnn.equations",
    "manualnn.autograd.function.Function",
    "manualnn.autograd.autocast.autocast",
    "manualnn.functional",
    "manualnn.tools.ledgers.ledger",
    "manualnn.nn.mlp.MLP",
}


def modules():
    names = [info.name for info in pkgutil.walk_packages(manualnn.__path__, "manualnn.")]
    return [importlib.import_module(n) for n in names if not n.endswith("__main__")]


def examples():
    finder = doctest.DocTestFinder(exclude_empty=True)
    return [
        test
        for module in modules()
        for test in finder.find(module, module.__name__)
        if test.examples
    ]


EXAMPLES = {test.name: test for test in examples()}


@pytest.mark.parametrize("name", sorted(EXAMPLES))
def test_an_example_is_true(name):
    report = []
    result = doctest.DocTestRunner(verbose=False).run(EXAMPLES[name], out=report.append)
    assert result.attempted and not result.failed, "".join(report)


def test_what_a_person_meets_first_has_an_example():
    assert set(EXAMPLES) >= SHOWN
