"""What the pages take from the rest of the project: README, configurations, tests."""

import ast
import re

from rendering.source import ROOT, text_of


def readme(heading):
    """A section of the README, without its heading."""
    parts = re.split(r"(?m)^## (.+)$", text_of("README.md"))
    sections = dict(zip(parts[1::2], parts[2::2], strict=True))
    if heading not in sections:
        raise LookupError(f"the README has no section {heading!r}; it has {', '.join(sections)}")
    return sections[heading].strip().replace("](docs/", "](")


def configurations():
    """The experiments in configs/, by what their first lines say."""
    rows = ["| file | what |", "|---|---|"]
    for path in sorted((ROOT / "configs").glob("*.yaml")):
        comment = []
        for line in path.read_text().splitlines():
            if not line.startswith("#"):
                break
            comment.append(line.removeprefix("#").strip())
        rows.append(f"| `configs/{path.name}` | {' '.join(comment)} |")
    return "\n".join(rows)


def batteries():
    """What every row of the registry runs through: the tests of tests/test_battery_*.py."""
    rows = ["| test | what it holds |", "|---|---|"]
    for path in sorted((ROOT / "tests").glob("test_battery_*.py")):
        tree = ast.parse(path.read_text())
        tests = [
            n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name.startswith("test_")
        ]
        named = ", ".join(t.name.removeprefix("test_").replace("_", " ") for t in tests)
        rows.append(f"| `{path.name}`: {ast.get_docstring(tree).splitlines()[0]} | {named} |")
    return "\n".join(rows)


def check_lines():
    """The names of the lines of a report, in their order."""
    from manualnn.check import LAYERS, LINES

    return [name for name, _ in LINES] + [LAYERS]
