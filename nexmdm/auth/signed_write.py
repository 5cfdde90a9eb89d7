"""The signed writes of admins. A write is carried out once, in one transaction with its audit entry and its answer."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import Any, Final, Generic, TypeVar, cast
from uuid import UUID

import orjson
from django.db import transaction
from django.http import HttpRequest, HttpResponse
from pydantic import BaseModel

from nexmdm.audit import entries
from nexmdm.audit.summary import Summary
from nexmdm.auth import rate_limits
from nexmdm.auth.rate_limits import RateLimited
from nexmdm.common import database
from nexmdm.common.database import run_in_db_thread
from nexmdm.common.domain_error import DomainError

AnswerT_co = TypeVar("AnswerT_co", bound=BaseModel, covariant=True)


@dataclass(frozen=True, slots=True)
class WriteResult(Generic[AnswerT_co]):
    """The result of a signed write.

    - `answer`: the answer, which is also stored for a repeat.
    - `request_id`: the request id in the audit entry.
    - `device_count`: the number of devices that the write changed, or would have changed in a dry run. None if no
      number applies.
    - `secrets`: fields that are added to the answer, and never stored.
    - `kept`: False if nothing is stored for a repeat, as for a dry run.
    """

    answer: AnswerT_co
    request_id: UUID | None = None
    device_count: int | None = None
    secrets: Mapping[str, Any] = field(default_factory=dict)
    kept: bool = True

    @property
    def text(self) -> str:
        """The answer as JSON, without the secrets."""
        return self.answer.model_dump_json()

    def response(self) -> HttpResponse:
        """Return the HTTP answer, with the secrets."""
        return _answer(self.text, self.secrets)


# Use two statements in one message: the second statement must see what an earlier transaction with the key committed.
_LOCK: Final = """
    SELECT pg_try_advisory_xact_lock(hashtextextended(name, 0))
    FROM unnest(%(names)s::text[]) WITH ORDINALITY AS asked (name, position) ORDER BY position
"""
_STORED: Final = """
    SELECT stored.principal, stored.key, stored.fingerprint, stored.body
    FROM unnest(%(principals)s::text[], %(keys)s::text[]) AS asked (principal, key)
    JOIN nexmdm_storedanswer stored ON stored.principal = asked.principal AND stored.key = asked.key
"""
_STORE: Final = """
    INSERT INTO nexmdm_storedanswer (principal, key, fingerprint, status, body)
    SELECT principal, key, fingerprint, 200, body
    FROM json_to_recordset(%(answers)s::json) AS given (principal text, key text, fingerprint bytea, body text)
"""
_CHECK: Final = "SET CONSTRAINTS ALL IMMEDIATE"

RestoreSecrets = Callable[[dict[str, Any]], Mapping[str, Any]]


class IdempotencyInFlight(DomainError):
    detail = (
        "A request with this Idempotency-Key is still running. To get the answer, send the request again in a few "
        "seconds."
    )


class IdempotencyKeyReused(DomainError):
    detail = "This Idempotency-Key belongs to another request. Use a new key for each new request."


@dataclass(slots=True)
class LimitCheck:
    """The rate limit of one signed write. `limited` is the error to raise, or None if the write is within the limit."""

    is_counted: bool = False
    limited: RateLimited | None = None


@dataclass(frozen=True, slots=True)
class SignedCaller:
    """The admin who sent a signed request, and the facts about the request.

    `target` is the path with its query. `summarize` returns the summary for the audit entry.
    """

    principal: str
    admin_key_id: str
    idempotency_key: str
    address: str | None
    method: str
    target: str
    body_sha256: str
    correlation_id: str
    summarize: Callable[[], Summary]
    limit_check: LimitCheck = field(default_factory=LimitCheck, compare=False)

    def check_limit(self) -> None:
        """Count this write, unless it is already counted. Raises RateLimited if the admin is over the limit."""
        (limited,) = check_limits([self])
        if limited is not None:
            raise limited

    @property
    def fingerprint(self) -> bytes:
        """The SHA-256 of method, target and body hash. Equal requests have equal fingerprints."""
        return hashlib.sha256(f"{self.method}\n{self.target}\n{self.body_sha256}".encode()).digest()

    async def run(
        self, work: Callable[[], WriteResult[Any]], *, restore_secrets: RestoreSecrets | None = None
    ) -> HttpResponse:
        """Carry out a write once by `work`, and return the answer. A repeat gets the stored answer.

        The answer to a repeat has the header `Idempotent-Replayed: true`. `restore_secrets` gets the stored answer, and
        returns the secrets that are added to the answer. The changes of `work`, the audit entry and the stored answer
        are committed together. Raises RateLimited, IdempotencyInFlight, IdempotencyKeyReused, and the errors of `work`.
        """
        return await run_in_db_thread(_run_alone, self, work, restore_secrets)


@dataclass(frozen=True, slots=True)
class Replay:
    """The stored answer to a repeated request, without its secrets."""

    body: str

    def response(self, secrets: Mapping[str, Any] = MappingProxyType({})) -> HttpResponse:
        """Return the HTTP answer to a repeated request, with these secrets."""
        response = _answer(self.body, secrets)
        response["Idempotent-Replayed"] = "true"
        return response


Outcome = WriteResult[Any] | Replay | Exception


def check_limits(callers: Sequence[SignedCaller]) -> list[RateLimited | None]:
    """Count each write once. Return for each write the error to raise, or None if the write is within the limit.

    A second call for the same writes returns the same result: after a lost connection, a batch is flushed once more.
    """
    uncounted: dict[str, list[LimitCheck]] = {}
    for caller in callers:
        if not caller.limit_check.is_counted:
            uncounted.setdefault(caller.principal, []).append(caller.limit_check)
    for principal in sorted(uncounted):
        checks = uncounted[principal]
        too_many, limited = rate_limits.count_writes(principal, len(checks))
        for place, check in enumerate(checks):
            check.is_counted = True
            check.limited = limited if place >= len(checks) - too_many else None
    return [caller.limit_check.limited for caller in callers]


def _run_alone(
    caller: SignedCaller, work: Callable[[], WriteResult[Any]], restore_secrets: RestoreSecrets | None
) -> HttpResponse:
    caller.check_limit()
    (outcome,) = database.retry_on_deadlock(partial(run_together, [caller], lambda _: [work()]))
    if isinstance(outcome, Exception):
        raise outcome
    if isinstance(outcome, Replay) and restore_secrets:
        return outcome.response(restore_secrets(orjson.loads(outcome.body)))
    return outcome.response()


@transaction.atomic
def run_together(
    callers: Sequence[SignedCaller], work: Callable[[Sequence[int]], Sequence[WriteResult[Any] | Exception]]
) -> list[Outcome]:
    """Carry out several writes in one transaction, each write once. Return the result of each write.

    `work` carries out the writes at the given positions. If `work` returns an error for a write, `work` must not have
    changed anything for this write.
    """
    outcomes = _claim(callers)
    to_do = [position for position, found in enumerate(outcomes) if found is None]
    if to_do:
        for position, done in zip(to_do, work(to_do), strict=True):
            outcomes[position] = done
        _finish([(callers[position], outcomes[position]) for position in to_do])
    return cast("list[Outcome]", outcomes)


def _claim(callers: Sequence[SignedCaller]) -> list[Any]:
    """Lock the idempotency keys of writes until the transaction ends.

    Return for each write its stored answer, an error, or None if the write must be carried out.
    """
    principals = [caller.principal for caller in callers]
    keys = [caller.idempotency_key for caller in callers]
    names = [f"idempotency:{principal}:{key}" for principal, key in zip(principals, keys, strict=True)]
    parameters = {"names": names, "principals": principals, "keys": keys}
    locked, stored = database.execute_batch(_LOCK, _STORED, parameters=parameters)
    answers = {(principal, key): (bytes(fingerprint), body) for principal, key, fingerprint, body in stored}
    return [
        _claimed(caller, is_ours, answers.get((caller.principal, caller.idempotency_key)))
        for caller, (is_ours,) in zip(callers, locked, strict=True)
    ]


def _claimed(caller: SignedCaller, is_ours: bool, stored: tuple[bytes, str] | None) -> Replay | Exception | None:
    if not is_ours:
        return IdempotencyInFlight()
    if stored is None:
        return None
    fingerprint, body = stored
    return Replay(body) if fingerprint == caller.fingerprint else IdempotencyKeyReused()


def _finish(writes: Sequence[tuple[SignedCaller, Any]]) -> None:
    """Store the answers, then write the audit entries.

    From the first audit entry to the commit, all other signed writes wait. Therefore foreign keys are checked before
    the first audit entry, not at the commit. For a command to 100,000 devices, this check takes most of a second.
    """
    done = [(caller, result) for caller, result in writes if isinstance(result, WriteResult)]
    if not done:
        return
    answers = [_to_store(caller, result) for caller, result in done if result.kept]
    given = [
        entries.values(caller, status=200, request_id=result.request_id, device_count=result.device_count)
        for caller, result in done
    ]
    statements = [_STORE, _CHECK, entries.INSERT] if answers else [_CHECK, entries.INSERT]
    parameters = entries.parameters(given) | {"answers": orjson.dumps(answers).decode()}
    database.execute_last_batch(*statements, parameters=parameters)


def _to_store(caller: SignedCaller, result: WriteResult[Any]) -> dict[str, str]:
    return {
        "principal": caller.principal,
        "key": caller.idempotency_key,
        "fingerprint": f"\\x{caller.fingerprint.hex()}",
        "body": result.text,
    }


def _answer(body: str, secrets: Mapping[str, Any]) -> HttpResponse:
    content = orjson.dumps(orjson.loads(body) | dict(secrets)) if secrets else body
    return HttpResponse(content, content_type="application/json")


def caller_of(request: HttpRequest) -> "SignedCaller":
    """Return the caller of a signed request."""
    return cast("SignedCaller", request.auth)  # type: ignore[attr-defined]
