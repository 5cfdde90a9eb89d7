"""The signature of a request to a webhook (Standard Webhooks specification, version v1)."""

import base64
import binascii
import hmac
import re
from collections.abc import Mapping
from typing import Final

SECRET_PREFIX: Final = "whsec_"  # noqa: S105
TOLERANCE_SECONDS: Final = 300
"""The largest difference between the time of a request and the time of the receiver, in seconds."""

_VERSION: Final = "v1"


class BadSignature(Exception):
    """The signature or the time of a request is invalid. The message is the reason, without the signature."""


def key_of(secret: str) -> bytes:
    """Return the key in a secret. Raises ValueError, without the secret in the message, if the secret is invalid."""
    try:
        key = base64.b64decode(secret.removeprefix(SECRET_PREFIX), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if not key:
        raise ValueError(f"is not the secret of a webhook. A secret begins with {SECRET_PREFIX}, and base64 follows")
    return key


def sign(key: bytes, webhook_id: str, timestamp: str, body: bytes) -> str:
    """Return the base64 of the HMAC-SHA256 over id, timestamp and body, joined by full stops."""
    message = f"{webhook_id}.{timestamp}.".encode() + body
    return base64.b64encode(hmac.digest(key, message, "sha256")).decode()


def verify(key: bytes, headers: Mapping[str, str], body: bytes, now: float) -> str:
    """Check the signature and the time of a request. Return the id of its event.

    The names in `headers` are in lower case. `now` is the receiver's time in Unix seconds. After a rotation of the
    secret, a request has two signatures. One valid signature is enough. Raises BadSignature if the request is invalid.
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
