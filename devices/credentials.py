"""Device credentials: a digest in the database usually decides whether a device token is valid, without bcrypt.

A device's row contains two values with which a token can be checked. `token_hash` is a bcrypt hash, and always decides.
`token_digest` is an HMAC under a key that is derived from SECRET_KEY. The SQL expression VERDICT compares digests only.
If the digests are equal, the verdict is `good` or `revoked`. If they differ, the verdict is `wrong`, or `unsettled` if
VERDICT cannot decide. VERDICT cannot decide in three cases:
- The row has no digest.
- The digest was made under another key.
- After a rotation, the new credential waits for its first use.

If the verdict is `unsettled`, the caller must call token_check.check_fully() and then try its work again. check_fully()
writes a new digest.
"""

import hmac
import secrets
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from functools import cache
from hashlib import sha256
from typing import Any, Final
from uuid import UUID

import bcrypt
from django.conf import settings
from django.db import transaction
from django.db.models import F, Q
from django.db.models.functions import Now

from devices import tokens
from devices.models import Device
from nexmdm.common import database
from nexmdm.common.domain_error import DomainError

NEXT_LIVES: Final = timedelta(hours=24)
"""The time within which a phone must use its new credential after a rotation. After this time, an unused new credential
is deleted.
"""


class InvalidToken(DomainError):
    detail = "The device token is not valid. If the phone has lost its device token, register the phone again."


class DeviceRevoked(DomainError):
    detail = (
        "This device is revoked or retired. If the device is revoked, an admin can reinstate the device by POST "
        "/admin/devices/{device_id}/reinstate. If the device is retired, register the phone again with any "
        "enrollment token."
    )

    def __init__(self, device_id: UUID | None = None) -> None:
        super().__init__()
        self.device_id = device_id
        """The id of the device, or None if the token of the request contains the id."""


class NeedsFullCheck(Exception):
    """The stored digest cannot decide whether the token is valid. Call token_check.check_fully(), then try again."""


class Verdict(StrEnum):
    """The result of the comparison between a token's digest and the stored digest."""

    GOOD = "good"
    REVOKED = "revoked"
    UNSETTLED = "unsettled"
    WRONG = "wrong"


# `device` is the row of the device. It may come from a left join. `asked.digest` is the digest of the request's token
# under the key with the short name %(digest_key)s.
VERDICT: Final = """
    CASE
        WHEN device.token_digest = asked.digest AND device.token_digest_key = %(digest_key)s
            THEN CASE WHEN device.revoked_at IS NULL THEN 'good' ELSE 'revoked' END
        WHEN device.token_digest IS NULL OR device.token_digest_key <> %(digest_key)s OR device.next_hash <> ''
            THEN 'unsettled'
        ELSE 'wrong'
    END"""

_AUTHENTICATE: Final = f"""
    SELECT {VERDICT}, device.token_used_at IS NULL
    FROM (SELECT %(digest)s::bytea AS digest) asked
    JOIN devices_device device ON device.id = %(device_id)s
"""  # noqa: S608  (a constant of this module; values are parameters)


@dataclass(frozen=True, slots=True)
class NewSecret:
    """The secret of a new credential (32 bytes), and the bcrypt hash of the secret's text."""

    value: bytes
    hash: str

    def token_for(self, device_id: UUID) -> tokens.Token:
        """Return the device token with this secret. The server must send the token to the phone only once."""
        return tokens.make(tokens.DEVICE_PREFIX, device_id, self.value)


def new_secret() -> NewSecret:
    """Create a random secret. This takes as long as one bcrypt hash: never call it on an event loop or inside a
    transaction.
    """
    value = secrets.token_bytes(32)
    hashed = bcrypt.hashpw(tokens.secret_text(value).encode(), bcrypt.gensalt(settings.BCRYPT_ROUNDS))
    return NewSecret(value, hashed.decode())


def authenticate(token: tokens.Token) -> UUID:
    """Return the id of the device that has this token, and record the first use of the token.

    Raises InvalidToken for an unknown device and for a wrong secret. Raises DeviceRevoked if the device is not active.
    Raises NeedsFullCheck if the stored digest cannot show whether the token is valid. The function runs one statement,
    and a second statement at the first use.
    """
    key = tokens.digest_keys()[0]
    asked = {"device_id": token.id, "digest": tokens.digest(token.text, key.value), "digest_key": key.id}
    found = database.rows(_AUTHENTICATE, asked)
    verdict, first_use = found[0] if found else (Verdict.WRONG, False)
    check(verdict)
    if first_use:
        Device.objects.filter(id=token.id, token_digest=asked["digest"], token_used_at=None).update(token_used_at=Now())
    return token.id


def check(verdict: str) -> None:
    """Raise the error for a verdict. For `good`, do nothing."""
    if (error := error_of(verdict)) is not None:
        raise error


def error_of(verdict: str) -> Exception | None:
    """Return the error for a verdict, or None for `good`."""
    if verdict == Verdict.GOOD:
        return None
    errors: dict[str, type[Exception]] = {Verdict.REVOKED: DeviceRevoked, Verdict.UNSETTLED: NeedsFullCheck}
    return errors.get(Verdict(verdict), InvalidToken)()


@dataclass(frozen=True, slots=True)
class Verifier:
    """A valid credential of a device, as the device's row stores it. A device has at most two valid credentials.

    `is_next` is true for the new credential after a rotation, before its first use.
    """

    hash: str
    digest: bytes | None
    digest_key: str
    is_next: bool

    def matches_digest(self, token: tokens.Token) -> bool | None:
        """Return whether `token` is this credential, or None if only bcrypt can decide.

        Only bcrypt can decide if there is no digest, or if the digest's key is not configured. A wrong token therefore
        usually costs no bcrypt check.
        """
        for key in tokens.digest_keys():
            if key.id == self.digest_key and self.digest is not None:
                return hmac.compare_digest(tokens.digest(token.text, key.value), bytes(self.digest))
        return None

    def matches_hash(self, token: tokens.Token) -> bool:
        """Return whether `token` matches the bcrypt hash. This takes 60 ms or more: do not call it on an event loop or
        in a transaction.
        """
        return bcrypt.checkpw(token.secret.encode(), self.hash.encode())


def verifiers(device_id: UUID) -> list[Verifier]:
    """Return the valid credentials of a device: the current credential first. The list is empty if the device is
    unknown.
    """
    fields = ("token_hash", "token_digest", "token_digest_key", "next_hash", "next_digest", "next_digest_key")
    row = (
        Device.objects.filter(id=device_id)
        .annotate(next_live=Q(next_expires_at__gt=Now()))
        .values(*fields, "next_live")
        .first()
    )
    if row is None:
        return []
    found = [Verifier(row["token_hash"], row["token_digest"], row["token_digest_key"], is_next=False)]
    if row["next_live"]:
        found.append(Verifier(row["next_hash"], row["next_digest"], row["next_digest_key"], is_next=True))
    return found


def rehash(token: tokens.Token, matched: Verifier) -> None:
    """Store a new digest, under the current key, for a token that matched the credential `matched`.

    If `matched` is the new credential after a rotation, this credential becomes the device's only credential. If the
    row's credential has changed since `matched` was read, nothing is written. The caller must then check the token
    again.
    """
    key = tokens.digest_keys()[0]
    written = {"token_digest": tokens.digest(token.text, key.value), "token_digest_key": key.id}
    if not matched.is_next:
        Device.objects.filter(id=token.id, token_hash=matched.hash).update(**written)
        return
    Device.objects.filter(id=token.id, next_hash=matched.hash).update(
        **written,
        token_hash=F("next_hash"),
        command_key_id=F("next_command_key_id"),
        generation=F("next_generation"),
        token_used_at=Now(),
        **NO_NEXT,
    )


NO_NEXT: Final = {
    "next_hash": "",
    "next_digest": None,
    "next_digest_key": "",
    "next_command_key_id": "",
    "next_expires_at": None,
}
"""The column values of a device without a new credential from a rotation.

`next_generation` is not in this dict: it must stay, because no generation may be used twice.
"""


@transaction.atomic
def rotate(token: tokens.Token, secret: NewSecret) -> tuple[str, str]:
    """Add a new credential to the device of `token`. Return the new device token and the new command key.

    The old device token and command key work until the new device token is first used. Raises InvalidToken,
    DeviceRevoked, NeedsFullCheck.
    """
    device = Device.objects.select_for_update().only("generation", "next_generation").filter(id=token.id).first()
    if device is None:
        raise InvalidToken
    authenticate(token)
    new, key = secret.token_for(token.id), tokens.digest_keys()[0]
    generation = max(device.generation, device.next_generation) + 1
    Device.objects.filter(id=token.id).update(
        next_hash=secret.hash,
        next_digest=tokens.digest(new.text, key.value),
        next_digest_key=key.id,
        next_generation=generation,
        next_command_key_id=command_key_ids()[0],
        next_expires_at=Now() + NEXT_LIVES,
    )
    return new.text, command_key(token.id, generation, command_key_ids()[0])


def replaced_by(secret: NewSecret, device_id: UUID, generation: int) -> dict[str, Any]:
    """Return the column values with which `secret` becomes a device's only credential."""
    key = tokens.digest_keys()[0]
    return {
        "token_hash": secret.hash,
        "token_digest": tokens.digest(secret.token_for(device_id).text, key.value),
        "token_digest_key": key.id,
        "token_used_at": None,
        "generation": generation,
        "command_key_id": command_key_ids()[0],
        **NO_NEXT,
    }


def forget_unused_next() -> int:
    """Delete new credentials that were not used within NEXT_LIVES after their rotation. Return their number."""
    return Device.objects.filter(next_expires_at__lte=Now()).update(**NO_NEXT)


def command_key_ids() -> list[str]:
    """Return the short names of the configured command signing keys, the current key first."""
    return [_key_id(key) for key in settings.COMMAND_SIGNING_KEYS]


@cache
def _key_id(key: str) -> str:
    return sha256(b"nexmdm command signing key:" + key.encode()).hexdigest()[:8]


def command_key(device_id: UUID | str, generation: int, key_id: str) -> str:
    """Return the command key of a device as lower-case hex. Only the answers to a registration and to a rotation
    contain the key.

    The command key is HMAC-SHA256 under the signing key `key_id`. The message of the HMAC is `NXK1`, the device id and
    the generation, joined by LF. If `key_id` is not configured any more, the current signing key is used. In this case,
    the phone refuses the envelopes.
    """
    ids = command_key_ids()
    master = settings.COMMAND_SIGNING_KEYS[ids.index(key_id) if key_id in ids else 0]
    return hmac.digest(master.encode(), f"NXK1\n{device_id}\n{generation}".encode(), "sha256").hex()
