"""What is saved between forward and backward, made as small as it can be, and how it is recomputed."""

from manualnn.memory.fingerprint import FINGERPRINTS
from manualnn.memory.recorder import Recorder, may_record
from manualnn.memory.verify import RecomputationError

__all__ = [
    "FINGERPRINTS",
    "RecomputationError",
    "Recorder",
    "may_record",
]
