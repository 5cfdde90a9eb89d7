"""The answers of the fake FCM.

The beginning of a push target chooses the answer. This beginning is a word of `WORDS` and a hyphen. After some words, a
number precedes the hyphen:

| beginning        | answer                                                                                    |
| ok-              | 200                                                                                       |
| slow250-         | 200 after 250 ms                                                                          |
| flaky2-          | 503 to the first two pushes to this push target, 200 to all later pushes                  |
| garbage-         | 200 with HTML as the body                                                                 |
| unregistered-    | 404 UNREGISTERED                                                                          |
| mismatch-        | 403 SENDER_ID_MISMATCH                                                                    |
| invalid-         | 400 INVALID_ARGUMENT                                                                      |
| malformed-       | 400 INVALID_ARGUMENT that names the field of the push target                              |
| forbidden-       | 403 without an FcmError, as FCM answers an account with a wrong role                      |
| missing-         | 404 without an FcmError, as FCM answers a request for a wrong project                     |
| quota-           | 429 QUOTA_EXCEEDED                                                                        |
| quota7-          | 429 QUOTA_EXCEEDED with `Retry-After: 7`                                                  |
| unavailable-     | 503 UNAVAILABLE                                                                           |
| unavailable7-    | 503 UNAVAILABLE with `Retry-After: 7`                                                     |
| internal-        | 500 INTERNAL                                                                              |
| unauthenticated- | 401 without an FcmError                                                                   |
| thirdparty-      | 401 THIRD_PARTY_AUTH_ERROR                                                                |
| blank401-        | 401 with an empty body, as a front end answers in place of FCM                            |
| html404-         | 404 with HTML as the body, as a front end answers in place of FCM                         |
| hang-            | no answer until the fake FCM closes                                                       |
| reset-           | no answer: the fake FCM cuts the connection with a TCP reset (RST)                        |

A push target with another beginning gets 200.

Sources: Google's pages "FCM ErrorCode" and "Using OAuth 2.0 for server to server applications". The answer of
`malformed-` is from answers of the real FCM that Firebase's issue trackers quote.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final

import orjson

FCM_ERROR: Final = "type.googleapis.com/google.firebase.fcm.v1.FcmError"
BAD_REQUEST: Final = "type.googleapis.com/google.rpc.BadRequest"

PREFIX: Final = re.compile(r"([a-z]+)(\d*)-")
_TTL: Final = re.compile(r"(\d{1,7})(\.\d{1,9})?s")
_MAX_TTL_SECONDS: Final = 2_419_200
_PAYLOAD_LIMIT: Final = 4096
_RESERVED_KEYS: Final = re.compile(r"from$|message_type$|google|gcm")


@dataclass(frozen=True, slots=True)
class Reply:
    """The answer to one push.

    - `answer`: the word of `WORDS` that describes the answer.
    - `status`: the HTTP status. None: the push gets no answer, because the connection hangs or is cut.
    - `retry_after`: the value of the header `Retry-After`; empty: no such header.
    - `delay_seconds`: the time from the arrival of the push to the answer.
    """

    answer: str
    status: int | None = HTTPStatus.OK
    body: bytes = b""
    message_id: str = ""
    retry_after: str = ""
    delay_seconds: float = 0


def refusal(answer: str, status: HTTPStatus, name: str, code: str = "", text: str = "") -> Reply:
    error: dict[str, Any] = {"code": status, "message": text or status.phrase, "status": name}
    if code:
        error["details"] = [{"@type": FCM_ERROR, "errorCode": code}]
    return Reply(answer, status, orjson.dumps({"error": error}))


def malformed(field: str) -> Reply:
    kind = {"message.token": "registration token", "message.fid": "Firebase installation ID"}[field]
    text = f"The {kind} is not a valid FCM {kind}"
    details = [
        {"@type": FCM_ERROR, "errorCode": "INVALID_ARGUMENT"},
        {"@type": BAD_REQUEST, "fieldViolations": [{"field": field, "description": text}]},
    ]
    error = {"code": HTTPStatus.BAD_REQUEST, "message": text, "status": "INVALID_ARGUMENT", "details": details}
    return Reply("malformed", HTTPStatus.BAD_REQUEST, orjson.dumps({"error": error}))


def invalid(text: str = "") -> Reply:
    return refusal("invalid", HTTPStatus.BAD_REQUEST, "INVALID_ARGUMENT", "INVALID_ARGUMENT", text)


REFUSALS: Final = {
    refusal.answer: refusal
    for refusal in (
        refusal("unregistered", HTTPStatus.NOT_FOUND, "NOT_FOUND", "UNREGISTERED"),
        refusal("mismatch", HTTPStatus.FORBIDDEN, "PERMISSION_DENIED", "SENDER_ID_MISMATCH"),
        refusal("forbidden", HTTPStatus.FORBIDDEN, "PERMISSION_DENIED"),
        refusal("missing", HTTPStatus.NOT_FOUND, "NOT_FOUND"),
        refusal("quota", HTTPStatus.TOO_MANY_REQUESTS, "RESOURCE_EXHAUSTED", "QUOTA_EXCEEDED"),
        refusal("unavailable", HTTPStatus.SERVICE_UNAVAILABLE, "UNAVAILABLE", "UNAVAILABLE"),
        refusal("internal", HTTPStatus.INTERNAL_SERVER_ERROR, "INTERNAL", "INTERNAL"),
        refusal("unauthenticated", HTTPStatus.UNAUTHORIZED, "UNAUTHENTICATED"),
        refusal("thirdparty", HTTPStatus.UNAUTHORIZED, "UNAUTHENTICATED", "THIRD_PARTY_AUTH_ERROR"),
        invalid(),
        malformed("message.token"),
    )
}
NOT_FCMS_OWN: Final[Mapping[str, bytes]] = {"blank": b"", "html": b"<!DOCTYPE html><title>Error</title>"}
"""The bodies of answers that a front end gives in place of FCM. The number after the word is the HTTP status."""

WORDS: Final = frozenset({*REFUSALS, *NOT_FCMS_OWN, "ok", "slow", "flaky", "hang", "reset", "garbage"})


def script_of(text: str) -> tuple[str, int | None]:
    """Return the word and the number at the beginning of a push target, such as `("quota", 7)` for `quota7-…`.

    The number is None if there is none. If `text` does not begin with a word of `WORDS`, the result is `("ok", None)`.
    """
    match = PREFIX.match(text)
    if match is None or match[1] not in WORDS:
        return "ok", None
    return match[1], int(match[2]) if match[2] else None


def violation_in(message: Mapping[str, Any]) -> str:
    """Return the name of the first field that is not valid in a message, or an empty string.

    This check is stricter than the check of FCM in one way: `android.priority` and `android.ttl` are required.
    """
    android = message.get("android")
    android = android if isinstance(android, dict) else {}
    fields = {
        "message.token": _has_one_target(message),
        "message.data": _is_data(message.get("data")),
        "message.android.priority": str(android.get("priority")).lower() in ("high", "normal"),
        "message.android.ttl": _is_ttl(android.get("ttl")),
    }
    return next((name for name, good in fields.items() if not good), "")


def target_of(message: Mapping[str, Any]) -> str:
    """Return the push target in the field `fid` or `token` of a message; empty if both fields are missing."""
    return str(message.get("fid", message.get("token", "")))


def _has_one_target(message: Mapping[str, Any]) -> bool:
    targets = [message[name] for name in ("token", "fid") if name in message]
    return len(targets) == 1 and isinstance(targets[0], str) and targets[0] != ""


def _is_data(data: object) -> bool:
    if not isinstance(data, dict) or not all(isinstance(value, str) for value in data.values()):
        return False
    size = sum(len(key.encode()) + len(value.encode()) for key, value in data.items())
    return size <= _PAYLOAD_LIMIT and not any(map(_RESERVED_KEYS.match, data))


def _is_ttl(ttl: object) -> bool:
    return isinstance(ttl, str) and _TTL.fullmatch(ttl) is not None and float(ttl[:-1]) <= _MAX_TTL_SECONDS
