"""The verification of the admins' signed requests (NXD1), without the database."""

import hmac
import re
import time
from dataclasses import replace
from hashlib import sha256
from typing import Any, ClassVar, Final

from django.conf import settings
from django.http import HttpRequest
from ninja.security.base import AuthBase
from prometheus_client import Counter

from nexmdm.audit.summary import Summary
from nexmdm.auth import rate_limits, signing
from nexmdm.auth.signed_write import SignedCaller
from nexmdm.common import request_facts
from nexmdm.common.domain_error import DomainError
from nexmdm.config import named_admins

DENIED = Counter("nexmdm_admin_denied", "Admin requests with a bad signature, by reason.", ["reason"])

_TIMESTAMP: Final = re.compile(r"[0-9]{1,12}")
_SIGNATURE: Final = re.compile(r"v1=[0-9a-f]{64}")
_IDEMPOTENCY_KEY: Final = re.compile(r"[A-Za-z0-9_-]{16,64}")


class InvalidSignature(DomainError):
    detail = "The request is not signed correctly. See Signing in the API documentation (/docs)."

    def __init__(self, reason: str) -> None:
        super().__init__()
        self.reason = reason
        """The part of the signature that is wrong, for the log and a metric only."""


class IdempotencyKeyRequired(DomainError):
    detail = (
        "Send an Idempotency-Key of 16 to 64 characters (letters, digits, _ and -). The signature must include the "
        "Idempotency-Key."
    )


class SignedRequest(AuthBase):
    """The authentication of an admin request by its signature (NXD1, see nexmdm/auth/signing.py).

    The raw bytes of the request are verified before any other work. For the rate limit, a read is counted here. A write
    is counted later, by the thread and the connection that carry out the write or record its refusal (admin_router.py).
    """

    openapi_type: ClassVar = "apiKey"
    openapi_in: ClassVar = "header"
    openapi_name: ClassVar = "X-Signature"

    async def __call__(self, request: HttpRequest) -> SignedCaller:
        """Return the caller. Raises InvalidSignature, RateLimited (for a read), or IdempotencyKeyRequired (for a
        write).

        The reason of InvalidSignature goes only to the log and a metric.
        """
        try:
            caller = verify(request)
        except InvalidSignature as denied:
            DENIED.labels(denied.reason).inc()
            raise
        request_facts.of(request.scope).principal = caller.principal  # type: ignore[attr-defined]
        if request.method == "GET":
            await rate_limits.count_read(caller.principal)
        if request.method != "GET" and not _IDEMPOTENCY_KEY.fullmatch(caller.idempotency_key):
            request.auth = replace(caller, idempotency_key="")  # type: ignore[attr-defined]
            raise IdempotencyKeyRequired
        return caller


SIGNED: Final = SignedRequest()


def verify(request: HttpRequest) -> SignedCaller:
    """Return the caller of a request whose key and signature are valid. Raises InvalidSignature.

    An unknown key takes as long as a wrong signature.
    """
    scope: dict[str, Any] = request.scope  # type: ignore[attr-defined]
    key = _single(scope, b"x-admin")
    principal = _principal_of(key)
    timestamp = _single(scope, b"x-timestamp")
    if not _TIMESTAMP.fullmatch(timestamp) or abs(time.time() - int(timestamp)) > signing.CLOCK_TOLERANCE_SECONDS:
        raise InvalidSignature("timestamp")
    given_key = _single(scope, b"idempotency-key", required=False)
    idempotency_key = "" if request.method == "GET" else given_key
    signature = _single(scope, b"x-signature")
    if not _SIGNATURE.fullmatch(signature):
        raise InvalidSignature("signature_form")
    target = scope["raw_path"] + (b"?" + scope["query_string"] if scope["query_string"] else b"")
    # Do not use request.method: Django changes the method to upper case.
    message = signing.string_to_sign(timestamp, idempotency_key, scope["method"], target, request.body)
    good = [signing.SIGNATURE_PREFIX + signing.sign(secret, message) for secret in _secrets_of(principal)]
    is_signed = _any_equal(signature, good)
    if principal is None:
        raise InvalidSignature("key")
    if not is_signed:
        raise InvalidSignature("signature")
    return SignedCaller(
        principal=principal,
        admin_key_id=sha256(b"id:" + key.encode()).hexdigest()[:8],
        idempotency_key=idempotency_key,
        address=request.META["REMOTE_ADDR"] or None,
        method=request.method or "",
        target=target.decode("latin-1"),
        body_sha256=sha256(request.body).hexdigest(),
        correlation_id=request_facts.of(scope).correlation_id,
        summarize=getattr(request, "summarize", Summary),
    )


def _principal_of(key: str) -> str | None:
    """Return the admin with this key, or None. The key is compared with all live keys, in constant time."""
    live = {named_admins.UNNAMED: settings.ADMIN_KEYS} | settings.NAMED_ADMIN_KEYS
    has_key = {principal: _any_equal(key, keys) for principal, keys in live.items()}
    return next((principal for principal, has in has_key.items() if has), None)


def _secrets_of(principal: str | None) -> list[str]:
    """Return the live secrets of an admin.

    For None, return the secrets of the unnamed admin: the comparison must take as long as for a known key.
    """
    if principal is None or principal == named_admins.UNNAMED:
        return settings.HMAC_SECRETS
    named: dict[str, list[str]] = settings.NAMED_HMAC_SECRETS
    return named.get(principal, [])


def _single(scope: dict[str, Any], name: bytes, *, required: bool = True) -> str:
    values = [value for header, value in scope["headers"] if header == name]
    if len(values) > 1 or (required and not values):
        raise InvalidSignature("header_repeated" if values else "header_missing")
    if not values:
        return ""
    if not values[0].isascii():
        raise InvalidSignature("header_not_ascii")
    text: str = values[0].decode("ascii")
    return text


def _any_equal(given: str, known: list[str]) -> bool:
    """Compare a value with all candidates in constant time: the time must not show which candidate matched."""
    return any([hmac.compare_digest(given.encode(), one.encode()) for one in known])  # noqa: C419
