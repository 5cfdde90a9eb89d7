"""Decisions after an answer of FCM: the table of answers, and the time of the next try. Pure functions."""

import math
import random
from http import HTTPStatus
from typing import Final, NamedTuple

from commands.models import AttemptOutcome
from commands.push.circuit_breaker import Fault
from commands.push.fcm import FcmResponse

FIRST_RETRY_SECONDS: Final = 10.0
"""The shortest wait before a retry, in seconds ("Scale FCM")."""

LONGEST_RETRY_SECONDS: Final = 900.0
QUOTA_RETRY_SECONDS: Final = 60.0
"""The shortest wait after a 429 without Retry-After, in seconds ("Throttling and quotas")."""

LONGEST_RETRY_AFTER_SECONDS: Final = 3600.0
"""The longest Retry-After that is followed, in seconds.

A longer one is of no use for a push, which must wake a phone soon.
"""

PROBE_SECONDS: Final = 30.0
"""The shortest wait after a fault of the server's own side (OAuth, configuration), in seconds."""

SPREAD: Final = 1.1
"""The random part that is added to a fixed wait: up to a tenth of it, so that retries spread out."""


class RetryDecision(NamedTuple):
    """An attempt's outcome, and the seconds until the next one (None: this answer causes no further push).

    `fault` is the fault that the circuit counts. `advice` states what an operator must do.
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
    """Return the decision for an answer, after `failures` of this delivery. Its command expires in `seconds_left`.

    | answer                                     | outcome       | then                                     |
    | 200                                        | accepted      | done                                     |
    | time-out, connection error, 200 without id | unknown       | again after the backoff                  |
    | OAuth failure                              | blocked       | again after 30 s; opens the circuit      |
    | 429                                        | retry_later   | Retry-After, else 60 s, or a bit more    |
    | 5xx                                        | retry_later   | the larger of Retry-After and the backoff|
    | any other that is not FCM's own JSON       | retry_later   | as 5xx                                   |
    | FCM's own errors                           | see _refused  |                                          |

    An answer that is not FCM's own JSON (a front end's page, an empty body, a redirect) proves nothing about the
    message, the push token or the configuration, whatever its status.
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
    """Return the decision for a 4xx that is FCM's own.

    | answer                                     | outcome       | then                                     |
    | 404 UNREGISTERED, 403 SENDER_ID_MISMATCH   | token_dead    | no push until another token comes        |
    | 400 INVALID_ARGUMENT that names the target | token_dead    | the same                                 |
    | 401 THIRD_PARTY_AUTH_ERROR                 | rejected      | no further push: see below               |
    | 401, 403, 404 without those codes          | blocked       | the larger of 30 s and the backoff       |
    | 400 and other 4xx                          | rejected      | no further push                          |

    THIRD_PARTY_AUTH_ERROR is FCM's word for a push token of iOS or of a browser for which the project has no
    certificate or key ("ErrorCode"). A phone chooses its push token itself, so the pushes of other phones must not stop
    because of it.
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
    """Return the seconds of an answer's Retry-After, an hour at most; 0.0 if it has none.

    If Retry-After is more than an hour, the wait is also at most half of the time until the command expires, so that
    the push gets further tries.
    """
    asked = answer.retry_after_seconds or 0.0
    if asked > LONGEST_RETRY_AFTER_SECONDS:
        asked = min(LONGEST_RETRY_AFTER_SECONDS / SPREAD, seconds_left / 2)
    return min(_spread(asked), LONGEST_RETRY_AFTER_SECONDS)


def backoff(failures: int) -> float:
    """Return 10 s and a random part of 10 s × 2ⁿ, 15 min at most, for the n-th failure (from 0)."""
    spread = FIRST_RETRY_SECONDS * 2.0 ** min(failures, 10)
    return FIRST_RETRY_SECONDS + random.uniform(0, min(spread, LONGEST_RETRY_SECONDS - FIRST_RETRY_SECONDS))


def _spread(seconds: float) -> float:
    return seconds * random.uniform(1, SPREAD)
