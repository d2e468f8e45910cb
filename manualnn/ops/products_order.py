"""The order in which torch.matmul multiplies: which dimensions are one, what is transposed.

The same products in the same order round alike. ``Matmul`` states the formulas.
"""

import math
from typing import NamedTuple

import torch

from manualnn._torch import unsafe_view


class Way(NamedTuple):
    """How torch.matmul multiplies.

    folded: as one product of matrices, L R, all leading dimensions of L as one; else matrix by matrix.
    turned: L and R are Bᵀ and Aᵀ, and the product is Cᵀ.
    squeezed: A, B is a batch of one, taken as the matrix in it.
    vector: R is a vector.
    columns: L, R lie in memory column by column, and their gradients are made alike.
    """

    folded: bool
    turned: bool = False
    squeezed: tuple = (False, False)
    vector: bool = False
    columns: tuple = (False, False)


def way(A, B, need_A, need_B):
    """torch's choice: LinearAlgebra.cpp, _matmul_impl and should_fold."""
    squeezed = (False, False)
    if A.dim() == B.dim() == 3 and A.shape[0] != B.shape[0]:
        only_A = A.shape[0] == 1 and need_A
        squeezed = (only_A, not only_A and B.shape[0] == 1 and need_B)
    dims = A.dim() - squeezed[0], B.dim() - squeezed[1]
    if min(dims) > 2:
        return Way(False)
    turned = dims[1] > 2
    L, R = sides(A, B, turned, squeezed)
    if L.dim() > 2:
        need_few = need_A if turned else need_B
        fits = L.numel() == 0 or all(
            L.stride(i) == L.stride(i + 1) * L.shape[i + 1] for i in range(L.dim() - 2)
        )
        if not (need_few or (fits and dims[0] != 2)):
            return Way(False, squeezed=squeezed)
    vector = R.dim() == 1
    columns = not vector and _by_columns(matrix(L)), not vector and _by_columns(R)
    return Way(True, turned, squeezed, vector, columns)


def _by_columns(t):
    return t.stride(0) == 1 and t.stride(1) == t.shape[0]


def sides(A, B, turned, squeezed):
    """L and R; None for what is not given."""
    A, B = (
        t.squeeze(0) if t is not None and one else t
        for t, one in zip((A, B), squeezed, strict=True)
    )
    if turned:
        return B if B is None else B.mT, A.t() if A is not None else A
    return A.unsqueeze(0) if A is not None and A.dim() == 1 else A, B


def matrix(t):
    """All leading dimensions as one."""
    return t.reshape(math.prod(t.shape[:-1]), t.shape[-1])


def product(A, B, chosen):
    """A B, multiplied that way."""
    if not chosen.folded or A.dim() == 1 or B.dim() == 1:
        return torch.matmul(A, B)
    L, R = sides(A, B, chosen.turned, chosen.squeezed)
    C = torch.mm(matrix(L), R)
    if L.dim() > 2:  # A Function must not give out a view: nobody could write over it
        C = unsafe_view(C, (*L.shape[:-1], R.shape[1]))
    return C.mT.contiguous() if chosen.turned else C


def gradients(dC, A, B, of_A, of_B, chosen):
    """dA where B is given, dB where A is, by the kernels of torch's own backward, to the last bit."""
    if not chosen.folded:
        return _batched(dC, A, B, of_A, of_B)
    L, R = sides(A, B, chosen.turned, chosen.squeezed)
    dL, dR = _folded(dC.mT if chosen.turned and not chosen.vector else dC, L, R, chosen)
    if not chosen.turned:
        return dL if dL is None else dL.reshape(of_A), dR if dR is None else dR.reshape(of_B)
    if dL is not None:
        dL = dL.reshape(*of_B[:-2], of_B[-1], of_B[-2]).mT
    return dR if dR is None else dR.t().reshape(of_A), dL


def _folded(dC, L, R, chosen):
    """dL = dC Rᵀ, dR = Lᵀ dC, all leading dimensions as one."""
    L_columns, R_columns = chosen.columns
    L, R = L if L is None else matrix(L).conj(), R if R is None else R.conj()
    if chosen.vector:
        dC = dC.reshape(-1)
        return R if R is None else dC.outer(R), L if L is None else L.t().mv(dC)
    dC = matrix(dC) if dC.dim() > 1 else dC.unsqueeze(0)
    dL = dR = None
    if R is not None:
        dL = R.mm(dC.t()).t() if L_columns else dC.mm(R.t())
    if L is not None:
        dR = dC.t().mm(L).t() if R_columns else L.t().mm(dC)
    return dL, dR


def _batched(dC, A, B, of_A, of_B):
    """dA = dC Bᵀ, dB = Aᵀ dC, matrix by matrix."""
    rows = (1, *of_A) if len(of_A) == 1 else of_A
    columns = (*of_B, 1) if len(of_B) == 1 else of_B
    batch = torch.broadcast_shapes(rows[:-2], columns[:-2])
    n = math.prod(batch)  # not −1, which nobody could tell where a side is 0
    dC = dC.reshape(n, rows[-2], columns[-1])
    dA = dB = None
    if B is not None:
        wide = B.reshape(columns).expand(*batch, *columns[-2:]).reshape(n, *columns[-2:])
        dA = dC.bmm(wide.mT.conj()).reshape(*batch, *rows[-2:])
        dA = dA.sum_to_size(of_A)
    if A is not None:
        wide = A.reshape(rows).expand(*batch, *rows[-2:]).reshape(n, *rows[-2:])
        dB = wide.mT.conj().bmm(dC).reshape(*batch, *columns[-2:])
        dB = (dB if len(of_B) > 1 else dB.squeeze(-1)).sum_to_size(of_B)
    return dA, dB
