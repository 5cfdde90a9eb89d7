"""Decisions after an answer of FCM: the outcome of the attempt, and the time of the next try."""

import math
import random
from http import HTTPStatus
from typing import Final, NamedTuple

from commands.models import AttemptOutcome
from commands.push.circuit_breaker import Fault
from commands.push.fcm import FcmResponse

FIRST_RETRY_SECONDS: Final = 10.0
"""The shortest wait before a retry, in seconds (Google: "Scale FCM")."""

LONGEST_RETRY_SECONDS: Final = 900.0
QUOTA_RETRY_SECONDS: Final = 60.0
"""The shortest wait after a 429 without Retry-After, in seconds (Google: "Throttling and quotas")."""

LONGEST_RETRY_AFTER_SECONDS: Final = 3600.0
"""The longest wait that a Retry-After can cause, in seconds. A longer wait is of no use, because a push must wake a
phone.
"""

PROBE_SECONDS: Final = 30.0
"""The shortest wait after a fault of the server (OAuth, configuration), in seconds."""

SPREAD: Final = 1.1
"""A fixed wait is multiplied by a random factor from 1 to this number, so that retries spread over time."""


class RetryDecision(NamedTuple):
    """The decision after one answer of FCM.

    - `outcome`: the outcome of the attempt.
    - `retry_in_seconds`: the wait until the next push. None: this answer causes no further push.
    - `fault`: the fault that the circuit counts.
    - `advice`: what an operator must do.
    """

    outcome: AttemptOutcome
    retry_in_seconds: float | None = None
    fault: Fault = Fault.NONE
    advice: str = ""


_ADVICE: Final[dict[int, str]] = {
    HTTPStatus.UNAUTHORIZED: "FCM refuses the access token. Check the service account's key, and this machine's clock.",
    HTTPStatus.FORBIDDEN: (
        "The service account has no right to send pushes. Give the service account this right, and enable the FCM API."
    ),
    HTTPStatus.NOT_FOUND: "FCM does not know the project. Check the service account's project_id, and FCM_BASE_URL.",
}
_NOT_FCM: Final = "The answer is not from FCM. If this continues, check FCM_BASE_URL and the proxies."
_NO_ACCESS: Final = (
    "There is no access token. Check the service account, this machine's clock, and the network route to Google."
)
_NO_TARGET: Final = "FCM calls the push token invalid."


def decide(answer: FcmResponse, failures: int, seconds_left: float = math.inf) -> RetryDecision:
    """Return the decision after an answer of FCM.

    `failures` is the number of earlier failures of the delivery. `seconds_left` is the time until the command expires.

    | answer                                     | outcome       | next push                                |
    | 200                                        | accepted      | none                                     |
    | time-out, connection error, 200 without id | unknown       | after the backoff                        |
    | OAuth failure                              | blocked       | after 30 s; the circuit opens            |
    | 429 with Retry-After                       | retry_later   | after Retry-After                        |
    | 429 without Retry-After                    | retry_later   | after 60 s, or the backoff if longer     |
    | 5xx                                        | retry_later   | after Retry-After and after the backoff  |
    | any other answer that is not FCM's JSON    | retry_later   | after Retry-After and after the backoff  |
    | any other error of FCM                     | see _refused  | see _refused                             |

    An answer that is not FCM's JSON is, for example, a page of a proxy, an empty body or a redirect. Whatever its
    status, such an answer proves nothing about the message, the push token or the configuration.
    """
    status = answer.http_status
    asked = _capped_retry_after(answer, seconds_left)
    if answer.oauth_failed:
        return RetryDecision(AttemptOutcome.BLOCKED, PROBE_SECONDS, Fault.OAUTH, _NO_ACCESS)
    if status is None or (status == HTTPStatus.OK and not answer.message_id):
        advice = "" if status is None else _NOT_FCM
        return RetryDecision(AttemptOutcome.UNKNOWN, backoff(failures), Fault.PASSING, advice)
    if status == HTTPStatus.OK:
        return RetryDecision(AttemptOutcome.ACCEPTED)
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        wait = asked or max(_spread(QUOTA_RETRY_SECONDS), backoff(failures))
        return RetryDecision(AttemptOutcome.RETRY_LATER, wait, Fault.PASSING)
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        advice = "" if answer.from_fcm else _NOT_FCM
        return RetryDecision(AttemptOutcome.RETRY_LATER, max(asked, backoff(failures)), Fault.PASSING, advice)
    if not answer.from_fcm or status < HTTPStatus.BAD_REQUEST:
        return RetryDecision(AttemptOutcome.RETRY_LATER, max(asked, backoff(failures)), Fault.PASSING, _NOT_FCM)
    return _refused(answer, failures)


def _refused(answer: FcmResponse, failures: int) -> RetryDecision:
    """Return the decision for a 4xx that is FCM's JSON.

    | answer                                     | outcome       | next push                                |
    | 404 UNREGISTERED, 403 SENDER_ID_MISMATCH   | token_dead    | when the device gets another token       |
    | 400 INVALID_ARGUMENT that names the target | token_dead    | when the device gets another token       |
    | 401 THIRD_PARTY_AUTH_ERROR                 | rejected      | none                                     |
    | 401, 403, 404 without these codes          | blocked       | after 30 s, or the backoff if longer     |
    | 400 and other 4xx                          | rejected      | none                                     |

    THIRD_PARTY_AUTH_ERROR: the push token is for iOS or for a browser. The Firebase project has no certificate or key
    for this platform (see Google's page "ErrorCode"). This error does not open the circuit, because a phone chooses its
    push token. One wrong push token must not stop the pushes of all phones.
    """
    if answer.fcm_error in ("UNREGISTERED", "SENDER_ID_MISMATCH"):
        return RetryDecision(AttemptOutcome.TOKEN_DEAD)
    if answer.http_status == HTTPStatus.BAD_REQUEST and answer.names_target:
        return RetryDecision(AttemptOutcome.TOKEN_DEAD, advice=_NO_TARGET)
    advice = _ADVICE.get(answer.http_status or 0)
    if advice is None or answer.fcm_error == "THIRD_PARTY_AUTH_ERROR":
        return RetryDecision(AttemptOutcome.REJECTED)
    wait = max(_spread(PROBE_SECONDS), backoff(failures))
    return RetryDecision(AttemptOutcome.BLOCKED, wait, Fault.CONFIGURATION, advice)


def _capped_retry_after(answer: FcmResponse, seconds_left: float) -> float:
    """Return the wait that an answer's Retry-After causes, in seconds. Without a Retry-After, return 0.0.

    The wait is at most an hour. If Retry-After is more than an hour, the wait is also at most about half of
    `seconds_left`. With this limit, the push is tried again before the command expires.
    """
    asked = answer.retry_after_seconds or 0.0
    if asked > LONGEST_RETRY_AFTER_SECONDS:
        asked = min(LONGEST_RETRY_AFTER_SECONDS / SPREAD, seconds_left / 2)
    return min(_spread(asked), LONGEST_RETRY_AFTER_SECONDS)


def backoff(failures: int) -> float:
    """Return the wait before the next try, in seconds. `failures` is the number of earlier failures, n.

    The wait is 10 s plus a random part of up to 10 s × 2ⁿ. The wait is at most 15 min.
    """
    spread = FIRST_RETRY_SECONDS * 2.0 ** min(failures, 10)
    return FIRST_RETRY_SECONDS + random.uniform(0, min(spread, LONGEST_RETRY_SECONDS - FIRST_RETRY_SECONDS))


def _spread(seconds: float) -> float:
    return seconds * random.uniform(1, SPREAD)
