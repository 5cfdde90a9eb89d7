"""A claim is the id of a device or of an enrollment token. The id comes from the token of a refused request.

A claim may be forged. proved() finds the claims whose token is genuine. Claims are used only for the log and for the
last refusal of a device. A claim gives no access.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Final
from uuid import UUID

import orjson

from devices import tokens
from nexmdm.common import database


@dataclass(frozen=True, slots=True)
class Claim:
    """A well-formed token without its secret: its prefix, the id in the token, and digests of the token.

    proved() compares the digests with the database. A device token has one digest for each configured key.
    """

    prefix: str
    id: UUID
    digests: tuple[bytes, ...]

    @property
    def is_of_device(self) -> bool:
        """Return True for a device token, and False for an enrollment token."""
        return self.prefix == tokens.DEVICE_PREFIX


# The new token after a rotation is genuine too. If a device's digest was deleted, its token cannot be proved until its
# next good request.
_PROVED: Final = """
    WITH asked AS (
        SELECT * FROM jsonb_to_recordset(%(asked)s::jsonb) AS asked (
            position int, id uuid, digest bytea, digest_key text
        )
    )
    SELECT asked.position FROM asked JOIN devices_device device ON device.id = asked.id
    WHERE (device.token_digest = asked.digest AND device.token_digest_key = asked.digest_key)
        OR (device.next_digest = asked.digest AND device.next_digest_key = asked.digest_key
            AND device.next_expires_at > now())
    UNION ALL
    SELECT asked.position FROM asked JOIN devices_enrollmenttoken token ON token.id = asked.id
    WHERE token.token_sha256 = asked.digest AND asked.digest_key IS NULL
"""


def of(text: str) -> Claim | None:
    """Return the claim of a token, or None if the text is not a well-formed token."""
    if (token := tokens.parse(tokens.DEVICE_PREFIX, text)) is not None:
        digests = tuple(tokens.digest(token.text, key.value) for key in tokens.digest_keys())
        return Claim(tokens.DEVICE_PREFIX, token.id, digests)
    if (token := tokens.parse(tokens.ENROLLMENT_PREFIX, text)) is not None:
        return Claim(tokens.ENROLLMENT_PREFIX, token.id, (sha256(token.text.encode()).digest(),))
    return None


def proved(asked: Collection[Claim]) -> set[Claim]:
    """Return the claims whose token is genuine. The function runs one statement.

    A token is genuine if the database knows it. So revoked enrollment tokens and the tokens of revoked devices are
    genuine too.
    """
    found = list(asked)
    rows = [row for position, claim in enumerate(found) for row in _rows(position, claim)]
    positions = database.rows(_PROVED, {"asked": orjson.dumps(rows).decode()})
    return {found[position] for (position,) in positions}


def _rows(position: int, claim: Claim) -> Iterator[dict[str, Any]]:
    keys = [key.id for key in tokens.digest_keys()] if claim.is_of_device else [None]
    for digest, key in zip(claim.digests, keys, strict=True):
        yield {"position": position, "id": claim.id, "digest": f"\\x{digest.hex()}", "digest_key": key}
