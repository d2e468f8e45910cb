"""What is saved for backward: the recorder of a forward pass, saved values, recipes, and the decision."""

from manualnn.memory.backward_pass import spare_like
from manualnn.memory.fingerprint import FINGERPRINTS
from manualnn.memory.permission import may_record
from manualnn.memory.recorder import Recorder
from manualnn.memory.verify import RecomputationError

__all__ = [
    "FINGERPRINTS",
    "RecomputationError",
    "Recorder",
    "may_record",
    "spare_like",
]
