"""What a check found: a line each, as a table, as JSON, as an exception."""

import json
import sys
from dataclasses import asdict, dataclass, field
from typing import Any, TextIO

from manualnn.tools.old_names import line_names
from manualnn.tools.table import aligned

PASSED, FAILED, UNSUPPORTED = "passed", "failed", "not supported"
DECLARED = "as declared"  # not the true derivative, and said to be so
NOTE = "note"  # a figure that cannot fail
SAME = "same cause"  # it fails, for a cause that an earlier line reports


STYLES = {FAILED: "bold red", SAME: "red", UNSUPPORTED: "yellow", PASSED: "green"}


class CheckError(AssertionError):
    """A check failed; the message is the report."""

    __module__ = "manualnn"  # where users find it


@dataclass(frozen=True)
class Line:
    """One thing that was checked.

    name: what; status: passed, failed, not supported, as declared, note, or same cause; error: the largest
    relative error, or None; where: the element at which it occurred, with both values; detail: what is
    wrong, in words, or a figure; refused_by: "PyTorch" where it refuses its own layers there, too.
    """

    name: str
    status: str
    error: float | None = None
    where: str = ""
    detail: str = ""
    refused_by: str = ""


@dataclass
class Report:
    """The lines of a check, in the order in which they were made.

    True where nothing failed and nothing was found not to be supported, but for what PyTorch refuses of
    its own layers as well. ``print(report)`` shows a plain table, ``report.print()`` a coloured one where
    there is a terminal.
    """

    target: str
    lines: list[Line] = field(default_factory=list)

    @property
    def failures(self) -> list[Line]:
        """The lines that failed, then those that are not supported (by PyTorch neither: left out)."""
        return [
            line
            for status in (FAILED, UNSUPPORTED)
            for line in self.lines
            if line.status == status and not line.refused_by
        ]

    def __bool__(self) -> bool:
        return bool(self.lines) and not self.failures

    def __getitem__(self, name: str) -> Line:
        """The line of that name. Raises KeyError where the check made none."""
        (wanted,) = line_names([name], 3)
        for line in self.lines:
            if line.name == wanted:
                return line
        raise KeyError(name)

    def to_json(self) -> str:
        """The report as JSON text: target, passed, lines."""
        content = {
            "target": self.target,
            "passed": bool(self),
            "lines": [asdict(line) for line in self.lines],
        }
        return json.dumps(content, ensure_ascii=False, indent=1)

    def raise_for_failures(self) -> None:
        """Raises CheckError, whose message is the report, unless everything passed."""
        if not self:
            raise CheckError(str(self))

    def print(self, file: TextIO | None = None) -> None:
        """Prints the table: coloured (by rich, if it is installed) on a terminal, plain elsewhere."""
        file = sys.stdout if file is None else file
        if file.isatty():
            try:
                import rich
            except ImportError:
                pass
            else:
                rich.print(self, file=file)
                return
        print(self, file=file)

    def __str__(self) -> str:
        rows = [(line.name, line.status, error_text(line), line.where) for line in self.lines]
        text = [self._headline()]
        for line, row in zip(self.lines, aligned(rows), strict=True):
            text.append(row)
            if line.detail:
                text.append(f"      {line.detail}")
        return "\n".join(text)

    def __rich__(self) -> Any:
        from rich.table import Table
        from rich.text import Text

        table = Table(title=self._headline(), title_justify="left", show_edge=False, pad_edge=False)
        for column in ("", "", "error", "where"):
            table.add_column(column)
        for line in self.lines:
            style = STYLES.get(line.status)
            where = Text("\n".join(part for part in (line.where, line.detail) if part))
            table.add_row(line.name, Text(line.status, style or ""), error_text(line), where)
        return table

    def _headline(self) -> str:
        """Wrong is one thing, and not supported another."""
        if not self.lines:
            return f"{self.target}: nothing was checked"
        refused = sum(bool(line.refused_by) for line in self.lines)
        if self:
            return f"{self.target}: right" + (f" ({refused} refused by PyTorch)" if refused else "")
        first = self.failures[0]
        message = first.detail or first.where or first.status
        wrong = sum(line.status == FAILED for line in self.lines)
        unsupported = sum(line.status == UNSUPPORTED for line in self.lines)
        count = f"{wrong} wrong" + (f", {unsupported} not supported" if unsupported else "")
        return f"{self.target}: {count}; first: {first.name}: {message}"


def error_text(line: Line) -> str:
    return "" if line.error is None else f"{line.error:.1e}"
