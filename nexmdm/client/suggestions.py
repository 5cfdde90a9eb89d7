"""Suggestions for names that do not exist: those that are spelled much like it."""

import difflib
import unicodedata
from collections.abc import Iterable
from typing import Final

MOST: Final = 3
_LIKENESS: Final = 0.6


def nearest(name: str, known: Iterable[str]) -> list[str]:
    """Return the known names that look most like this one, the most similar first; case does not matter."""
    by_key = {fold(one): one for one in known}
    return [by_key[key] for key in difflib.get_close_matches(fold(name), by_key, MOST, _LIKENESS)]


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return the question, with a space before it; nothing where no known name is near."""
    found = nearest(name, known)
    return f" Did you mean {' or '.join(found)}?" if found else ""


def fold(name: str) -> str:
    """Return what two spellings of a name have in common: the server compares aliases in this form, too."""
    return unicodedata.normalize("NFC", name).casefold().strip()
