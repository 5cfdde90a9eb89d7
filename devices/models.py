"""The tables of devices: enrollment tokens, devices, their presence, its history, and their last refusals."""

from collections.abc import Collection
from datetime import datetime
from typing import ClassVar, Final, Literal, Self
from uuid import UUID

from django.contrib.postgres.fields import ArrayField
from django.contrib.postgres.indexes import GinIndex
from django.db import models
from django.db.models import F, Func, Q, Value
from django.db.models.functions import MD5, Coalesce, Now, NullIf
from uuid_utils.compat import uuid7

from nexmdm.common import database
from nexmdm.common.event_feed import events
from nexmdm.common.event_feed.events import EventType


class EnrollmentToken(models.Model):
    """The right to register some devices for some time. Its secret is derived, and never stored."""

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    token_sha256 = models.BinaryField(max_length=32)
    label = models.CharField(max_length=200, blank=True)
    tags = ArrayField(models.CharField(max_length=64), default=list, blank=True)
    re_enroll = models.BooleanField(default=False)
    max_uses = models.PositiveIntegerField(default=1)
    uses = models.PositiveIntegerField(default=0)
    expires_at = models.DateTimeField()
    revoked_at = models.DateTimeField(null=True, blank=True)
    created_at = models.DateTimeField(db_default=Now())

    class Meta:
        ordering: ClassVar = ["-id"]
        constraints: ClassVar = [
            models.CheckConstraint(name="enrollment_token_uses_bounded", condition=Q(uses__lte=F("max_uses"))),
            models.CheckConstraint(name="enrollment_token_has_a_use", condition=Q(max_uses__gte=1)),
        ]

    def __str__(self) -> str:
        return self.label or f"without a label, of {self.created_at:%Y-%m-%d %H:%M}Z"


DESCRIBED: Final = "jsonb_build_object('alias', alias, 'tags', tags)"
"""SQL: the data of an event about a device."""

_APPEND: Final = "(SELECT id AS device_id, alias, tags FROM devices_device WHERE id = ANY(%(ids)s)) about"


def append_events(event_type: EventType, device_ids: Collection[UUID]) -> None:
    """Append an event about each of these devices, with their aliases and tags of now. Runs in a transaction."""
    statement = events.append_for_devices(_APPEND, event_type, "NULL::uuid", DESCRIBED)
    database.execute(statement, {"ids": list(device_ids)})


FAILING_FROM: Final = 5
"""If FCM accepted none of this many pushes in a row to a device, pushing to the device counts as failing."""

PUSH_HEALTH: Final = {
    "ok": Q(push_token__isnull=False, push_token_dead_at=None, push_failures__lt=FAILING_FROM),
    "failing": Q(push_token__isnull=False, push_token_dead_at=None, push_failures__gte=FAILING_FROM),
    "dead": Q(push_token_dead_at__isnull=False),
    "none": Q(push_token=None),
}
"""The states of pushing by name; each device is in exactly one of them."""


def not_seen_after(moment: datetime) -> Q:
    """Return the condition for devices that sent no heartbeat after a moment.

    For a device that has sent none, the time of its enrollment counts. The moment is a value, not an expression, so
    that PostgreSQL knows it when it plans. Every device has a presence row; the condition still requires one, because
    PostgreSQL can then use an inner join, which may begin with either table.
    """
    silent = Q(presence__last_seen_at__lte=moment) | Q(presence__last_seen_at=None, enrolled_at__lte=moment)
    return Q(presence__isnull=False) & silent


class PushKind(models.TextChoices):
    """The kinds of push targets: the field of FCM's message that has the text."""

    TOKEN = "token"  # noqa: S105
    FID = "fid"


class DeviceQuerySet(models.QuerySet["Device"]):
    """Filters of devices by what they may do."""

    def active(self) -> Self:
        """Keep the devices that are neither revoked nor retired."""
        return self.filter(revoked_at=None)

    def reachable_by_push(self) -> Self:
        """Keep the devices whose push token is not known to be dead."""
        return self.filter(push_token__isnull=False, push_token_dead_at=None)


PUSH_OWNER: Final = MD5(
    Coalesce(
        NullIf(Func("push_token", Value(":"), Value(1), function="split_part"), Value("")),
        "push_token",
        output_field=models.CharField(),
    )
)
"""The digest of the installation in a device's push token; identity.push_owner_digest() computes the same."""

UNKEYED: Final = Q(hardware_key=None) | Q(alias__isnull=False, alias_key=None)
"""The devices that the previous version wrote, and whose comparison keys are not filled in yet."""


class Device(models.Model):
    """The record of a phone: its identity and its credentials (hashes only).

    The credential of record is `token_hash` (bcrypt). `token_digest` is a keyed index of the same token, which may be
    deleted at any time. The `next_…` fields contain a rotated credential until its first use. `generation` counts the
    credentials, and with `command_key_id` (the id of the signing key) determines the device's command key.

    `alias_key` and `hardware_key` are comparison keys (devices/identity/comparison_keys.py), NULL until they are filled
    in. `enrolled_from` is the address that got the latest credential from a registration. A retired device is always
    revoked too.

    `push_token` is the text of the push target, and `push_kind` its kind. `push_registered_at` is when the phone
    registered it with Firebase, as the phone reported it, and never in the future. `push_revived_at` is when a dead FID
    of this device last became live again.

    `push_failures` counts the pushes in a row, FAILING_FROM at most, that ended without an accepted one. When the push
    token changes or is deleted, a trigger sets it to 0.
    """

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    hardware_id = models.CharField(max_length=128)
    alias = models.CharField(max_length=128, null=True, blank=True)  # noqa: DJ001  (unique, so absent is NULL)
    alias_key = models.TextField(null=True, blank=True)  # noqa: DJ001  (absent is NULL, like the alias)
    hardware_key = models.TextField(null=True, blank=True)  # noqa: DJ001  (NULL: not filled in)
    tags = ArrayField(models.CharField(max_length=64), default=list, blank=True)
    manufacturer = models.CharField(max_length=128, blank=True)
    model = models.CharField(max_length=128, blank=True)
    os_version = models.CharField(max_length=128, blank=True)

    push_token = models.CharField(max_length=4096, null=True, blank=True)  # noqa: DJ001  (unique, so absent is NULL)
    push_kind = models.CharField(max_length=8, choices=PushKind, default=PushKind.TOKEN, db_default=PushKind.TOKEN)
    push_registered_at = models.DateTimeField(null=True, blank=True)
    push_revived_at = models.DateTimeField(null=True, blank=True)
    push_token_dead_at = models.DateTimeField(null=True, blank=True)
    push_failures = models.SmallIntegerField(default=0, db_default=0)

    token_hash = models.CharField(max_length=60)
    token_digest = models.BinaryField(max_length=32, null=True)
    token_digest_key = models.CharField(max_length=8, blank=True)
    token_used_at = models.DateTimeField(null=True, blank=True)
    command_key_id = models.CharField(max_length=8)
    generation = models.PositiveIntegerField(default=1)

    next_hash = models.CharField(max_length=60, blank=True)
    next_digest = models.BinaryField(max_length=32, null=True)
    next_digest_key = models.CharField(max_length=8, blank=True)
    next_command_key_id = models.CharField(max_length=8, blank=True)
    next_generation = models.PositiveIntegerField(default=1)
    next_expires_at = models.DateTimeField(null=True, blank=True)

    enrolled_with = models.ForeignKey(EnrollmentToken, on_delete=models.PROTECT, related_name="devices")
    enrolled_at = models.DateTimeField(db_default=Now())
    enrolled_from = models.GenericIPAddressField(null=True, blank=True)
    revoked_at = models.DateTimeField(null=True, blank=True)
    retired_at = models.DateTimeField(null=True, blank=True)

    objects = DeviceQuerySet.as_manager()

    class Meta:
        ordering: ClassVar = ["-id"]
        constraints: ClassVar = [
            models.UniqueConstraint(name="device_hardware_id", fields=["hardware_id"]),
            models.UniqueConstraint(name="device_alias", fields=["alias"]),
            # By digest: a push token may be longer than an index entry.
            models.UniqueConstraint(MD5("push_token"), name="device_push_token_has_one_owner"),
            models.CheckConstraint(
                name="device_dead_push_token_is_known",
                condition=Q(push_token_dead_at=None) | Q(push_token__isnull=False),
            ),
            # The previous version can reinstate a device, and does not know retirement.
            models.CheckConstraint(
                name="device_retired_is_revoked",
                condition=Q(retired_at=None) | Q(revoked_at__isnull=False),
            ),
            models.CheckConstraint(
                name="device_next_credential_expires",
                condition=Q(next_hash="", next_expires_at=None) | (~Q(next_hash="") & Q(next_expires_at__isnull=False)),
            ),
        ]
        indexes: ClassVar = [
            # Audiences and lists by tag.
            GinIndex(name="device_by_tag", fields=["tags"]),
            # The device with a given alias or hardware id; no constraint yet (docs/operations/upgrade.md).
            models.Index(name="device_alias_key", fields=["alias_key"]),
            models.Index(name="device_hardware_key", fields=["hardware_key"]),
            # Rows that the previous version has written.
            models.Index(name="device_without_keys", fields=["id"], condition=UNKEYED),
            # The devices that share the installation of a push token; no constraint yet, as above.
            models.Index(PUSH_OWNER, name="device_push_owner"),
            # The searches of the previous version.
            models.Index(name="device_alias_starts", fields=["alias"], opclasses=["varchar_pattern_ops"]),
            models.Index(name="device_hardware_id_starts", fields=["hardware_id"], opclasses=["varchar_pattern_ops"]),
            # The periodic deletion of rotated credentials that were never used.
            models.Index(name="device_next_expiry", fields=["next_expires_at"], condition=~Q(next_expires_at=None)),
        ]

    def __str__(self) -> str:
        return self.alias or self.hardware_id

    @property
    def push_health(self) -> Literal["ok", "failing", "dead", "none"]:
        """The state of PUSH_HEALTH that the device is in."""
        if self.push_token is None:
            return "none"
        if self.push_token_dead_at is not None:
            return "dead"
        return "failing" if self.push_failures >= FAILING_FROM else "ok"


class DeadPushToken(models.Model):
    """The digest of a push target that FCM called dead, and when the push that showed it was sent.

    A token stays dead, whichever device sends it again. A FID becomes live again when a phone registers it later.
    """

    sha256 = models.BinaryField(max_length=32, primary_key=True)
    died_at = models.DateTimeField(db_default=Now())

    class Meta:
        indexes: ClassVar = [
            # Retention.
            models.Index(name="dead_push_token_age", fields=["died_at"]),
        ]

    def __str__(self) -> str:
        return f"dead since {self.died_at}"


class Presence(models.Model):
    """The last readings of a device. Every heartbeat writes it, so it is narrow, with no index but its key.

    (An index on a column that a heartbeat writes would be updated too; without one, updates stay in place.)

    `online_from` is the beginning of the span in which the device is online. It is NULL once the end of that span is
    stored as a PresenceSpan, and for a device that has sent no heartbeat since these spans exist.
    """

    device = models.OneToOneField(Device, on_delete=models.CASCADE, primary_key=True)
    last_seen_at = models.DateTimeField(null=True, blank=True)
    online_from = models.DateTimeField(null=True, blank=True)
    last_status = models.JSONField(null=True, blank=True)
    agent_version = models.CharField(max_length=128, blank=True)

    class Meta:
        verbose_name_plural = "presence"

    def __str__(self) -> str:
        return str(self.device_id)


class PresenceSpan(models.Model):
    """A time in which a device was online, and which is over: from a heartbeat on, until its last one lost its effect.

    The span that is not over is `Presence.online_from`. It has no constraint on the device, as LastRefusal has none.
    """

    id = models.BigAutoField(primary_key=True)
    device = models.ForeignKey(
        Device, on_delete=models.CASCADE, related_name="presence_spans", db_constraint=False, db_index=False
    )
    online_from = models.DateTimeField()
    offline_at = models.DateTimeField()

    class Meta:
        indexes: ClassVar = [
            # The history of a device.
            models.Index(name="presence_span_of_device", fields=["device", "offline_at"]),
            # Retention.
            models.Index(name="presence_span_age", fields=["offline_at"]),
        ]

    def __str__(self) -> str:
        return f"online from {self.online_from} to {self.offline_at}"


class ServiceMark(models.Model):
    """The one row with the last time at which a web worker ran; each worker writes it every few seconds."""

    id = models.SmallIntegerField(primary_key=True)
    at = models.DateTimeField()

    def __str__(self) -> str:
        return f"running at {self.at}"


class ServiceGap(models.Model):
    """A time in which no web worker ran, so that no device could send a heartbeat. No two of them overlap."""

    id = models.BigAutoField(primary_key=True)
    began_at = models.DateTimeField()
    ended_at = models.DateTimeField()

    def __str__(self) -> str:
        return f"away from {self.began_at} to {self.ended_at}"


class LastRefusal(models.Model):
    """The last refusal of a device's requests: time, route and code. Written at most once a minute.

    It has a separate table, so that the rows which heartbeats write stay narrow. It has no constraint on the device:
    devices are never deleted, and a constraint would lock them.
    """

    device = models.OneToOneField(
        Device, on_delete=models.CASCADE, primary_key=True, related_name="last_refusal", db_constraint=False
    )
    at = models.DateTimeField()
    route = models.CharField(max_length=200)
    code = models.CharField(max_length=64)
    written_at = models.DateTimeField(db_default=Now())

    def __str__(self) -> str:
        return f"{self.code} at {self.route}"
