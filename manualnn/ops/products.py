"""The matrix product of any number of dimensions, each operand saved as it was given."""

import torch

from manualnn.autograd.function import Function
from manualnn.ops import products_order


class Matmul(Function):
    """C = A B
    dA = dC Bᵀ;  dB = Aᵀ dC, summed over the dimensions along which A or B was repeated
    A (*, n, k) or (k), B (*, k, m) or (k) -> C (*, n, m), (*, n), (*, m) or ()
    Caches B if dA is needed, A if dB is needed: as given, where torch.matmul saves copies of strided ones.
    Source: torch.matmul
    """

    @staticmethod
    def forward(A, B):
        return torch.matmul(A, B)

    @staticmethod
    def save(needs, C, A, B):
        return (A if needs.B else None, B if needs.A else None), (A.shape, B.shape)

    @staticmethod
    def gradients(needs, dC, A, B, of_A, of_B):
        rows = (1, *of_A) if len(of_A) == 1 else of_A  # a vector is a row, or a column
        columns = (*of_B, 1) if len(of_B) == 1 else of_B
        dC = dC.unsqueeze(-1) if len(of_B) == 1 else dC
        dC = dC.unsqueeze(-2) if len(of_A) == 1 else dC
        dA = dB = None
        if needs.A:
            dA = summed(dC @ B.reshape(columns).mH, rows).reshape(of_A)
        if needs.B:
            dB = summed(A.reshape(rows).mH @ dC, columns).reshape(of_B)
        return dA, dB

    @staticmethod
    def tangent(step, A, B, of_A, of_B):
        if step.A is None or step.B is None:
            return A @ step.B if step.A is None else step.A @ B
        return step.A @ B + A @ step.B

    @staticmethod
    def layout(needs, C, A, B):
        if torch.jit.is_tracing():  # there sizes are tensors
            return (None,)
        return (products_order.way(A, B, needs.A, needs.B),)

    @staticmethod
    def kernel_gradients(needs, dC, A, B, of_A, of_B, way):
        if way is None:
            return Matmul.gradients(needs, dC, A, B, of_A, of_B)
        A, B = A if needs.B else None, B if needs.A else None
        return products_order.gradients(dC, A, B, of_A, of_B, way)


def summed(t, shape):
    """Summed over the dimensions along which a tensor of that shape was repeated."""
    return t if t.shape == shape else t.sum_to_size(shape)
