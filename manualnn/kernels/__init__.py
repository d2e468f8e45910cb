"""Kernels: a formula as it is written, printed as one loop, in C for the CPU and in Triton for the GPU."""

from manualnn.kernels import batch_norm, chains, masks
from manualnn.kernels.running import expression_of, is_large, names_of, run

__all__ = ["batch_norm", "chains", "expression_of", "is_large", "masks", "names_of", "run"]
