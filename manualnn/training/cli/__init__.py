"""`train.py`: which command the arguments name, and its exit status."""

from manualnn.training.cli.command import main

__all__ = ["main"]
