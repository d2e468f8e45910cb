"""Neural-network layers whose backward pass is written by hand: right, readable, cheap."""

from manualnn import _moved, functional, nn
from manualnn.autograd.activation import Activation
from manualnn.autograd.autocast import autocast
from manualnn.autograd.function import Function
from manualnn.conversion import convert, revert
from manualnn.memory import RecomputationError
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
