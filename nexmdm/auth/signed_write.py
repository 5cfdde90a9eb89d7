"""The signed caller of an admin request: each write once, in one transaction with its audit entry and stored answer."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, cast
from uuid import UUID

import orjson
from django.db import transaction
from django.http import HttpRequest, HttpResponse
from pydantic import BaseModel

from nexmdm.audit import entries
from nexmdm.audit.summary import Summary
from nexmdm.auth import rate_limits
from nexmdm.common import database
from nexmdm.common.database import run_in_db_thread
from nexmdm.common.domain_error import DomainError


@dataclass(frozen=True, slots=True)
class WriteResult:
    """The outcome of a signed write: its answer, and what the audit and a repeat should know.

    `device_count` is on how many devices something was done, or would be; None where that does not apply. `secrets` are
    shown in the answer and never stored; `kept` False (a dry run) stores nothing for a repeat.
    """

    answer: BaseModel
    request_id: UUID | None = None
    device_count: int | None = None
    secrets: Mapping[str, str] = field(default_factory=dict)
    kept: bool = True


# Two statements of one message: the second must see what the holder of this key before us has committed.
_LOCK: Final = "SELECT pg_try_advisory_xact_lock(hashtextextended(%(name)s, 0))"
_STORED: Final = "SELECT fingerprint, body FROM nexmdm_storedanswer WHERE principal = %(principal)s AND key = %(key)s"
_STORE: Final = """
    INSERT INTO nexmdm_storedanswer (principal, key, fingerprint, status, body)
    VALUES (%(stored_principal)s, %(stored_key)s, %(fingerprint)s, 200, %(stored_answer)s)
"""
_CHECK: Final = "SET CONSTRAINTS ALL IMMEDIATE"

RestoreSecrets = Callable[[dict[str, Any]], Mapping[str, str]]


class IdempotencyInFlight(DomainError):
    detail = "A request with this Idempotency-Key is still running. Send it again shortly to get its answer."


class IdempotencyKeyReused(DomainError):
    detail = "This Idempotency-Key belongs to another request. Use a new one for each new request."


@dataclass(slots=True)
class Tally:
    """Whether a signed write was counted."""

    is_counted: bool = False


@dataclass(frozen=True, slots=True)
class SignedCaller:
    """Who called, from where, and what the signature covered. `target` is the path with its query.

    `summarize` tells the audit what it is about.
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
    tally: Tally = field(default_factory=Tally, compare=False)

    @property
    def fingerprint(self) -> bytes:
        """What makes two requests the same: SHA-256 of method, target and body hash."""
        return hashlib.sha256(f"{self.method}\n{self.target}\n{self.body_sha256}".encode()).digest()

    async def run(
        self, work: Callable[[], WriteResult], *, restore_secrets: RestoreSecrets | None = None
    ) -> HttpResponse:
        """Do the work once and answer; a repeat of the request gets the stored answer, `Idempotent-Replayed: true`.

        Work, audit entry and stored answer commit together, or nothing does. Raises RateLimited, IdempotencyInFlight,
        IdempotencyKeyReused, and what the work raises.
        """
        body, replayed = await run_in_db_thread(self._count_and_run, work, restore_secrets)
        response = HttpResponse(body, content_type="application/json")
        if replayed:
            response["Idempotent-Replayed"] = "true"
        return response

    def count(self) -> None:
        """Count this write, if it is not counted yet. Raises RateLimited."""
        if not self.tally.is_counted:
            self.tally.is_counted = True
            rate_limits.count_write(self.principal)

    def _count_and_run(
        self, work: Callable[[], WriteResult], restore_secrets: RestoreSecrets | None
    ) -> tuple[bytes, bool]:
        self.count()
        return database.retry_on_deadlock(partial(self._run, work, restore_secrets))

    def _run(self, work: Callable[[], WriteResult], restore_secrets: RestoreSecrets | None) -> tuple[bytes, bool]:
        with transaction.atomic():
            stored = self._claim()
            if stored is not None:
                return self._replay(*stored, restore_secrets), True
            done = work()
            answer = done.answer.model_dump_json()
            self._finish(done, answer)
        return _with_secrets(answer, done.secrets), False

    def _claim(self) -> tuple[bytes, str] | None:
        """Take this key, to the end of the transaction; return the fingerprint and the answer stored for it, if any."""
        name = f"idempotency:{self.principal}:{self.idempotency_key}"
        parameters = {"name": name, "principal": self.principal, "key": self.idempotency_key}
        ((locked,),), stored = database.execute_batch(_LOCK, _STORED, parameters=parameters)
        if not locked:
            raise IdempotencyInFlight
        return stored[0] if stored else None

    def _replay(self, fingerprint: bytes, body: str, restore_secrets: RestoreSecrets | None) -> bytes:
        if bytes(fingerprint) != self.fingerprint:
            raise IdempotencyKeyReused
        secrets = restore_secrets(orjson.loads(body)) if restore_secrets else {}
        return _with_secrets(body, secrets)

    def _finish(self, done: WriteResult, answer: str) -> None:
        """Store the answer and write the audit entry, which comes last: every other signed write waits from it on.

        The foreign keys, which are else checked at the commit, are so before it: those of a command to 100,000 devices
        take most of a second.
        """
        entry = entries.values(self, status=200, request_id=done.request_id, device_count=done.device_count)
        stored = {"stored_principal": self.principal, "stored_key": self.idempotency_key, "stored_answer": answer}
        statements = [_STORE, _CHECK, entries.INSERT] if done.kept else [_CHECK, entries.INSERT]
        database.execute_batch(*statements, parameters=entry | stored | {"fingerprint": self.fingerprint})


def _with_secrets(answer: str, secrets: Mapping[str, str]) -> bytes:
    return orjson.dumps(orjson.loads(answer) | dict(secrets)) if secrets else answer.encode()


def caller_of(request: HttpRequest) -> "SignedCaller":
    """Return the caller of a signed request."""
    return cast("SignedCaller", request.auth)  # type: ignore[attr-defined]
