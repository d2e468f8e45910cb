"""Neural-network layers whose backward pass is written by hand: right, readable, cheap."""

import importlib
from typing import TYPE_CHECKING, Any

import torch  # noqa: F401 — here first: from within a module of ours its import takes 40 ms longer

from manualnn import _moved, functional, nn
from manualnn.autograd.activation import Activation
from manualnn.autograd.autocast import autocast
from manualnn.autograd.function import Function, set_checker
from manualnn.conversion import convert, revert
from manualnn.memory import RecomputationError

if TYPE_CHECKING:
    from manualnn.tools.checks import CheckError, Report, check
    from manualnn.tools.explanations import Explanation, explain
    from manualnn.tools.exports import ExportError, export
    from manualnn.tools.ledgers import Ledger, ledger

_moved.find_old_names()

__version__ = "0.1.0"
__all__ = [
    "Activation",
    "CheckError",
    "Explanation",
    "ExportError",
    "Function",
    "Ledger",
    "RecomputationError",
    "Report",
    "autocast",
    "check",
    "convert",
    "explain",
    "export",
    "functional",
    "ledger",
    "nn",
    "revert",
]

# Imported when they are asked for: who trains does not wait for what looks at models.
_TOOLS = {"checks": ("CheckError", "Report", "check"), "explanations": ("Explanation", "explain")}
_TOOLS |= {"exports": ("ExportError", "export"), "ledgers": ("Ledger", "ledger")}
_MODULES = {name: f"manualnn.tools.{module}" for module, names in _TOOLS.items() for name in names}


if not TYPE_CHECKING:  # to a type checker a name that is not here is a mistake

    def __getattr__(name: str) -> Any:
        if name == "tools":
            return importlib.import_module("manualnn.tools")
        if name not in _MODULES:
            raise AttributeError(f"module 'manualnn' has no attribute {name!r}")
        found = globals()[name] = getattr(importlib.import_module(_MODULES[name]), name)
        return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "tools"})


def _checked(subject: Any) -> Any:
    from manualnn.tools.checks import check

    return check(subject)


set_checker(_checked)  # of `class X(Function, check=True)`
