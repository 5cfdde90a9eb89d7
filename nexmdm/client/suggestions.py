"""Suggestions for a name that does not exist: similar names that exist."""

import difflib
import unicodedata
from collections.abc import Iterable
from typing import Final

MOST: Final = 3
_LIKENESS: Final = 0.6


def nearest(name: str, known: Iterable[str]) -> list[str]:
    """Return the known names that are most similar to this one, the most similar first. Case does not matter."""
    by_key = {fold(one): one for one in known}
    return [by_key[key] for key in difflib.get_close_matches(fold(name), by_key, MOST, _LIKENESS)]


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return the question, with a space before it, or an empty text if no known name is similar."""
    found = nearest(name, known)
    return f" Did you mean {' or '.join(found)}?" if found else ""


def fold(name: str) -> str:
    """Return the form in which two spellings of a name are equal. The server compares aliases in this form too."""
    return unicodedata.normalize("NFC", name).casefold().strip()
