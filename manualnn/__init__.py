"""Neural-network layers whose backward pass is written by hand: right, readable, cheap."""

from manualnn import functional, nn
from manualnn.autograd.activation import Activation
from manualnn.autograd.autocast import autocast
from manualnn.autograd.function import Function
from manualnn.conversion import convert, revert
from manualnn.memory import RecomputationError
from manualnn.tools.checks import check
from manualnn.tools.explanations import explain
from manualnn.tools.exports import export
from manualnn.tools.ledgers import ledger

__version__ = "0.1.0"
__all__ = [
    "Activation",
    "Function",
    "RecomputationError",
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
