"""Excerpts of the source: a definition, the line that computes something, a whole file."""

import ast
import textwrap
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def text_of(path):
    return (ROOT / path).read_text()


def node_of(place):
    """``path:Name.method`` -> (the file's text, the syntax tree of that definition)."""
    path, _, name = place.partition(":")
    text = text_of(path)
    node = ast.parse(text)
    for part in name.split("."):
        found = [n for n in ast.walk(node) if part in names(n)]
        if not found:
            raise LookupError(f"{path} defines no {name}")
        node = found[0]
    return text, node


def names(node):
    """What a definition or an assignment calls its result."""
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        return (node.name,)
    if isinstance(node, ast.Assign):
        return tuple(n.id for t in node.targets for n in ast.walk(t) if isinstance(n, ast.Name))
    return ()


def lines_of(text, node):
    """The lines of a definition with its decorators, as they stand in the file."""
    first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))])
    return textwrap.dedent("\n".join(text.splitlines()[first - 1 : node.end_lineno]))


def excerpt(place):
    """A definition, or a whole file, as it stands in the source."""
    if ":" not in place:
        return text_of(place).strip()
    return lines_of(*node_of(place))


def mathematics(place):
    """A function without its docstring and without the checks of its arguments."""
    text, node = node_of(place)
    given = text.splitlines()
    kept = given[node.lineno - 1 : node.body[0].lineno - 1]
    before = None
    for statement in node.body:
        if _is_docstring(statement) or _is_check(statement):
            continue
        # A blank line of the source parts what is computed from what is handed over.
        if before is not None and not given[statement.lineno - 2].strip():
            kept.append("")
        kept += given[statement.lineno - 1 : statement.end_lineno]
        before = statement
    return textwrap.dedent("\n".join(kept))


def _is_docstring(statement):
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


def _is_check(statement):
    """A call of check_..., a refusal, or a condition or loop that holds nothing else."""
    if isinstance(statement, (ast.If, ast.For)):
        return all(_is_check(inner) for inner in (*statement.body, *statement.orelse))
    if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call):
        return getattr(statement.value.func, "id", "").startswith("check_")
    return isinstance(statement, ast.Raise)


def line(place, words):
    """The one line of a definition in which the words stand."""
    found = [n.strip() for n in excerpt(place).splitlines() if words in n]
    if len(found) != 1:
        raise LookupError(f"{place} has {len(found)} lines with {words!r}, not one")
    return found[0].removeprefix("return ")


def docstring(place):
    _, node = node_of(place)
    return ast.get_docstring(node)


def fenced(code, title=None, language="python"):
    title = f' title="{title}"' if title else ""
    return f"``` {{ .{language}{title} }}\n{code}\n```"
