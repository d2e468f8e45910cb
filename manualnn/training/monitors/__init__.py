"""Seeing what flows: signals of the layers, pictures, findings in words; on by default in the command line."""

from manualnn.training.monitors.callback import Monitor

__all__ = ["Monitor"]
