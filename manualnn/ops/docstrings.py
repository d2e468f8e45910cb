"""An op's docstring, taken apart: for ``help()`` of the layers, and for the documentation's pages."""

import inspect
import re
from typing import Any


def parts(op: Any) -> tuple[str, str, str, str]:
    """Its formulas and shapes, what is saved, where it is from, what else there is.

    Raises:
        ValueError: one of the first three is missing.
    """
    text, _, rest = inspect.cleandoc(op.__doc__).partition("Source: ")
    origin, _, notes = rest.partition("\n\n")
    mathematics, saved = _cut(text)
    if not saved:  # said once, for all that derive from the base
        _, saved = _cut(inspect.cleandoc(op.__mro__[1].__doc__))
        saved = saved.partition("\n\n")[0]
    if not (mathematics and saved and origin):
        raise ValueError(
            f"the docstring of {op.__name__} lacks its formula, its cache or its source"
        )
    return mathematics, joined(saved), joined(origin), notes


def without_verb(saved: str) -> str:
    """What is saved, without the word that stands before it in a docstring."""
    return saved.removeprefix("Caches").lstrip(", ")


def joined(text: str) -> str:
    return " ".join(text.split())


def _cut(text: str) -> tuple[str, str]:
    """The text before what is saved, and what is saved."""
    found = re.search(r"\bCaches\b|\bShapes and cache as |\bdx, shapes and cache as ", text)
    if found is None:
        return text.strip(), ""
    return text[: found.start()].strip(), text[found.start() :].strip()
