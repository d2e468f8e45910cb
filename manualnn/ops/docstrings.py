"""An op's docstring, taken apart: for ``help()`` of the layers, ``explain``, and the documentation's pages."""

import inspect
import re
from typing import Any

_SAVED = re.compile(r"\bCaches\b|\bShapes and cache as |\bdx, shapes and cache as ")


def stated(op: Any) -> tuple[str, str, str, str]:
    """As written: its formulas and shapes, what is saved, where it is from, what else there is; "" for none."""
    text, _, rest = inspect.cleandoc(op.__doc__ or "").partition("Source: ")
    source, _, notes = rest.partition("\n\n")
    found = _SAVED.search(text)
    at = found.start() if found else len(text)
    return text[:at].strip(), text[at:].strip(), source, notes


def parts(op: Any) -> tuple[str, str, str, str]:
    """The same of an op of ours, each part but the first on one line, and what its base says of saving.

    Raises:
        ValueError: one of the first three is missing.
    """
    mathematics, saved, source, notes = stated(op)
    if not saved:  # said once, for all that derive from the base
        saved = stated(op.__mro__[1])[1].partition("\n\n")[0]
    if not (mathematics and saved and source):
        raise ValueError(
            f"the docstring of {op.__name__} lacks its formula, its cache or its source"
        )
    return mathematics, joined(saved), joined(source), notes


def without_verb(saved: str) -> str:
    """What is saved, without the word that stands before it in a docstring."""
    return saved.removeprefix("Caches").lstrip(", ")


def joined(text: str) -> str:
    return " ".join(text.split())
