"""The tables of commands, deliveries, attempts and reports."""

from typing import ClassVar, Final, Self

from django.db import models
from django.db.models import Q
from django.db.models.functions import Now
from uuid_utils.compat import uuid7

from devices.models import Device


class Priority(models.TextChoices):
    """The priority with which FCM delivers a push."""

    HIGH = "high"
    NORMAL = "normal"


class DeliveryState(models.TextChoices):
    """The states of a delivery. `pending` and `received` are open states. The other states are settled states."""

    PENDING = "pending"
    RECEIVED = "received"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    EXPIRED = "expired"
    CANCELLED = "cancelled"


OPEN = (DeliveryState.PENDING, DeliveryState.RECEIVED)
OVERDUE = Q(state__in=OPEN, open_until__lte=Now())
"""The condition for overdue deliveries: past `open_until`, and not marked as expired. Reads show them as expired."""


class CommandState(models.TextChoices):
    """The states of a command, which commands/standing.py derives from the deliveries.

    `cancelled`: an admin's cancellation withdrew some deliveries, or other causes withdrew all deliveries.
    """

    OPEN = "open"
    COMPLETED = "completed"
    EXPIRED = "expired"
    CANCELLED = "cancelled"


class CommandOutcome(models.TextChoices):
    """The outcomes of a command that has ended, which commands/standing.py derives from the deliveries.

    `partial`: some devices succeeded, but not all. `failed`: some devices failed, and no device succeeded. `expired`:
    no final report came in time, and some deliveries expired. `cancelled`: all deliveries were withdrawn.
    """

    SUCCEEDED = "succeeded"
    PARTIAL = "partial"
    FAILED = "failed"
    EXPIRED = "expired"
    CANCELLED = "cancelled"


class PushState(models.TextChoices):
    """The stored states of a delivery's push. `accepted`: FCM accepted the push, but the phone may not get the push."""

    WAITING = "waiting"
    ACCEPTED = "accepted"
    RETRYING = "retrying"
    UNDELIVERABLE = "undeliverable"
    NO_PUSH_TOKEN = "no_push_token"  # noqa: S105


class PushNow(models.TextChoices):
    """The states of a push in the API: the stored states, and `superseded`, which commands/push_now.py derives."""

    WAITING = PushState.WAITING.value
    ACCEPTED = PushState.ACCEPTED.value
    RETRYING = PushState.RETRYING.value
    UNDELIVERABLE = PushState.UNDELIVERABLE.value
    SUPERSEDED = "superseded"
    NO_PUSH_TOKEN = PushState.NO_PUSH_TOKEN.value


class Withdrawal(models.TextChoices):
    """The causes of a cancelled delivery. The label of a cause is its text in the timeline."""

    ADMIN = "admin", "an admin cancelled the command"
    SUPERSEDED = "superseded", "a newer command of the same action took its place"
    REVOCATION = "revocation", "the device was revoked"
    ENROLLMENT = "enrollment", "the device was enrolled again"


class DeviceWas(models.TextChoices):
    """A fact about the device at the end of a delivery. No other column of the delivery shows this fact.

    `never_seen`: the device had sent no heartbeat when the delivery was marked as expired. `retired`: the retirement of
    the device withdrew the delivery. `withdrawn_by` is then `revocation`, for the previous version.
    """

    NEVER_SEEN = "never_seen"
    RETIRED = "retired"


class AttemptOutcome(models.TextChoices):
    """The outcomes of an attempt. `in_flight`: FCM's answer is not recorded yet."""

    IN_FLIGHT = "in_flight"
    ACCEPTED = "accepted"
    RETRY_LATER = "retry_later"
    REJECTED = "rejected"
    TOKEN_DEAD = "token_dead"  # noqa: S105
    UNKNOWN = "unknown"
    BLOCKED = "blocked"


FCM_ERRORS: Final = (
    "UNREGISTERED", "SENDER_ID_MISMATCH", "INVALID_ARGUMENT", "QUOTA_EXCEEDED", "UNAVAILABLE", "INTERNAL",
    "THIRD_PARTY_AUTH_ERROR", "UNSPECIFIED_ERROR",
)  # fmt: skip
"""The error codes of FCM (Google's page "ErrorCode")."""


class ReportStatus(models.TextChoices):
    """The statuses of a phone's report about a command. `succeeded` and `failed` are final."""

    RECEIVED = "received"
    RUNNING = "running"
    DEFERRED = "deferred"
    SUCCEEDED = "succeeded"
    FAILED = "failed"


FINAL = (ReportStatus.SUCCEEDED, ReportStatus.FAILED)


class DeliveryChannel(models.TextChoices):
    """The ways in which a command can reach a phone."""

    PUSH = "push"
    HEARTBEAT = "heartbeat"


def _one_of(
    field: str, choices: type[models.TextChoices], *, name: str, or_null: bool = False
) -> models.CheckConstraint:
    known = Q(**{f"{field}__in": choices.values})
    return models.CheckConstraint(name=name, condition=known | Q(**{field: None}) if or_null else known)


class Command(models.Model):
    """One action that an admin sent to a fixed audience. The row changes only when the command is cancelled or ends.

    `params` is the JSON text that is signed and sent. `issued_at` and `expires_at` are whole seconds. `finished_at` is
    when the last delivery was settled. commands/finishing.py writes `finished_at` and `outcome`.
    """

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    action = models.CharField(max_length=64)
    params = models.TextField()
    priority = models.CharField(max_length=8, choices=Priority, default=Priority.HIGH)
    target = models.JSONField()
    note = models.CharField(max_length=200, blank=True)
    issued_by = models.CharField(max_length=64)
    issued_at = models.DateTimeField()
    expires_at = models.DateTimeField()
    device_count = models.PositiveIntegerField()
    cancelled_at = models.DateTimeField(null=True, blank=True)
    finished_at = models.DateTimeField(null=True, blank=True)
    outcome = models.CharField(max_length=16, choices=CommandOutcome, null=True, blank=True)  # noqa: DJ001

    class Meta:
        ordering: ClassVar = ["-id"]
        constraints: ClassVar = [
            _one_of("priority", Priority, name="command_priority_known"),
            models.CheckConstraint(name="command_expires_later", condition=Q(expires_at__gt=models.F("issued_at"))),
            models.CheckConstraint(name="command_has_an_audience", condition=Q(device_count__gte=1)),
        ]
        indexes: ClassVar = [
            # Lists filtered by action, newest first.
            models.Index(name="command_by_action", fields=["action", "-id"]),
            # Commands whose end is not stored yet; ended commands by their outcome, newest first.
            models.Index(name="command_unfinished", fields=["id"], condition=Q(finished_at=None)),
            models.Index(name="command_by_outcome", fields=["outcome", "-id"], condition=~Q(finished_at=None)),
            models.Index(name="command_cancelled", fields=["-id"], condition=~Q(cancelled_at=None)),
            # Retention: commands that ended long ago.
            models.Index(name="command_finished", fields=["finished_at"], condition=~Q(finished_at=None)),
        ]

    def __str__(self) -> str:
        return f"{self.action} {self.id}"


class DeliveryQuerySet(models.QuerySet["Delivery"]):
    """Filters of deliveries by their present state. An overdue delivery counts as expired."""

    def open(self) -> Self:
        """Keep the open deliveries. An overdue delivery is not open."""
        return self.filter(state__in=OPEN, open_until__gt=Now())

    def overdue(self) -> Self:
        """Keep the overdue deliveries, by the condition OVERDUE."""
        return self.filter(OVERDUE)


class Delivery(models.Model):
    """One command for one device.

    `open_until` is the command's `expires_at`. After a report `received` or `running`, `open_until` is one hour after
    `expires_at`. `next_attempt_at` is when the next push is due, or NULL. A claim sets `next_attempt_at` to the end of
    the lease. `attempt_count` is the number of the last attempt. `reports_not_kept` counts reports that are not stored.
    `device_seen_at` is the device's last heartbeat before the delivery was marked as expired or withdrawn. If the
    previous version ended the delivery, `device_was` is NULL, and `device_seen_at` may be NULL. `push_arrival` is the
    FCM message as the phone got it (schemas.PushArrival).
    """

    id = models.BigAutoField(primary_key=True)
    command = models.ForeignKey(Command, on_delete=models.CASCADE, related_name="deliveries", db_index=False)
    device = models.ForeignKey(Device, on_delete=models.CASCADE, related_name="deliveries", db_index=False)
    state = models.CharField(max_length=16, choices=DeliveryState, default=DeliveryState.PENDING)
    open_until = models.DateTimeField()
    received_at = models.DateTimeField(null=True, blank=True)
    reported_at = models.DateTimeField(null=True, blank=True)
    settled_at = models.DateTimeField(null=True, blank=True)
    withdrawn_by = models.CharField(max_length=16, choices=Withdrawal, null=True, blank=True)  # noqa: DJ001
    device_seen_at = models.DateTimeField(null=True, blank=True)
    device_was = models.CharField(max_length=16, choices=DeviceWas, null=True, blank=True)  # noqa: DJ001
    delivered_via = models.CharField(max_length=16, choices=DeliveryChannel, null=True, blank=True)  # noqa: DJ001
    push_arrival = models.JSONField(null=True, blank=True)
    push_state = models.CharField(max_length=16, choices=PushState)
    attempt_count = models.PositiveIntegerField(default=0)
    failure_count = models.PositiveIntegerField(default=0)
    next_attempt_at = models.DateTimeField(null=True, blank=True)
    reports_not_kept = models.IntegerField(default=0, db_default=0)

    objects = DeliveryQuerySet.as_manager()

    class Meta:
        ordering: ClassVar = ["-id"]
        verbose_name_plural = "deliveries"
        constraints: ClassVar = [
            models.UniqueConstraint(name="delivery_once_per_device", fields=["command", "device"]),
            _one_of("state", DeliveryState, name="delivery_state_known"),
            _one_of("push_state", PushState, name="delivery_push_state_known"),
            _one_of("delivered_via", DeliveryChannel, name="delivery_channel_known", or_null=True),
            models.CheckConstraint(
                name="delivery_settled_has_a_time",
                condition=Q(state__in=OPEN, settled_at=None) | (~Q(state__in=OPEN) & Q(settled_at__isnull=False)),
            ),
            models.CheckConstraint(
                name="delivery_settled_is_not_pushed",
                condition=Q(next_attempt_at=None) | Q(state=DeliveryState.PENDING),
            ),
        ]
        indexes: ClassVar = [
            # A heartbeat's offer: this device's open deliveries.
            models.Index(name="delivery_open_by_device", fields=["device", "id"], condition=Q(state__in=OPEN)),
            # The dispatcher's claim: due pushes, oldest first.
            models.Index(name="delivery_push_due", fields=["next_attempt_at"], condition=~Q(next_attempt_at=None)),
            # The periodic search for deliveries past their time.
            models.Index(name="delivery_open_until", fields=["open_until"], condition=Q(state__in=OPEN)),
            # Retention: deliveries that settled long ago.
            models.Index(name="delivery_settled", fields=["settled_at"], condition=~Q(settled_at=None)),
            # One device's history, newest first.
            models.Index(name="delivery_of_device", fields=["device", "-id"]),
        ]

    def __str__(self) -> str:
        return f"{self.command_id} for {self.device_id}"


class Attempt(models.Model):
    """One try to send the push of one delivery. The row is written before the send, and closed after FCM's answer."""

    id = models.BigAutoField(primary_key=True)
    delivery = models.ForeignKey(Delivery, on_delete=models.CASCADE, related_name="attempts", db_index=False)
    number = models.PositiveIntegerField()
    outcome = models.CharField(max_length=16, choices=AttemptOutcome, default=AttemptOutcome.IN_FLIGHT)
    http_status = models.PositiveSmallIntegerField(null=True, blank=True)
    fcm_error = models.CharField(max_length=64, blank=True)
    message_id = models.CharField(max_length=255, blank=True)
    latency_ms = models.PositiveIntegerField(null=True, blank=True)
    detail = models.CharField(max_length=200, blank=True)
    started_at = models.DateTimeField(db_default=Now())
    finished_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        ordering: ClassVar = ["-id"]
        constraints: ClassVar = [
            models.UniqueConstraint(name="attempt_number_per_delivery", fields=["delivery", "number"]),
            _one_of("outcome", AttemptOutcome, name="attempt_outcome_known"),
            models.CheckConstraint(
                name="attempt_closed_has_a_time",
                condition=Q(outcome=AttemptOutcome.IN_FLIGHT, finished_at=None)
                | (~Q(outcome=AttemptOutcome.IN_FLIGHT) & Q(finished_at__isnull=False)),
            ),
        ]
        indexes: ClassVar = [
            # The last hour's pushes by FCM code.
            models.Index(name="attempt_finished", fields=["finished_at"], condition=~Q(finished_at=None)),
            # The periodic search for attempts that were never closed.
            models.Index(
                name="attempt_in_flight", fields=["started_at"], condition=Q(outcome=AttemptOutcome.IN_FLIGHT)
            ),
            # The admin site's filters, newest first. The indexes contain no plain successes: they are frequent, and a
            # scan of the newest rows soon fills a page with them.
            models.Index(name="attempt_fcm_error", fields=["fcm_error", "-id"], condition=~Q(fcm_error="")),
            models.Index(name="attempt_http_failure", fields=["http_status", "-id"], condition=Q(http_status__gt=200)),
        ]

    def __str__(self) -> str:
        return f"attempt {self.number}: {self.outcome}"


class Report(models.Model):
    """One report of a phone about a delivery, with its repetitions if the report is not final (`repeat_count`).

    The first final report of a delivery is its result. If the first final report came after expiry or cancellation,
    this report is the late result (`late`). Every report after a final report is a `duplicate`.
    """

    id = models.BigAutoField(primary_key=True)
    delivery = models.ForeignKey(Delivery, on_delete=models.CASCADE, related_name="reports", db_index=False)
    status = models.CharField(max_length=16, choices=ReportStatus)
    message = models.CharField(max_length=1000, blank=True)
    output = models.JSONField(null=True, blank=True)
    via = models.CharField(max_length=16, choices=DeliveryChannel, null=True, blank=True)  # noqa: DJ001
    device_finished_at = models.DateTimeField(null=True, blank=True)
    reported_at = models.DateTimeField(db_default=Now())
    repeat_count = models.IntegerField(default=0, db_default=0)
    last_repeated_at = models.DateTimeField(null=True, blank=True)
    late = models.BooleanField(default=False)
    duplicate = models.BooleanField(default=False)

    class Meta:
        ordering: ClassVar = ["-id"]
        constraints: ClassVar = [
            _one_of("status", ReportStatus, name="report_status_known"),
            _one_of("via", DeliveryChannel, name="report_channel_known", or_null=True),
            # If two final reports of a delivery arrive at the same time, this constraint refuses the second one.
            models.UniqueConstraint(
                name="report_one_final_per_delivery",
                fields=["delivery"],
                condition=Q(status__in=FINAL, duplicate=False),
            ),
        ]
        indexes: ClassVar = [
            models.Index(name="report_of_delivery", fields=["delivery", "id"]),
        ]

    def __str__(self) -> str:
        return f"{self.status} ({self.reported_at:%Y-%m-%d %H:%M:%S})"
