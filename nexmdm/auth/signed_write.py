"""The signed caller of an admin request: each write once, in one transaction with its audit entry and stored answer."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast
from uuid import UUID

import orjson
from django.db import transaction
from django.http import HttpRequest, HttpResponse
from pydantic import BaseModel

from nexmdm.audit import entries
from nexmdm.audit.summary import Summary
from nexmdm.common import database
from nexmdm.common.database import run_in_db_thread
from nexmdm.common.domain_error import DomainError
from nexmdm.models import StoredAnswer


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


RestoreSecrets = Callable[[dict[str, Any]], Mapping[str, str]]


class IdempotencyInFlight(DomainError):
    detail = "A request with this Idempotency-Key is still running. Send it again shortly to get its answer."


class IdempotencyKeyReused(DomainError):
    detail = "This Idempotency-Key belongs to another request. Use a new one for each new request."


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

    @property
    def fingerprint(self) -> bytes:
        """What makes two requests the same: SHA-256 of method, target and body hash."""
        return hashlib.sha256(f"{self.method}\n{self.target}\n{self.body_sha256}".encode()).digest()

    async def run(
        self, work: Callable[[], WriteResult], *, restore_secrets: RestoreSecrets | None = None
    ) -> HttpResponse:
        """Do the work once and answer; a repeat of the request gets the stored answer, `Idempotent-Replayed: true`.

        Work, audit entry and stored answer commit together, or nothing does. Raises IdempotencyInFlight,
        IdempotencyKeyReused, and what the work raises.
        """
        body, replayed = await run_in_db_thread(database.retry_on_deadlock, partial(self._run, work, restore_secrets))
        response = HttpResponse(body, content_type="application/json")
        if replayed:
            response["Idempotent-Replayed"] = "true"
        return response

    def _run(self, work: Callable[[], WriteResult], restore_secrets: RestoreSecrets | None) -> tuple[bytes, bool]:
        with transaction.atomic():
            self._lock()
            stored = StoredAnswer.objects.filter(principal=self.principal, key=self.idempotency_key).first()
            if stored is not None:
                return self._replay(stored, restore_secrets), True
            done = work()
            answer = done.answer.model_dump_json()
            if done.kept:
                self._store(answer)
            # Every other signed write waits from the entry to the commit. So it comes last; and the foreign keys, which
            # are else checked at the commit, before it: those of a command to 100,000 devices take most of a second.
            database.execute("SET CONSTRAINTS ALL IMMEDIATE")
            entries.record(self, status=200, request_id=done.request_id, device_count=done.device_count)
        return _with_secrets(answer, done.secrets), False

    def _lock(self) -> None:
        # Its own statement: what follows must see what the holder of this key committed before us.
        name = f"idempotency:{self.principal}:{self.idempotency_key}"
        (locked,) = database.row("SELECT pg_try_advisory_xact_lock(hashtextextended(%s, 0))", [name])
        if not locked:
            raise IdempotencyInFlight

    def _replay(self, stored: StoredAnswer, restore_secrets: RestoreSecrets | None) -> bytes:
        if bytes(stored.fingerprint) != self.fingerprint:
            raise IdempotencyKeyReused
        secrets = restore_secrets(orjson.loads(stored.body)) if restore_secrets else {}
        return _with_secrets(stored.body, secrets)

    def _store(self, answer: str) -> None:
        StoredAnswer.objects.create(
            principal=self.principal,
            key=self.idempotency_key,
            fingerprint=self.fingerprint,
            status=200,
            body=answer,
        )


def _with_secrets(answer: str, secrets: Mapping[str, str]) -> bytes:
    return orjson.dumps(orjson.loads(answer) | dict(secrets)) if secrets else answer.encode()


def caller_of(request: HttpRequest) -> "SignedCaller":
    """Return the caller of a signed request."""
    return cast("SignedCaller", request.auth)  # type: ignore[attr-defined]
