"""The tables of the composing app: stored answers, the audit, the running dispatchers, events and webhooks."""

from typing import ClassVar, Final
from uuid import UUID

from django.contrib.postgres.fields import ArrayField
from django.db import models
from django.db.models import Func, Q
from django.db.models.functions import Left, Now


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
            # The periodic deletion of answers older than a day.
            models.Index(name="stored_answer_age", fields=["created_at"]),
        ]

    def __str__(self) -> str:
        return f"{self.principal} {self.key}"


DEVICE_PATH: Final = Left("path", len("/admin/devices/") + len(str(UUID(int=0))))
"""The part of a path that names a device, if there is one in it."""


class AuditEntry(models.Model):
    """One signed write, carried out or refused: its admin, address, request and result. Append-only.

    The database writes `id`, `at`, `previous` and `hash`: a trigger numbers the entries without a gap, in the order of
    their commits, and chains each entry to the entry before it (docs/decisions/0008-audit-chain.md).
    """

    id = models.BigAutoField(primary_key=True)
    at = models.DateTimeField(db_default=Now())
    principal = models.CharField(max_length=64)
    # The id of the live admin key: the first eight digits of a SHA-256.
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
    # The summary (nexmdm/audit/summary.py), and the number of devices, if the write was carried out.
    action = models.CharField(max_length=64, blank=True, db_default="")
    target = models.CharField(max_length=200, blank=True, db_default="")
    device_count = models.IntegerField(null=True, blank=True)
    dry_run = models.BooleanField(null=True, blank=True)
    previous = models.CharField(max_length=64, db_default="")
    hash = models.CharField(max_length=64, db_default="")

    class Meta:
        ordering: ClassVar = ["-id"]
        verbose_name_plural = "audit entries"
        indexes: ClassVar = [
            # Lists by time, and retention.
            models.Index(name="audit_at", fields=["at"]),
            # The entries about an action, and about a command.
            models.Index(name="audit_action", fields=["action", "id"]),
            models.Index(name="audit_request", fields=["request_id"], condition=Q(request_id__isnull=False)),
            # The entries about a device: by their target, and by their path for entries without a summary.
            models.Index(name="audit_target", fields=["target"], condition=Q(request_id=None)),
            models.Index(DEVICE_PATH, name="audit_device_path", condition=Q(request_id=None)),
        ]

    def __str__(self) -> str:
        return f"{self.action or f'{self.method} {self.path}'} {self.status}"


class AuditMark(models.Model):
    """An end of the audit's chain: `newest`, the last entry written; `pruned`, the last one that retention deleted.

    Triggers allow a mark to move only to an entry that exists at the time of the move. Retention moves `pruned` to an
    entry, and deletes this entry in the same transaction. `at` of `pruned` is the time of this entry, set by a trigger.
    """

    NEWEST: ClassVar = "newest"
    PRUNED: ClassVar = "pruned"

    name = models.CharField(max_length=16, primary_key=True)
    entry_id = models.BigIntegerField()
    hash = models.CharField(max_length=64)
    at = models.DateTimeField(null=True)

    def __str__(self) -> str:
        return f"{self.name} {self.entry_id}"


class PushHealthHour(models.Model):
    """The pushes of one hour that is over, counted for one value of a device's field.

    nexmdm/monitoring/push_health.py writes and reads this table. `latencies` counts answers by their latency band. Each
    counted hour also has a row without a field, so that these rows show which hours are counted.
    """

    id = models.BigAutoField(primary_key=True)
    starts_at = models.DateTimeField()
    field = models.CharField(max_length=16, blank=True)
    value = models.CharField(max_length=128, blank=True)
    attempts = models.IntegerField(default=0)
    accepted = models.IntegerField(default=0)
    answered_by_push = models.IntegerField(default=0)
    answered_by_heartbeat = models.IntegerField(default=0)
    downgraded = models.IntegerField(default=0)
    latencies = models.JSONField(default=dict)

    class Meta:
        constraints: ClassVar = [
            # The reads use this index too: one field's hours from some time on.
            models.UniqueConstraint(name="push_health_once", fields=["field", "starts_at", "value"]),
        ]
        indexes: ClassVar = [
            # Retention.
            models.Index(name="push_health_age", fields=["starts_at"]),
        ]

    def __str__(self) -> str:
        return f"{self.field} {self.value} at {self.starts_at:%Y-%m-%d %H}h"


class DispatcherSeen(models.Model):
    """A row for each dispatcher. While a dispatcher runs, it updates its row.

    Web workers read here whether a dispatcher runs, and the state of its circuit breaker.
    """

    name = models.CharField(max_length=128, primary_key=True)
    started_at = models.DateTimeField(db_default=Now())
    last_seen_at = models.DateTimeField(db_default=Now())
    circuit = models.CharField(max_length=16)
    circuit_reason = models.CharField(max_length=200, blank=True)

    class Meta:
        verbose_name_plural = "dispatchers seen"

    def __str__(self) -> str:
        return self.name


class TransactionId(models.CharField):  # type: ignore[type-arg]  # Django's class takes none at run time.
    """A transaction id of PostgreSQL, which never wraps around; in Python its digits."""

    def db_type(self, connection: object) -> str:  # noqa: ARG002  (Django's signature)
        """Return PostgreSQL's type."""
        return "xid8"


CLOCK: Final = Func(function="clock_timestamp", output_field=models.DateTimeField())
"""The time of the call; Now() is the time at which the statement began, which may have waited for a lock."""


class Event(models.Model):
    """Events of one type and transaction that differ only in their device (nexmdm/common/event_feed/events.py).

    `xid` is the transaction that wrote the row. `device_ids` is NULL if the events are about no device; otherwise each
    device has one event.
    """

    pk = models.CompositePrimaryKey("xid", "id")
    xid = TransactionId(max_length=20, editable=False)
    id = models.BigIntegerField(editable=False)
    at = models.DateTimeField(db_default=CLOCK)
    type = models.CharField(max_length=32)
    device_ids = ArrayField(models.UUIDField(), null=True)
    request_id = models.UUIDField(null=True)
    data = models.JSONField()

    def __str__(self) -> str:
        return f"{self.type} {self.id}"


class EventMark(models.Model):
    """The one row about the feed as a whole: its database, and the last row that retention deleted.

    `database` is the database to which the transaction ids of the events belong.

    `epoch` names the feed in cursors, and changes if the events were restored into another database. `pruned_xid` and
    `pruned_id` are the transaction id and the id of the last row that retention deleted.
    """

    id = models.SmallIntegerField(primary_key=True)
    epoch = models.CharField(max_length=16)
    database = models.CharField(max_length=64)
    pruned_xid = TransactionId(max_length=20, default="0")
    pruned_id = models.BigIntegerField(default=0)

    def __str__(self) -> str:
        return self.epoch


class Webhook(models.Model):
    """A URL that gets events, one after the other in the order of the feed (nexmdm/webhooks/).

    `cursor_*` are the place of the next event (nexmdm/events/cursor.py). `secret_key` names the SECRET_KEY from which
    the secret with the number `secret_number` is derived; `previous_secret_key` that of the number before. `lease`
    names the dispatcher's task that serves the webhook. `revision` counts the changes by admins.
    """

    id = models.UUIDField(primary_key=True)
    url = models.TextField()
    types = ArrayField(models.CharField(max_length=32), default=list)
    tags = ArrayField(models.CharField(max_length=64), default=list)
    description = models.CharField(max_length=200, blank=True)
    created_at = models.DateTimeField(db_default=Now())
    paused = models.BooleanField(default=False)
    why = models.CharField(max_length=300, blank=True)
    revision = models.IntegerField(default=1)
    cursor_epoch = models.CharField(max_length=16)
    cursor_xid = TransactionId(max_length=20)
    cursor_id = models.BigIntegerField()
    cursor_place = models.IntegerField()
    # The failed attempts since the last event that the receiver acknowledged.
    tries = models.IntegerField(default=0)
    failing_since = models.DateTimeField(null=True)
    next_attempt_at = models.DateTimeField(db_default=Now())
    # The test event that an admin asked for, until it is sent.
    test_id = models.UUIDField(null=True)
    secret_number = models.IntegerField(default=1)
    secret_key = models.CharField(max_length=8)
    previous_secret_key = models.CharField(max_length=8, blank=True)
    rotated_at = models.DateTimeField(null=True)
    lease = models.UUIDField(null=True)
    lease_until = models.DateTimeField(db_default=Now())

    def __str__(self) -> str:
        return self.description or str(self.id)


class WebhookAttempt(models.Model):
    """One attempt to send an event to a webhook. `http_status` is None, and `error` says why, without an answer."""

    id = models.BigAutoField(primary_key=True)
    webhook = models.ForeignKey(Webhook, models.CASCADE, related_name="attempts", db_index=False)
    event_id = models.CharField(max_length=64)
    type = models.CharField(max_length=32)
    at = models.DateTimeField(db_default=Now())
    is_delivered = models.BooleanField()
    http_status = models.PositiveSmallIntegerField(null=True)
    error = models.CharField(max_length=200, blank=True)
    latency_ms = models.PositiveIntegerField()

    class Meta:
        indexes: ClassVar = [
            # The newest attempts of a webhook, and their retention.
            models.Index(name="webhook_attempt_of", fields=["webhook", "id"]),
        ]

    def __str__(self) -> str:
        return f"{self.event_id} {self.http_status or self.error}"
