"""Neural-network layers whose backward pass is written by hand: right, readable, cheap."""

from manualnn import functional, nn
from manualnn.activation import Activation
from manualnn.cache import RecomputationError
from manualnn.check import check
from manualnn.convert import convert, revert
from manualnn.explain import explain
from manualnn.export import export
from manualnn.function import Function, autocast
from manualnn.ledger import ledger

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
