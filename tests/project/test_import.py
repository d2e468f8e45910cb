"""``import manualnn`` brings torch and nothing heavier."""

import subprocess
import sys


def imported(statement):
    program = f"import sys; {statement}; print(*{{m.partition('.')[0] for m in sys.modules}})"
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    return set(run.stdout.split())


def test_nothing_beyond_torch():
    brought = imported("import manualnn") - imported("import torch")
    assert brought - sys.stdlib_module_names == {"manualnn"}


def test_the_layers_do_not_know_the_training():
    program = "import manualnn, manualnn.nn, manualnn.functional, manualnn.equations, sys;"
    program += "print([m for m in sys.modules if m.startswith('manualnn.training')])"
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == "[]"
