"""Modules that moved can be imported under their old names, with a warning that names the new one."""

import importlib
import subprocess
import sys

import pytest

from manualnn import _moved


@pytest.mark.parametrize("old", _moved.MOVED)
def test_an_old_name_warns_and_gives_what_the_module_has_now(old):
    sys.modules.pop(old, None)
    new = _moved.MOVED[old]
    with pytest.warns(DeprecationWarning, match=f"^{old} is now {new}$") as caught:
        module = importlib.import_module(old)
    assert len(caught) == 1
    now = importlib.import_module(new)
    public = [name for name in vars(now) if not name.startswith("_")]
    assert public
    assert all(getattr(module, name) is getattr(now, name) for name in public)
    assert now.__name__ == new


def test_the_warning_is_of_the_line_that_imports():
    code = "import manualnn\nfrom manualnn.function import Function\nassert Function is manualnn.Function"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert "<string>:2: DeprecationWarning: manualnn.function is now" in ran.stderr


def test_a_name_that_never_was_is_not_found():
    with pytest.raises(ModuleNotFoundError, match=r"manualnn\.functions"):
        importlib.import_module("manualnn.functions")
