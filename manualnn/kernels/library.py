"""The functions of torch's own library: a kernel calls the very ones that ATen calls.

ATen computes exp and its like by MKL's vector functions where torch was built with MKL, by SLEEF's otherwise,
and some by SLEEF's always. libtorch_cpu exports both. SLEEF's take one vector, of the width that torch chose
for this processor; MKL's take an array.
"""

import ctypes
import functools
from pathlib import Path
from typing import Any, NamedTuple

import torch

# How many float32 a vector holds, and what SLEEF calls the instructions.
_WIDTHS = {"AVX512": (16, "avx512f"), "AVX2": (8, "avx2")}
_ULPS = {"erfc": "15"}  # SLEEF's bound in tenths of the last place; of all others 10
_MKL = {"log": "Ln"}  # of all others the name itself


class Function(NamedTuple):
    """A function of torch's library. array: of whole arrays, as MKL's are; else of one vector."""

    symbol: str
    address: int
    array: bool

    @property
    def pointer(self) -> str:
        """Its name in C: not the library's, which would be called where the library's names are global."""
        return f"call_{self.symbol}"


def width(dtype: torch.dtype) -> int:
    """How many numbers ATen's vectors hold; 1 where it has none that are known here."""
    floats, _ = _WIDTHS.get(_capability(), (1, ""))
    return max(1, floats * 4 // dtype.itemsize)


def function(kind: str, dtype: torch.dtype) -> Function | None:
    """What computes a step ``vml:exp`` or ``sleef:exp`` in this torch, or None."""
    family, _, name = kind.partition(":")
    if family == "vml":
        letter = "s" if dtype is torch.float32 else "d"
        symbol = f"vm{letter}{_MKL.get(name, name.capitalize())}"
        address = _address(symbol)
        if address:
            return Function(symbol, address, True)
        if name == "erf" and dtype is torch.float32:  # a polynomial of ATen's own
            return None
    if _capability() not in _WIDTHS:
        return None
    _, instructions = _WIDTHS[_capability()]
    letter = "f" if dtype is torch.float32 else "d"
    ulps = _ULPS.get(name, "10")
    if instructions == "avx2" and dtype is torch.float32 and name in ("sin", "cos"):
        ulps = "35"
    symbol = f"Sleef_{name}{letter}{width(dtype)}_u{ulps}{instructions}"
    address = _address(symbol)
    return Function(symbol, address, False) if address else None


def has_array_functions() -> bool:
    """Whether torch has MKL's functions of arrays."""
    return _address("vmsExp") != 0


@functools.cache
def has_threads() -> bool:
    """Whether a shared object that asks for libgomp gets the one whose threads are torch's."""
    try:
        ctypes.CDLL("libgomp.so.1", mode=ctypes.RTLD_LOCAL | 4)  # 4: only if it is loaded already
    except OSError:
        return False
    return "openmp" in torch.__config__.parallel_info().lower()


@functools.cache
def _capability():
    return torch.backends.cpu.get_cpu_capability()


@functools.cache
def _library() -> Any:
    try:
        return ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
    except OSError:
        return None


def _address(symbol):
    try:
        return ctypes.cast(getattr(_library(), symbol), ctypes.c_void_p).value or 0
    except AttributeError:
        return 0
