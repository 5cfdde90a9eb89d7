"""Device credentials: the statement that does a request's work compares a digest; bcrypt is rarely necessary.

A row contains two verifiers of one secret: `token_hash` (bcrypt, the credential of record) and `token_digest` (an HMAC
under a key from SECRET_KEY). `VERDICT` compares digests in SQL. The verdict is `unsettled` if a row has no digest, if
its digest was made under another key, or if a rotated credential waits for its first use. Then `check_fully()` checks
further and rewrites the row, and the caller tries the work again.
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
"""The time within which a phone must use a new credential after a rotation. After it, an unused one is deleted."""


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
        """The device, if the caller cannot read it from the token."""


class NeedsFullCheck(Exception):
    """The stored digest cannot show whether the token is valid. Call token_check.check_fully(), then try again."""


class Verdict(StrEnum):
    """The verdict of a bearer token's digest."""

    GOOD = "good"
    REVOKED = "revoked"
    UNSETTLED = "unsettled"
    WRONG = "wrong"


# `device` is the (left-joined) device row, `asked.digest` the digest under the key named %(digest_key)s.
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
    """The secret of a new credential, and its bcrypt hash."""

    value: bytes
    hash: str

    def token_for(self, device_id: UUID) -> tokens.Token:
        """Return the device token. Send it to the phone once."""
        return tokens.make(tokens.DEVICE_PREFIX, device_id, self.value)


def new_secret() -> NewSecret:
    """Create a secret. Costs one bcrypt hash: never call it on an event loop or inside a transaction."""
    value = secrets.token_bytes(32)
    hashed = bcrypt.hashpw(tokens.secret_text(value).encode(), bcrypt.gensalt(settings.BCRYPT_ROUNDS))
    return NewSecret(value, hashed.decode())


def authenticate(token: tokens.Token) -> UUID:
    """Return the id of the device that has this token, and record the first use of the token. Costs one statement.

    Raises InvalidToken, DeviceRevoked, or NeedsFullCheck. An unknown device and a wrong secret get the same answer.
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
    """Raise the error of a verdict other than `good`."""
    if (error := error_of(verdict)) is not None:
        raise error


def error_of(verdict: str) -> Exception | None:
    """Return the error that the sender gets for a verdict, or None for `good`."""
    if verdict == Verdict.GOOD:
        return None
    errors: dict[str, type[Exception]] = {Verdict.REVOKED: DeviceRevoked, Verdict.UNSETTLED: NeedsFullCheck}
    return errors.get(Verdict(verdict), InvalidToken)()


@dataclass(frozen=True, slots=True)
class Verifier:
    """One of a device's live credentials (at most two), as its row stores it."""

    hash: str
    digest: bytes | None
    digest_key: str
    is_next: bool

    def matches_digest(self, token: tokens.Token) -> bool | None:
        """Return whether `token` is this credential; None if only bcrypt can decide: the digest's key is missing.

        If the stored digest was made with a configured key and differs, the token is wrong. So a guess costs no bcrypt
        check.
        """
        for key in tokens.digest_keys():
            if key.id == self.digest_key and self.digest is not None:
                return hmac.compare_digest(tokens.digest(token.text, key.value), bytes(self.digest))
        return None

    def matches_hash(self, token: tokens.Token) -> bool:
        """Return whether bcrypt matches: 60 ms and more, so do not call it on an event loop or in a transaction."""
        return bcrypt.checkpw(token.secret.encode(), self.hash.encode())


def verifiers(device_id: UUID) -> list[Verifier]:
    """Return the live credentials of a device; none if the device is unknown."""
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

    If the token is the rotated one, it becomes the device's current token. If the credential in the row has changed
    since `matched` was read, nothing is written: the caller must check the token again.
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
"""The fields of a device without a rotated credential. `next_generation` stays, so that no number is used twice."""


@transaction.atomic
def rotate(token: tokens.Token, secret: NewSecret) -> tuple[str, str]:
    """Add a new credential next to the one in `token`; return its device token and command key.

    The old token and key work until the new token is first used. Raises the errors of authenticate().
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
    """Return the fields of a device whose credential becomes `secret`. They replace every earlier credential."""
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
    """Delete rotated credentials that were not used in time; return how many."""
    return Device.objects.filter(next_expires_at__lte=Now()).update(**NO_NEXT)


def command_key_ids() -> list[str]:
    """Return the short names of the command signing keys, the current one first."""
    return [_key_id(key) for key in settings.COMMAND_SIGNING_KEYS]


@cache
def _key_id(key: str) -> str:
    return sha256(b"nexmdm command signing key:" + key.encode()).hexdigest()[:8]


def command_key(device_id: UUID | str, generation: int, key_id: str) -> str:
    """Return the key that signs the commands of a device, as lower-case hex. Send it to the phone once.

    The returned key is the HMAC-SHA256, under the signing key, of `NXK1`, device id and generation, joined by LF.

    If the device's signing key is no longer configured, the current key is used, and the phone refuses its signatures.
    """
    ids = command_key_ids()
    master = settings.COMMAND_SIGNING_KEYS[ids.index(key_id) if key_id in ids else 0]
    return hmac.digest(master.encode(), f"NXK1\n{device_id}\n{generation}".encode(), "sha256").hex()
