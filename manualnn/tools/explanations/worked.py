"""One equation with numbers: its value, and whether autograd agrees."""

from dataclasses import dataclass

TOLERANCE = 1e-10  # of numbers near 1 in float64


@dataclass(frozen=True)
class Step:
    """One equation, worked out.

    part: of the whole, as a heading; name: of what it gives; equation; value: as rows of numbers; worked:
    the first number of it, as a sum; error: the largest difference from autograd's over its largest number
    (or 1), None for what is given; ok: whether that is rounding.
    """

    part: str
    name: str
    equation: str
    value: list
    worked: str = ""
    error: float | None = None
    ok: bool = True


def fixed(number, digits):
    text = f"{float(number):.{digits}f}"
    return text.lstrip("-") if not text.strip("-0.") else text.replace("-", "−")


def short(number, digits):
    """With at most so many decimals, and no trailing zeros."""
    text = fixed(number, digits)
    return text.rstrip("0").rstrip(".") if "." in text else text
