"""Pooling: the largest, or the average, of each window."""

from manualnn.ops.pooling.average import AdaptiveAvgPool, AvgPool
from manualnn.ops.pooling.largest import AdaptiveMaxPool, MaxPool, indices

__all__ = ["AdaptiveAvgPool", "AdaptiveMaxPool", "AvgPool", "MaxPool", "indices"]
