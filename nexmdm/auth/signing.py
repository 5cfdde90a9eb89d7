"""NXD1: the signature of admin requests. Pure functions, used by the server and its clients."""

import hmac
from hashlib import sha256
from typing import Final

SCHEME: Final = "NXD1"
SIGNATURE_PREFIX: Final = "v1="
CLOCK_TOLERANCE_SECONDS: Final = 300


def string_to_sign(timestamp: str, idempotency_key: str, method: str, target: bytes, body: bytes) -> bytes:
    """Return the six fields, joined by LF. `target` is the request target as sent; the key is empty for GET."""
    head = f"{SCHEME}\n{timestamp}\n{idempotency_key}\n{method}\n".encode()
    return head + target + b"\n" + sha256(body).hexdigest().encode()


def sign(secret: str, message: bytes) -> str:
    """Return the signature: lower-case hex HMAC-SHA256 under the UTF-8 bytes of the whole secret."""
    return hmac.digest(secret.encode(), message, "sha256").hex()


def headers(
    *, key: str, secret: str, timestamp: int, idempotency_key: str, method: str, target: str, body: bytes = b""
) -> dict[str, str]:
    """Return the headers that sign a request; leave `idempotency_key` empty for GET."""
    message = string_to_sign(str(timestamp), idempotency_key, method, target.encode(), body)
    signed = {
        "X-Admin": key,
        "X-Timestamp": str(timestamp),
        "X-Signature": SIGNATURE_PREFIX + sign(secret, message),
    }
    return signed | ({"Idempotency-Key": idempotency_key} if idempotency_key else {})
