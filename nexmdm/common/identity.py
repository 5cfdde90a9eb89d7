"""The names of a phone: hardware id, alias, push token. Which texts are valid, and when two of them are the same."""

import re
from hashlib import md5
from typing import Final
from unicodedata import category, normalize

LONGEST_NAME: Final = 128
"""The largest number of characters of a stored hardware id or alias."""

LONGEST_GIVEN: Final = 4 * LONGEST_NAME
"""The largest number of characters of an alias before it is normalised: the time for combining marks grows
quadratically."""

SHARED_HARDWARE_IDS: Final = frozenset(
    {"unknown", "null", "none", "n/a", "02:00:00:00:00:00", "9774d56d682e549c"},
)
"""Values that Android and its drivers report instead of an id. 02:00:00:00:00:00 is the MAC address that apps get since
Android 6. 9774d56d682e549c is the ANDROID_ID of a whole series of phones with Android 2.2.
"""

PUSH_TOKEN_PLACEHOLDERS: Final = frozenset({"blacklisted", "unknown", "undefined", "null", "none", "n/a"})
"""Texts that agents send when there is no push token. Firebase's library returns BLACKLISTED on some phones."""

_ONLY_ZEROS: Final = re.compile(r"[0:.-]*0[0:.-]*")
_INVISIBLE: Final = frozenset({"Cc", "Cf", "Zl", "Zp"})
_BLANK_OR_CONTROL: Final = bytes([*range(33), 127])


def hardware_id(given: str) -> str:
    """Return a hardware id, trimmed; ValueError if it is empty, too long, or an id that many phones report."""
    text = given.strip()
    if not 1 <= len(text) <= LONGEST_NAME:
        raise ValueError(f"must have 1 to {LONGEST_NAME} characters, not counting blanks at the beginning and the end")
    if text.casefold() in SHARED_HARDWARE_IDS or _ONLY_ZEROS.fullmatch(text):
        raise ValueError(
            f"must be unique, but many phones report {text!r}. Send an id that no other phone has, such as a UUID "
            "that the agent creates once and stores"
        )
    return text


def alias(given: str) -> str:
    """Return an alias, trimmed and in NFC; ValueError if it is empty, too long, or has invisible characters."""
    text = named_alias(given)
    if any(category(character) in _INVISIBLE for character in text):
        raise ValueError(
            "must not contain line breaks, control characters or format characters, such as a zero-width space"
        )
    return text


def named_alias(given: str) -> str:
    """Return the alias that a caller names, trimmed and in NFC.

    Any character is allowed, because older aliases have them.
    """
    text = given.strip()
    text = normalize("NFC", text) if len(text) <= LONGEST_GIVEN else text
    if not 1 <= len(text) <= LONGEST_NAME:
        raise ValueError(f"must have 1 to {LONGEST_NAME} characters, not counting blanks at the beginning and the end")
    return text


def comparison_key(text: str) -> str:
    """Return a key that is equal for texts that differ only in case, in blanks around them, or in composition."""
    return folded(text.strip())


def folded(text: str) -> str:
    """Return a text in one case and composition, for a search in comparison keys."""
    return normalize("NFC", normalize("NFC", text).casefold())


def push_token(given: str) -> str:
    """Return a push token unchanged; ValueError for an invalid one: blanks, control characters, placeholders.

    This function runs for each heartbeat with a push token. The length is checked elsewhere.
    """
    if given.isascii():
        is_broken = len(given.encode().translate(None, _BLANK_OR_CONTROL)) != len(given)
    else:
        is_broken = any(character.isspace() or category(character) in ("Cc", "Cs") for character in given)
    if is_broken:
        raise ValueError("must be a push token, without blanks, control characters or lone surrogates")
    if len(given) < 16 and given.casefold() in PUSH_TOKEN_PLACEHOLDERS:
        raise ValueError("is a placeholder, not a push token")
    return given


def push_owner(push_token: str) -> str:
    """Return the part of a push token that names the app's installation: the text before the first colon.

    If there is no such part, the whole token is returned. (FCM: a token begins with its installation's id.)
    """
    return push_token.partition(":")[0] or push_token


def push_owner_digest(push_token: str) -> str:
    """Return the MD5 of a push token's owner, as the database computes it (models.PUSH_OWNER)."""
    return md5(push_owner(push_token).encode(), usedforsecurity=False).hexdigest()
