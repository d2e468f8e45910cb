"""What is saved between forward and backward, made as small as it can be, and how it is recomputed."""

from manualnn.cache.fingerprint import FINGERPRINTS
from manualnn.cache.masks import pack, unpack
from manualnn.cache.recorder import Recorder, active, current, may_record, running
from manualnn.cache.verify import RecomputationError

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
