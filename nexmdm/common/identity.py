"""The rules for hardware ids, aliases and push tokens: which texts are valid, and which texts count as the same."""

import re
from hashlib import md5
from typing import Final
from unicodedata import category, normalize

LONGEST_NAME: Final = 128
"""The largest number of characters of a stored hardware id or alias."""

LONGEST_GIVEN: Final = 4 * LONGEST_NAME
"""The largest number of characters of an alias before its normalisation. Longer texts with many combining marks would
take too much time.
"""

SHARED_HARDWARE_IDS: Final = frozenset(
    {"unknown", "null", "none", "n/a", "02:00:00:00:00:00", "9774d56d682e549c"},
)
"""Values that many phones report in place of an id. 02:00:00:00:00:00 is the MAC address that apps get since Android 6.
9774d56d682e549c is the ANDROID_ID of a whole series of phones with Android 2.2.
"""

PUSH_TOKEN_PLACEHOLDERS: Final = frozenset({"blacklisted", "unknown", "undefined", "null", "none", "n/a"})
"""Texts that agents send if there is no push token. Firebase's library returns BLACKLISTED on some phones."""

_ONLY_ZEROS: Final = re.compile(r"[0:.-]*0[0:.-]*")
_INVISIBLE: Final = frozenset({"Cc", "Cf", "Zl", "Zp"})
_BLANK_OR_CONTROL: Final = bytes([*range(33), 127])


def hardware_id(given: str) -> str:
    """Return a hardware id without blanks around it.

    Raises ValueError if the hardware id is empty, too long, or a value that many phones report.
    """
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
    """Return an alias without blanks around it, in NFC.

    Raises ValueError if the alias is empty, too long, or has invisible characters.
    """
    text = named_alias(given)
    if any(category(character) in _INVISIBLE for character in text):
        raise ValueError(
            "must not contain line breaks, control characters or format characters, such as a zero-width space"
        )
    return text


def named_alias(given: str) -> str:
    """Return an alias without blanks around it, in NFC. A caller uses the alias to name an existing device.

    All characters are allowed, because aliases of earlier versions may contain them. Raises ValueError if the alias is
    empty or too long.
    """
    text = given.strip()
    text = normalize("NFC", text) if len(text) <= LONGEST_GIVEN else text
    if not 1 <= len(text) <= LONGEST_NAME:
        raise ValueError(f"must have 1 to {LONGEST_NAME} characters, not counting blanks at the beginning and the end")
    return text


def comparison_key(text: str) -> str:
    """Return a key that is equal for texts which differ only in case, blanks around them, or Unicode composition."""
    return folded(text.strip())


def folded(text: str) -> str:
    """Return a text in the case and Unicode composition of comparison keys, for a search in these keys."""
    return normalize("NFC", normalize("NFC", text).casefold())


def push_token(given: str) -> str:
    """Return a push token unchanged. Raises ValueError for a placeholder, and for a push token with blanks, control
    characters or lone surrogates. The function does not check the length. Each heartbeat with a push token calls this
    function, so it must be fast.
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
    """Return the installation of a push target: the text before its first colon.

    If this text is empty or there is no colon, the whole push target is returned. In FCM, a push token begins with the
    id of its installation.
    """
    return push_token.partition(":")[0] or push_token


def push_owner_digest(push_token: str) -> str:
    """Return the MD5 of push_owner(). models.PUSH_OWNER computes the same value in SQL."""
    return md5(push_owner(push_token).encode(), usedforsecurity=False).hexdigest()
