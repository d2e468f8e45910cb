"""Formulas as the docstrings write them, set for a page: indices up and down, lines kept."""

import html
import re

LAYER = re.compile(r"\[([lL]|[lL][−-]1|0|1|2)\]")
INDEX = re.compile(r"(?<=[A-Za-zΣ∂])_([a-z])\b")
EXPONENT = re.compile(r"ᵀ")


def formula(text, css="formula"):
    """A block of formulas, a line each."""
    return (
        f'<div class="{css}">'
        + "".join(f"<p>{inline(n)}</p>" for n in text.splitlines())
        + "</div>"
    )


def inline(text):
    """``W[l]ᵀ dz_i`` -> W with a raised [l], dz with a lowered i."""
    text = html.escape(text, quote=False).replace("``", "").replace("-&gt;", "→")
    text = LAYER.sub(lambda m: f"<sup>[{m[1].replace('-', '−')}]</sup>", text)
    text = INDEX.sub(r"<sub>\1</sub>", text)
    return EXPONENT.sub("<sup>T</sup>", text)


def fences(markdown):
    """Blocks fenced as ``formula`` become formulas."""
    return re.sub(r"(?ms)^``` *formula\n(.*?)^```$", lambda m: formula(m[1]), markdown)


MARKUP = {"<": "&lt;", ">": "&gt;", "|": "&#124;"} | {c: f"\\{c}" for c in "*[]_"}


def escaped(text):
    """Prose of a docstring as Markdown: its asterisks and brackets are meant as they stand."""
    parts = re.split(r"(`+[^`]+`+)", text)
    return "".join(p if p.startswith("`") else "".join(MARKUP.get(c, c) for c in p) for p in parts)
