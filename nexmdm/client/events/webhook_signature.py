"""The signature of a webhook's request, as the Standard Webhooks specification defines it (version v1)."""

import base64
import binascii
import hmac
import re
from collections.abc import Mapping
from typing import Final

SECRET_PREFIX: Final = "whsec_"  # noqa: S105
TOLERANCE_SECONDS: Final = 300
"""How many seconds the time of a request may be before or after the receiver's time."""

_VERSION: Final = "v1"


class BadSignature(Exception):
    """A request is not signed with the secret, or its time is not now. The text says why, without the signature."""


def key_of(secret: str) -> bytes:
    """Return the key in a secret: base64 after `whsec_`. Raises ValueError, whose text does not show the secret."""
    try:
        key = base64.b64decode(secret.removeprefix(SECRET_PREFIX), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if not key:
        raise ValueError(f"is not the secret of a webhook. A secret begins with {SECRET_PREFIX}, and base64 follows")
    return key


def sign(key: bytes, webhook_id: str, timestamp: str, body: bytes) -> str:
    """Return the base64 of the HMAC-SHA256 of id, timestamp and body, joined by periods."""
    message = f"{webhook_id}.{timestamp}.".encode() + body
    return base64.b64encode(hmac.digest(key, message, "sha256")).decode()


def verify(key: bytes, headers: Mapping[str, str], body: bytes, now: float) -> str:
    """Return the id of a signed request. Raises BadSignature.

    The names of `headers` are in lower case. `now` is the receiver's time in Unix seconds. During a rotation of the
    secret, a request has two signatures; one valid signature is enough.
    """
    for name in ("webhook-id", "webhook-timestamp", "webhook-signature"):
        if not headers.get(name):
            raise BadSignature(f"the header {name} is missing")
    webhook_id, timestamp = headers["webhook-id"], headers["webhook-timestamp"]
    if not re.fullmatch(r"[0-9]{1,12}", timestamp):
        raise BadSignature("webhook-timestamp is not a time in Unix seconds")
    age = now - int(timestamp)
    if abs(age) > TOLERANCE_SECONDS:
        way = "old" if age > 0 else "in the future"
        raise BadSignature(
            f"webhook-timestamp is {abs(age):.0f} s {way}, more than the allowed {TOLERANCE_SECONDS} s. Check the "
            "clock of this machine"
        )
    right = sign(key, webhook_id, timestamp, body).encode()
    for signature in headers["webhook-signature"].split():
        version, _, given = signature.partition(",")
        if version == _VERSION and hmac.compare_digest(given.encode(), right):
            return webhook_id
    raise BadSignature("webhook-signature does not match the body. Check that the secret is the webhook's secret")
