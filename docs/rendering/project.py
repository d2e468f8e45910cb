"""What the pages take from the rest of the project: files of its root, configurations, tests."""

import ast
import re

from rendering.source import ROOT, text_of


def root(name):
    """A file of the root, such as CONTRIBUTING.md, as a page.

    Its links to docs/ and to other such files lead to their pages; a directive that is a comment there, so that
    readers of the file do not see it, is one here.
    """
    text = re.sub(r"<!-- (\{\{ .+? \}\}) -->", r"\1", text_of(name)).replace("](docs/", "](")
    return re.sub(r"\]\(([A-Z]+\.md)", lambda link: link[0].lower(), text)


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
    """What every row of the registry runs through: the tests of tests/ops/test_battery_*.py."""
    rows = ["| test | what it holds |", "|---|---|"]
    for path in sorted((ROOT / "tests" / "ops").glob("test_battery_*.py")):
        tree = ast.parse(path.read_text())
        tests = [
            n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name.startswith("test_")
        ]
        named = ", ".join(t.name.removeprefix("test_").replace("_", " ") for t in tests)
        rows.append(f"| `{path.name}`: {ast.get_docstring(tree).splitlines()[0]} | {named} |")
    return "\n".join(rows)


def check_lines():
    """The names of the lines of a report, in their order."""
    from manualnn.tools.checks import LAYERS, LINES

    return [name for name, _ in LINES] + [LAYERS]
