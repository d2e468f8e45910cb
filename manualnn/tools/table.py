"""Rows of cells as lines of text."""


def aligned(rows, right=()):
    """A line for each row; the columns whose numbers are in `right` end, the others begin, below each other."""
    rows = [*rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        yield ("  " + "  ".join(cells)).rstrip()
