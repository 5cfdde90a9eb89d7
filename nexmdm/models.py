"""What the composing package itself remembers: answers for repeats, the audit, and which dispatchers are alive."""

from typing import ClassVar

from django.db import models
from django.db.models.functions import Now


class StoredAnswer(models.Model):
    """The answer to a signed write, kept for a day so that a repeat of the request gets it again.

    `body` is JSON text without any secret; `fingerprint` is the SHA-256 of method, target and body hash.
    """

    id = models.BigAutoField(primary_key=True)
    principal = models.CharField(max_length=64)
    key = models.CharField(max_length=64)
    fingerprint = models.BinaryField(max_length=32)
    status = models.PositiveSmallIntegerField()
    body = models.TextField()
    created_at = models.DateTimeField(db_default=Now())

    class Meta:
        constraints: ClassVar = [models.UniqueConstraint(name="stored_answer_key", fields=["principal", "key"])]
        indexes: ClassVar = [
            # The sweep of answers older than a day.
            models.Index(name="stored_answer_age", fields=["created_at"]),
        ]

    def __str__(self) -> str:
        return f"{self.principal} {self.key}"


class AuditEntry(models.Model):
    """One signed write, carried out or refused: who, from where, what, and how it ended. Append-only.

    `id`, `at`, `previous` and `hash` are the database's to write: a trigger numbers the entries without a gap, in the
    order of their commits, and chains each to the one before (docs/decisions/0008-audit-chain.md).
    """

    id = models.BigAutoField(primary_key=True)
    at = models.DateTimeField(db_default=Now())
    principal = models.CharField(max_length=64)
    # Which of the live admin keys: the first eight digits of a SHA-256.
    admin_key_id = models.CharField(max_length=8, blank=True, db_default="")
    idempotency_key = models.CharField(max_length=64, blank=True, db_default="")
    address = models.GenericIPAddressField(null=True, blank=True)
    method = models.CharField(max_length=16)
    path = models.TextField()
    body_sha256 = models.CharField(max_length=64)
    status = models.PositiveSmallIntegerField()
    code = models.CharField(max_length=64, blank=True)
    request_id = models.UUIDField(null=True, blank=True)
    correlation_id = models.CharField(max_length=64)
    previous = models.CharField(max_length=64, db_default="")
    hash = models.CharField(max_length=64, db_default="")

    class Meta:
        ordering: ClassVar = ["-id"]
        verbose_name_plural = "audit entries"
        indexes: ClassVar = [
            # Lists by time, and retention.
            models.Index(name="audit_at", fields=["at"]),
        ]

    def __str__(self) -> str:
        return f"{self.method} {self.path} {self.status}"


class AuditMark(models.Model):
    """An end of the audit's chain: `newest`, the last entry written; `pruned`, the last one that retention deleted.

    Triggers let a mark move only along the entries that are there, and write `at`: when the pruned one was written.
    """

    NEWEST: ClassVar = "newest"
    PRUNED: ClassVar = "pruned"

    name = models.CharField(max_length=16, primary_key=True)
    entry_id = models.BigIntegerField()
    hash = models.CharField(max_length=64)
    at = models.DateTimeField(null=True)

    def __str__(self) -> str:
        return f"{self.name} {self.entry_id}"


class DispatcherSeen(models.Model):
    """A dispatcher's own row, kept fresh while it runs: the web's way to know that one is alive, and its circuit."""

    name = models.CharField(max_length=128, primary_key=True)
    started_at = models.DateTimeField(db_default=Now())
    last_seen_at = models.DateTimeField(db_default=Now())
    circuit = models.CharField(max_length=16)
    circuit_reason = models.CharField(max_length=200, blank=True)

    class Meta:
        verbose_name_plural = "dispatchers seen"

    def __str__(self) -> str:
        return self.name
