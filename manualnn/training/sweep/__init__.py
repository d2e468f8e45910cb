"""`train.py sweep`: a search for the best options over many runs of `fit`, by Optuna."""

from manualnn.training.sweep.command import main

__all__ = ["main"]
