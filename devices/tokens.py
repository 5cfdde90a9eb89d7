"""The formats of device tokens and enrollment tokens, and the keys from which tokens and secrets are derived.

A token has five parts:
- a prefix of 4 characters
- the 128-bit id in 22 base62 characters
- `_`
- the 256-bit secret in 43 base62 characters
- the CRC32 of all characters before it, in 6 base62 characters

The CRC32 is no secret. Because of the CRC32, a token with a typing error is refused without any work of the database.
"""

import hmac
import re
import zlib
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from typing import Final
from uuid import UUID

from django.conf import settings

ENROLLMENT_PREFIX: Final = "nxe_"
DEVICE_PREFIX: Final = "nxd_"

ALPHABET: Final = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_DIGITS: Final = {character: value for value, character in enumerate(ALPHABET)}
_ID_LENGTH: Final = 22
_SECRET_LENGTH: Final = 43
_CRC_LENGTH: Final = 6
_PREFIX_LENGTH: Final = 4
_ID_END: Final = _PREFIX_LENGTH + _ID_LENGTH
_SECRET_END: Final = _ID_END + 1 + _SECRET_LENGTH
_FORM: Final = re.compile(f"[0-9A-Za-z]{{{_ID_LENGTH}}}_[0-9A-Za-z]{{{_SECRET_LENGTH + _CRC_LENGTH}}}")


@dataclass(frozen=True, slots=True)
class Token:
    """A well-formed token: the id of its device or enrollment token, and its whole text."""

    id: UUID
    text: str

    @property
    def secret(self) -> str:
        """The secret part of the text: 43 characters. bcrypt accepts at most 72 bytes."""
        return self.text[_ID_END + 1 : _SECRET_END]

    def __repr__(self) -> str:
        return f"Token({self.id}, …)"


def make(prefix: str, owner: UUID, secret: bytes) -> Token:
    """Return the token with the id `owner` and with a secret of 32 bytes."""
    head = f"{prefix}{base62(owner.int, _ID_LENGTH)}_{secret_text(secret)}"
    return Token(owner, head + _checksum(head))


def secret_text(secret: bytes) -> str:
    """Return the 43 characters that encode a secret of 32 bytes."""
    return base62(int.from_bytes(secret), _SECRET_LENGTH)


def parse(prefix: str, text: str) -> Token | None:
    """Return the token in `text`, or None if its prefix, length, alphabet or checksum is wrong."""
    if not text.startswith(prefix) or not _FORM.fullmatch(text, _PREFIX_LENGTH):
        return None
    if _checksum(text[:_SECRET_END]) != text[_SECRET_END:]:
        return None
    number = 0
    for character in text[_PREFIX_LENGTH:_ID_END]:
        number = number * 62 + _DIGITS[character]
    return Token(UUID(int=number), text) if number < 2**128 else None


def digest(text: str, key: bytes) -> bytes:
    """Return the HMAC-SHA256 of `text` under `key`."""
    return hmac.digest(key, text.encode(), "sha256")


@dataclass(frozen=True, slots=True)
class Key:
    """A derived key. `id` is the short name with which rows identify the key."""

    id: str
    value: bytes


def digest_keys() -> tuple[Key, ...]:
    """Return the keys for token digests: the key of SECRET_KEY first, then the key of each fallback."""
    return _derive("token digest", (settings.SECRET_KEY, *settings.SECRET_KEY_FALLBACKS))


def enrollment_keys() -> tuple[Key, ...]:
    """Return the keys from which the secrets of enrollment tokens are derived, the current key first."""
    return _derive("enrollment secret", (settings.SECRET_KEY, *settings.SECRET_KEY_FALLBACKS))


def webhook_keys() -> tuple[Key, ...]:
    """Return the keys from which the secrets of webhooks are derived, the current key first."""
    return _derive("webhook secret", (settings.SECRET_KEY, *settings.SECRET_KEY_FALLBACKS))


@lru_cache(maxsize=16)
def _derive(purpose: str, masters: tuple[str, ...]) -> tuple[Key, ...]:
    values = (hmac.digest(master.encode(), f"nexmdm {purpose}".encode(), "sha256") for master in masters)
    return tuple(Key(sha256(b"id:" + value).hexdigest()[:8], value) for value in values)


def base62(number: int, length: int) -> str:
    """Return a number in base62. Zeros in front make the text `length` characters long."""
    digits = []
    while number:
        number, digit = divmod(number, 62)
        digits.append(ALPHABET[digit])
    return "".join(reversed(digits)).rjust(length, "0")


def _checksum(head: str) -> str:
    return base62(zlib.crc32(head.encode("ascii")), _CRC_LENGTH)
