"""NXD1: the signature of admin requests. The server and its clients use these pure functions."""

import hmac
from hashlib import sha256
from typing import Final

SCHEME: Final = "NXD1"
SIGNATURE_PREFIX: Final = "v1="
CLOCK_TOLERANCE_SECONDS: Final = 300


def string_to_sign(timestamp: str, idempotency_key: str, method: str, target: bytes, body: bytes) -> bytes:
    """Return the text that is signed: six fields, joined by LF. The last field is the SHA-256 of the body.

    `target` is the request target as it is sent. For GET, `idempotency_key` is empty.
    """
    head = f"{SCHEME}\n{timestamp}\n{idempotency_key}\n{method}\n".encode()
    return head + target + b"\n" + sha256(body).hexdigest().encode()


def sign(secret: str, message: bytes) -> str:
    """Return the signature of a message: an HMAC-SHA256 as lower-case hex. The key is the whole secret in UTF-8."""
    return hmac.digest(secret.encode(), message, "sha256").hex()


def headers(
    *, key: str, secret: str, timestamp: int, idempotency_key: str, method: str, target: str, body: bytes = b""
) -> dict[str, str]:
    """Return the headers that sign a request. `timestamp` is in seconds since 1970. For GET, `idempotency_key` is
    empty.
    """
    message = string_to_sign(str(timestamp), idempotency_key, method, target.encode(), body)
    signed = {
        "X-Admin": key,
        "X-Timestamp": str(timestamp),
        "X-Signature": SIGNATURE_PREFIX + sign(secret, message),
    }
    return signed | ({"Idempotency-Key": idempotency_key} if idempotency_key else {})
