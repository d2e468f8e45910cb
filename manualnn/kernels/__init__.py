"""Kernels: a formula as it is written, printed as one loop, in C for the CPU and in Triton for the GPU."""

from manualnn.kernels.running import expression_of, names_of, run

__all__ = ["expression_of", "names_of", "run"]
