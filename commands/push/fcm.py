"""The client of the HTTP v1 API of Firebase Cloud Messaging. Each call sends one message and returns FCM's answer.

The client does not use the database. Sources: Google's pages "FCM: Send messages with HTTP v1", "ErrorCode", "Scale
FCM", "Throttling and quotas".
"""

import asyncio
import math
import re
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import partial
from http import HTTPStatus
from types import TracebackType
from typing import Any, Final, NamedTuple, Self

import orjson
from firebase_admin import credentials
from google.auth.transport.requests import Request

from commands import envelope
from commands.push.fcm_connections import FcmConnections

TIMEOUT_SECONDS: Final = 10
REFRESH_AHEAD_SECONDS: Final = 300
REFRESH_LATEST_SECONDS: Final = 10
MAX_TTL_SECONDS: Final = 2_419_200

_FCM_ERROR: Final = "google.firebase.fcm.v1.FcmError"
_BAD_REQUEST: Final = "google.rpc.BadRequest"
_TARGET: Final = re.compile(r"\bmessage\.(token|fid)\b|registration token", re.IGNORECASE)
"""The names of the push target in FCM's answer with status 400: as a field, or in words."""


class NotSent(Exception):
    """The push could not be sent in time. The text names the time limit that has passed.

    FCM has not accepted the push. Either FCM did not get the push, or FCM refused the access token.
    """


class NoAccessToken(Exception):
    """The server got no access token for FCM. The text names the reason."""


class FcmMessage(NamedTuple):
    """The message to FCM for one phone, with an envelope as its data.

    - `kind`: the name of the field that contains `target` in the message.
    - `expires_at`: the expiry of the command, a time of time.monotonic(). The message is sent at least one second
      before the expiry, or not at all.
    - `leaves_before`: the time until which the claim allows a send, a time of time.monotonic(). After this time, the
      message is not sent.
    - `direct_boot`: a restarted phone gets the message before its user unlocks the phone.
    """

    kind: str
    target: str
    data: dict[str, str]
    priority: str
    expires_at: float
    leaves_before: float = math.inf
    direct_boot: bool = False


class FcmResponse(NamedTuple):
    """The result of one send.

    - `http_status`: None if no answer came. In this case, `fault` is the reason, such as "timeout" or "oauth: …".
    - `message_id`: the id that FCM gave to an accepted message.
    - `oauth_failed`: the server got no access token.
    - `from_fcm`: False if the answer is not Google's JSON, for example HTML or an empty body. An answer that is not
      from FCM proves nothing about the message.
    - `names_target`: the error is about the push target.
    """

    http_status: int | None
    fcm_error: str = ""
    message_id: str = ""
    retry_after_seconds: float | None = None
    latency_ms: int = 0
    fault: str = ""
    oauth_failed: bool = False
    from_fcm: bool = False
    names_target: bool = False


class AccessToken:
    """The OAuth access token of a service account. A thread refreshes the token before it expires."""

    def __init__(self, service_account: Mapping[str, str]) -> None:
        certificate = credentials.Certificate(dict(service_account))
        self.project_id: str = certificate.project_id
        self._credential: Any = certificate.get_credential()
        self._expires_at = -math.inf
        self._refreshing: asyncio.Task[None] | None = None

    async def get(self) -> str:
        """Return a valid token. If no valid token exists, wait for a refresh. Raises NoAccessToken."""
        seconds_left = self._expires_at - time.monotonic()
        if seconds_left <= REFRESH_LATEST_SECONDS:
            await self._refreshed()
        elif seconds_left < REFRESH_AHEAD_SECONDS:
            self._refresh()
        return str(self._credential.token)

    async def renew(self, refused: str) -> None:
        """Get a new token after FCM has refused the token `refused`. If a newer token exists, do nothing. Raises
        NoAccessToken.
        """
        if self._credential.token == refused:
            await self._refreshed()

    async def _refreshed(self) -> None:
        try:
            async with asyncio.timeout(TIMEOUT_SECONDS):
                await asyncio.shield(self._refresh())
        except Exception as error:  # google-auth raises many kinds if the answer is not from an OAuth endpoint
            raise NoAccessToken(type(error).__name__) from error

    def _refresh(self) -> asyncio.Task[None]:
        if self._refreshing is None or self._refreshing.done():
            self._refreshing = asyncio.ensure_future(asyncio.to_thread(self._refresh_now))
            # Sends that wait for the refresh get its error. If no send waits, the next send tries the refresh again.
            self._refreshing.add_done_callback(lambda task: task.cancelled() or task.exception())
        return self._refreshing

    def _refresh_now(self) -> None:
        self._credential.refresh(partial(Request(), timeout=TIMEOUT_SECONDS))
        # google-auth stores the expiry as naive UTC, or None if the answer contained no expiry. If the expiry is None,
        # the token is used until FCM refuses the token.
        expiry: datetime | None = self._credential.expiry
        seconds_left = math.inf if expiry is None else (expiry.replace(tzinfo=UTC) - datetime.now(UTC)).total_seconds()
        self._expires_at = time.monotonic() + seconds_left


class Sender:
    """The client of FCM: an async context manager with a limited number of connections.

    Each request has a time-out of 10 s. If FCM refuses the access token, the request is repeated once with a new token.
    """

    def __init__(self, service_account: Mapping[str, str], base_url: str, *, connections: int) -> None:
        self._access = AccessToken(service_account)
        self._origin, self._path = base_url, f"/v1/projects/{self._access.project_id}/messages:send"
        self._limit = connections
        self._connections: FcmConnections

    async def __aenter__(self) -> Self:
        self._connections = FcmConnections(self._origin, self._path, limit=self._limit)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._connections.close()

    async def send(self, push: FcmMessage) -> FcmResponse:
        """Send one message and return FCM's answer.

        Errors of the network or of FCM are returned, not raised. Raises NotSent if the push could not be sent in time.
        """
        started = time.monotonic()
        try:
            answer = await self._send_with_token(push)
        except NotSent:
            raise
        except NoAccessToken as error:
            answer = FcmResponse(None, fault=f"oauth: {error}", oauth_failed=True)
        except TimeoutError:
            answer = FcmResponse(None, fault="timeout")
        except Exception as error:  # noqa: BLE001  (the network's edge: a strange answer may raise any error)
            kind = "connection" if isinstance(error, OSError) else "unexpected"
            answer = FcmResponse(None, fault=f"{kind}: {type(error).__name__}")
        return answer._replace(latency_ms=round((time.monotonic() - started) * 1000))

    async def _send_with_token(self, push: FcmMessage) -> FcmResponse:
        token = await self._access.get()
        answer = await self._post(push, token)
        if not _is_refused(answer):
            return answer
        try:
            await self._access.renew(token)
        except NoAccessToken:
            # Return FCM's refusal, not an OAuth failure: other pushes may use the token until it expires.
            return answer
        return await self._post(push, await self._access.get())

    async def _post(self, push: FcmMessage, token: str) -> FcmResponse:
        # Encode the message only when a connection is free: a wait for a connection shortens the time to live.
        async with asyncio.timeout(TIMEOUT_SECONDS):
            response = await self._connections.post(partial(encode, push), f"Bearer {token}")
        return parse(*response)


def encode(push: FcmMessage) -> bytes:
    """Return the body of the HTTP v1 request. Its `ttl` is the time from now until the command expires. Raises NotSent.

    The label `analytics_label` of the message is the action. Therefore FCM's statistics show the number of messages for
    each action. The body equals the body that firebase_admin.messaging makes, but firebase_admin needs three times as
    long.
    """
    now = time.monotonic()
    seconds_left = push.expires_at - now
    if seconds_left < envelope.LEAST_TTL_SECONDS:
        raise NotSent("the command has expired, or expires within 1 s")
    if now >= push.leaves_before:
        raise NotSent("the push waited for too long")
    android: dict[str, Any] = {"priority": push.priority, "ttl": f"{min(int(seconds_left), MAX_TTL_SECONDS)}s"}
    if push.direct_boot:
        android["direct_boot_ok"] = True
    options = {"analytics_label": push.data["action"]}
    message = {push.kind: push.target, "data": push.data, "android": android, "fcm_options": options}
    return orjson.dumps({"message": message})


def parse(status: int, retry_after_header: str, body: bytes) -> FcmResponse:
    """Return FCM's answer from the parts of an HTTP response. The error code is in `error.details[]` of the body."""
    retry_after = _retry_after(retry_after_header)
    content = _json_object(body)
    if status == HTTPStatus.OK:
        message_id = _storable(content.get("name", ""), 255)
        return FcmResponse(status, message_id=message_id, retry_after_seconds=retry_after, from_fcm=bool(message_id))
    error = content.get("error")
    if not isinstance(error, dict) or not (error.get("code") == status or isinstance(error.get("status"), str)):
        return FcmResponse(status, retry_after_seconds=retry_after)
    return FcmResponse(
        status,
        fcm_error=_error_code(error),
        retry_after_seconds=retry_after,
        from_fcm=True,
        names_target=_names_target(error),
    )


def _json_object(body: bytes) -> dict[str, Any]:
    try:
        content = orjson.loads(body)
    except orjson.JSONDecodeError:
        return {}
    return content if isinstance(content, dict) else {}


def _is_refused(answer: FcmResponse) -> bool:
    """Return whether FCM may have refused the access token. A 403 that is not FCM's JSON comes from a proxy."""
    if answer.http_status == HTTPStatus.UNAUTHORIZED:
        return not answer.fcm_error
    return answer.http_status == HTTPStatus.FORBIDDEN and answer.from_fcm and not answer.fcm_error


def _error_code(error: Mapping[str, Any]) -> str:
    return next((_storable(detail.get("errorCode", ""), 64) for detail in _details(error, _FCM_ERROR)), "")


def _names_target(error: Mapping[str, Any]) -> bool:
    """Return whether the push target is the invalid argument.

    If FCM lists field violations, only the violations count. Without field violations, the message of the error counts.
    """
    if "INVALID_ARGUMENT" not in (error.get("status"), _error_code(error)):
        return False
    violations = [one for detail in _details(error, _BAD_REQUEST) for one in _objects(detail.get("fieldViolations"))]
    texts = [f"{one.get('field')} {one.get('description')}" for one in violations] or [str(error.get("message"))]
    return any(map(_TARGET.search, texts))


def _details(error: Mapping[str, Any], kind: str) -> list[dict[str, Any]]:
    return [detail for detail in _objects(error.get("details")) if str(detail.get("@type", "")).endswith(kind)]


def _objects(given: object) -> list[dict[str, Any]]:
    return [one for one in given if isinstance(one, dict)] if isinstance(given, list) else []


def _storable(text: object, length: int) -> str:
    """Return a text that a column can store: at most `length` characters, without NUL."""
    return str(text).replace("\x00", "")[:length]


def _retry_after(text: str) -> float | None:
    """Return the seconds in a Retry-After header, or None. The header is a number or an HTTP date (RFC 9110, section
    10.2.3).
    """
    if not text:
        return None
    if text.strip().isdecimal():
        return float(text)
    try:
        return max(0.0, (parsedate_to_datetime(text) - datetime.now(UTC)).total_seconds())
    except (TypeError, ValueError, OverflowError):
        return None
