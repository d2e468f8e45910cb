"""What is saved for backward: the recorder of a forward pass, saved values, recipes, and the decision."""

from manualnn.memory.bits import pack, unpack
from manualnn.memory.fingerprint import FINGERPRINTS
from manualnn.memory.recorder import Recorder, active, current, may_record, running
from manualnn.memory.verify import RecomputationError

__all__ = [
    "FINGERPRINTS",
    "RecomputationError",
    "Recorder",
    "active",
    "current",
    "may_record",
    "pack",
    "running",
    "unpack",
]
