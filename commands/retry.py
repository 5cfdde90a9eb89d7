"""What follows from FCM's answer: the table of answers, and when to try again. Pure decisions."""

import random
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

from commands.fcm import Answer
from commands.models import Outcome

FIRST_RETRY_SECONDS: Final = 10.0
"""FCM asks for no retry before 10 s ("Scale FCM")."""

LONGEST_RETRY_SECONDS: Final = 900.0
QUOTA_RETRY_SECONDS: Final = 60.0
"""The least wait after a 429 without Retry-After ("Throttling and quotas")."""

PROBE_SECONDS: Final = 30.0
"""How soon a push that our own side could not send (OAuth, configuration) is due again."""


@dataclass(frozen=True, slots=True)
class Ruling:
    """An attempt's outcome, and the seconds to the next one (None: no further push by this answer).

    `advice` tells an operator what to do about a fault of our own side.
    """

    outcome: Outcome
    retry_in_seconds: float | None = None
    advice: str = ""


_ADVICE: Final[dict[int, str]] = {
    HTTPStatus.UNAUTHORIZED: "FCM refuses our access token. Check the service account's key, and this machine's clock.",
    HTTPStatus.FORBIDDEN: "The service account may not send. Give it the right to, and enable the FCM API.",
    HTTPStatus.NOT_FOUND: "FCM knows no such project. Check the service account's project_id, and FCM_BASE_URL.",
}
_NOT_FCM: Final = "Something else than FCM answered. Check FCM_BASE_URL."
_NO_ACCESS: Final = "There is no access token. Check the service account, this machine's clock, and its way to Google."


def rule(answer: Answer, failures: int) -> Ruling:
    """Return what an answer means for its attempt, after `failures` that count against this delivery.

    | answer                                     | outcome       | then                                     |
    | 200                                        | accepted      | done                                     |
    | 404 UNREGISTERED, 403 SENDER_ID_MISMATCH   | token_dead    | no push until another token comes        |
    | 401 THIRD_PARTY_AUTH_ERROR                 | rejected      | no further push: see below               |
    | 404 or 403 without those codes, 401, OAuth | blocked       | again when the circuit lets through      |
    | less than 400, but not 200                 | blocked       | as above: it is not FCM that answers     |
    | 400 and other 4xx                          | rejected      | no further push                          |
    | 429                                        | retry_later   | Retry-After, else 60 s, or a bit more    |
    | 5xx                                        | retry_later   | the larger of Retry-After and the backoff|
    | time-out, connection error, 200 without id | unknown       | as 5xx                                   |

    THIRD_PARTY_AUTH_ERROR is FCM's word for a push token of iOS or of a browser for which the project has no
    certificate or key ("ErrorCode"). A phone chooses its push token by itself: the others' pushes must not stop for it.
    """
    status = answer.http_status
    if answer.oauth_failed:
        return Ruling(Outcome.BLOCKED, PROBE_SECONDS, _NO_ACCESS)
    if status is None:
        return Ruling(Outcome.UNKNOWN, backoff(failures))
    if status == HTTPStatus.OK:
        return Ruling(Outcome.ACCEPTED) if answer.message_id else Ruling(Outcome.UNKNOWN, backoff(failures))
    if answer.fcm_error in ("UNREGISTERED", "SENDER_ID_MISMATCH"):
        return Ruling(Outcome.TOKEN_DEAD)
    if answer.fcm_error == "THIRD_PARTY_AUTH_ERROR":
        return Ruling(Outcome.REJECTED)
    if status in _ADVICE or status < HTTPStatus.BAD_REQUEST:
        return Ruling(Outcome.BLOCKED, PROBE_SECONDS, _ADVICE.get(status, _NOT_FCM))
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        asked = answer.retry_after_seconds or 0.0
        return Ruling(
            Outcome.RETRY_LATER, _spread(asked) if asked else max(_spread(QUOTA_RETRY_SECONDS), backoff(failures))
        )
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return Ruling(Outcome.RETRY_LATER, max(_spread(answer.retry_after_seconds or 0.0), backoff(failures)))
    return Ruling(Outcome.REJECTED)


def backoff(failures: int) -> float:
    """Return 10 s and a random part of 10 s × 2ⁿ, 15 min at most, for the n-th failure (from 0)."""
    spread = FIRST_RETRY_SECONDS * 2.0 ** min(failures, 10)
    return FIRST_RETRY_SECONDS + random.uniform(0, min(spread, LONGEST_RETRY_SECONDS - FIRST_RETRY_SECONDS))


def _spread(seconds: float) -> float:
    """Return a wait that is a tenth longer at most: what was told to wait equally long must not come back as one."""
    return seconds * random.uniform(1, 1.1)
