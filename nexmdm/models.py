"""The tables of the app `nexmdm`: stored answers, audit entries, push health, dispatchers, events and webhooks."""

from typing import ClassVar, Final
from uuid import UUID

from django.contrib.postgres.fields import ArrayField
from django.db import models
from django.db.models import Func, Q
from django.db.models.functions import Left, Now


class StoredAnswer(models.Model):
    """The answer to a signed write, stored for 24 hours. A repeat of the request gets this answer.

    - `key`: the idempotency key of the request.
    - `fingerprint`: the SHA-256 of the method, the target and the hash of the body. It shows whether a later request
      with the same key is a repeat.
    - `body`: the JSON text of the answer, without secrets.
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
            # For the deletion of old answers.
            models.Index(name="stored_answer_age", fields=["created_at"]),
        ]

    def __str__(self) -> str:
        return f"{self.principal} {self.key}"


DEVICE_PATH: Final = Left("path", len("/admin/devices/") + len(str(UUID(int=0))))
"""The SQL expression for the first 51 characters of `path`: `/admin/devices/` and the id of a device."""


class AuditEntry(models.Model):
    """The record of one signed write, which the server carried out or refused. The table is append-only.

    A trigger of the database sets `id`, `at`, `previous` and `hash`. The ids have no gaps and follow the order of the
    commits. `previous` is the hash of the entry before this entry (docs/decisions/0008-audit-chain.md).
    """

    id = models.BigAutoField(primary_key=True)
    at = models.DateTimeField(db_default=Now())
    principal = models.CharField(max_length=64)
    # The id of the admin key: the first eight hexadecimal digits of the SHA-256 of the key.
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
    # The summary of the request (nexmdm/audit/summary.py).
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
            # For lists by time, and for retention.
            models.Index(name="audit_at", fields=["at"]),
            # For lists of the entries about an action or about a command.
            models.Index(name="audit_action", fields=["action", "id"]),
            models.Index(name="audit_request", fields=["request_id"], condition=Q(request_id__isnull=False)),
            # For lists of the entries about a device. Entries without a summary are found by their path.
            models.Index(name="audit_target", fields=["target"], condition=Q(request_id=None)),
            models.Index(DEVICE_PATH, name="audit_device_path", condition=Q(request_id=None)),
        ]

    def __str__(self) -> str:
        return f"{self.action or f'{self.method} {self.path}'} {self.status}"


class AuditMark(models.Model):
    """An end of the audit chain. There are two marks, `newest` and `pruned`.

    `newest` names the entry that was written last. `pruned` names the last entry that retention deleted. `entry_id` and
    `hash` are the id and the hash of the named entry. A trigger sets `at` of `pruned` to the time of its entry.

    Triggers refuse to move a mark to an entry that does not exist. So retention first moves `pruned` to the last entry
    that it will delete. Then retention deletes all entries up to `pruned` in the same transaction.
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
    """The pushes of one past hour, counted for one value of one field of the devices.

    Example: `field` is `model`, and `value` is the name of a model. `latencies` maps the number of a latency band to
    the count of pushes whose latency is in this band. An hour that has been counted always has one row whose `field` is
    empty. nexmdm/monitoring/push_health.py writes and reads this table.
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
            # Queries use the index of this constraint: they read the hours of one field from a start time on.
            models.UniqueConstraint(name="push_health_once", fields=["field", "starts_at", "value"]),
        ]
        indexes: ClassVar = [
            # For retention.
            models.Index(name="push_health_age", fields=["starts_at"]),
        ]

    def __str__(self) -> str:
        return f"{self.field} {self.value} at {self.starts_at:%Y-%m-%d %H}h"


class DispatcherSeen(models.Model):
    """One running dispatcher, which updates its row every 2 seconds.

    Web workers read this table to learn whether a dispatcher runs, and whether its circuit breaker is open.
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
    """A field for the 64-bit transaction ids of PostgreSQL, which never wrap around.

    In Python, the id is a string of digits.
    """

    def db_type(self, connection: object) -> str:  # noqa: ARG002  (Django's signature)
        """Return the name of PostgreSQL's type."""
        return "xid8"


CLOCK: Final = Func(function="clock_timestamp", output_field=models.DateTimeField())
"""The SQL expression for the time of the call.

`Now()` is the time at which the statement began. The statement may have waited for a lock after this time.
"""


class Event(models.Model):
    """One or many events with the same type, transaction and data. The events differ only in their device.

    `xid` decides the place of the row in the event feed. It is at least the id of the transaction that wrote the row.
    If `device_ids` is NULL, the row is one event without a device. In all other cases, the row is one event for each
    device in `device_ids`. nexmdm/common/event_feed/events.py writes this table.
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
    """The state of the event feed, in a single row.

    - `epoch`: the name of the current epoch, which each cursor contains.
    - `database`: names the database that made the transaction ids of the events. If it is not the present database, a
      new epoch begins.
    - `pruned_xid`, `pruned_id`: `xid` and `id` of the last event row that retention deleted.
    """

    id = models.SmallIntegerField(primary_key=True)
    epoch = models.CharField(max_length=16)
    database = models.CharField(max_length=64)
    pruned_xid = TransactionId(max_length=20, default="0")
    pruned_id = models.BigIntegerField(default=0)

    def __str__(self) -> str:
        return self.epoch


class Webhook(models.Model):
    """A webhook: a URL that gets events in the order of the event feed (nexmdm/webhooks/).

    - `why`: the reason why the webhook is paused.
    - `revision`: 1, plus the number of changes by admins.
    - `cursor_*`: the place of the next event for the webhook (nexmdm/events/cursor.py).
    - `secret_number`: the number of the current secret. Each rotation increases this number.
    - `secret_key`: names the SECRET_KEY from which the current secret is derived.
    - `previous_secret_key`: names the SECRET_KEY from which the previous secret is derived.
    - `lease`: the id of the dispatcher's task that may send to this webhook until `lease_until`.
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
    # The number of failed attempts since the receiver last acknowledged an event.
    tries = models.IntegerField(default=0)
    failing_since = models.DateTimeField(null=True)
    next_attempt_at = models.DateTimeField(db_default=Now())
    # The id of the test event that an admin requested. NULL after the test is sent.
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
    """One request that sent an event to a webhook.

    If the receiver sent no answer, `http_status` is None, and `error` contains the reason.
    """

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
            # For the newest attempts of a webhook, and for retention.
            models.Index(name="webhook_attempt_of", fields=["webhook", "id"]),
        ]

    def __str__(self) -> str:
        return f"{self.event_id} {self.http_status or self.error}"
