"""Normalisation: by the statistics of a batch, of a layer, of a group, of an instance."""

from manualnn.ops.norms.across import SyncBatchNorm
from manualnn.ops.norms.batch import BatchNorm, InstanceNorm, RunningNorm
from manualnn.ops.norms.sample import GroupNorm, LayerNorm, RMSNorm

__all__ = [
    "BatchNorm",
    "GroupNorm",
    "InstanceNorm",
    "LayerNorm",
    "RMSNorm",
    "RunningNorm",
    "SyncBatchNorm",
]
