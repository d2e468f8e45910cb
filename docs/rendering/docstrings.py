"""Docstrings for the reference: they are plain text, which mkdocstrings would take for Markdown."""

import re

from griffe import Extension

from rendering.formulas import escaped


class PlainText(Extension):
    """Asterisks, brackets and lines of formulas stay as they stand."""

    def on_object(self, *, obj, **kwargs):
        if obj.docstring is not None:
            obj.docstring.value = as_markdown(obj.docstring.value)


def as_markdown(text):
    paragraphs = re.split(r"\n{2,}", text)
    return "\n\n".join(_paragraph(p) for p in paragraphs)


def _paragraph(text):
    if text.startswith(">>>"):
        return f"``` pycon\n{text}\n```"
    if text.startswith(" "):  # code
        return text
    lines = escaped(text).split("\n")
    if len(lines) > 1 and all("=" in n or "-&gt;" in n for n in lines):
        return "  \n".join(lines)
    return re.sub("::$", ":", "\n".join(lines))
