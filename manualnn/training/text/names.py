"""Names of files and classes made fit to be printed: they come from folders and checkpoints of anyone."""

import unicodedata

# Control characters, halves of surrogate pairs (bytes that are no UTF-8), line and paragraph ends.
_ACTING = {"Cc", "Cs", "Zl", "Zp"}
_BIDIRECTIONAL = set("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def shown(name: object) -> str:
    """The text as a terminal or a file of UTF-8 may have it.

    What a terminal would obey, what turns the direction of reading and bytes that are no UTF-8
    become escapes, such as \\x1b and \\udce9. Everything else stays.
    """
    text = str(name)
    if text.isprintable():
        return text
    return "".join(c.encode("unicode_escape").decode() if _acts(c) else c for c in text)


def _acts(character: str) -> bool:
    return character in _BIDIRECTIONAL or unicodedata.category(character) in _ACTING


def cell(name: object) -> str:
    """`shown`, for a cell of a CSV file: a spreadsheet takes none for a formula."""
    text = shown(name)
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text


def brief(text: str, most: int = 2000) -> str:
    """The text without its middle, where it quotes at such length what someone has written."""
    half, left = most // 2, len(text) - most
    return text if left <= 0 else f"{text[:half]} [... {left} characters ...] {text[-half:]}"


def few(names, most: int = 8) -> str:
    """ "a, b and 3 more"."""
    first = ", ".join(map(shown, names[:most]))
    return f"{first} and {len(names) - most} more" if len(names) > most else first
