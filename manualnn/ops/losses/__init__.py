"""Losses: of a number and its target (pointwise), and of a row of scores and its class."""

from manualnn.ops.losses.classes import NLL, CrossEntropy
from manualnn.ops.losses.pointwise import BCE, L1, MSE, BCEWithLogits, Huber, SmoothL1

__all__ = ["BCE", "BCEWithLogits", "CrossEntropy", "Huber", "L1", "MSE", "NLL", "SmoothL1"]
