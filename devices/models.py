"""The tables of devices: enrollment tokens, devices, presence, presence history, service gaps and last refusals."""

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
    """An enrollment token. Its secret is derived from SECRET_KEY and is not stored."""

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
"""SQL for the data of an event about a device."""

_APPEND: Final = "(SELECT id AS device_id, alias, tags FROM devices_device WHERE id = ANY(%(ids)s)) about"


def append_events(event_type: EventType, device_ids: Collection[UUID]) -> None:
    """Append an event of one type about each of these devices, with the device's present alias and tags.

    The caller must open a transaction.
    """
    statement = events.append_for_devices(_APPEND, event_type, "NULL::uuid", DESCRIBED)
    database.execute(statement, {"ids": list(device_ids)})


FAILING_FROM: Final = 5
"""If this number of pushes to a device failed in a row, the push health of the device is `failing`."""

PUSH_HEALTH: Final = {
    "ok": Q(push_token__isnull=False, push_token_dead_at=None, push_failures__lt=FAILING_FROM),
    "failing": Q(push_token__isnull=False, push_token_dead_at=None, push_failures__gte=FAILING_FROM),
    "dead": Q(push_token_dead_at__isnull=False),
    "none": Q(push_token=None),
}
"""The condition for each value of the push health. Each device matches exactly one condition."""


def not_seen_after(moment: datetime) -> Q:
    """Return the condition for devices that sent no heartbeat after `moment`.

    For a device that never sent a heartbeat, the time of its enrollment counts.
    """
    # Pass the moment as a value and not as an expression, because PostgreSQL's planner must know the moment. Keep the
    # condition on the presence row, although each device has one: with the condition, PostgreSQL can use an inner join.
    silent = Q(presence__last_seen_at__lte=moment) | Q(presence__last_seen_at=None, enrolled_at__lte=moment)
    return Q(presence__isnull=False) & silent


class PushKind(models.TextChoices):
    """The kinds of push targets: push token and FID. The value is the field of FCM's message that contains the push
    target.
    """

    TOKEN = "token"  # noqa: S105
    FID = "fid"


class DeviceQuerySet(models.QuerySet["Device"]):
    """Filters that other queries of devices use."""

    def active(self) -> Self:
        """Keep the devices that are neither revoked nor retired."""
        return self.filter(revoked_at=None)

    def reachable_by_push(self) -> Self:
        """Keep the devices that have a push target which FCM has not called dead."""
        return self.filter(push_token__isnull=False, push_token_dead_at=None)


PUSH_OWNER: Final = MD5(
    Coalesce(
        NullIf(Func("push_token", Value(":"), Value(1), function="split_part"), Value("")),
        "push_token",
        output_field=models.CharField(),
    )
)
"""SQL expression for the MD5 of the installation in a push target. identity.push_owner_digest() computes the same
value.
"""

UNKEYED: Final = Q(hardware_key=None) | Q(alias__isnull=False, alias_key=None)
"""The condition for devices without comparison keys. The previous version of NexMDM writes rows without keys."""


class Device(models.Model):
    """The record of a phone. It contains no secret: credentials are stored as hashes.

    Credentials:
    - `token_hash` is the bcrypt hash of the device token's secret.
    - `token_digest` is an HMAC of the device token. The HMAC may be deleted at any time.
    - The fields `next_…` have the new credential after a rotation, until its first use.
    - `generation` counts the credentials. `generation` and `command_key_id` determine the command key. `command_key_id`
      is the short name of a command signing key.

    Identity:
    - `alias_key` and `hardware_key` are the comparison keys, or NULL until fill() of comparison_keys.py writes them.
    - `enrolled_from` is the network address that got the latest credential from a registration.
    - A device with `retired_at` always has `revoked_at` too.

    Push:
    - `push_token` is the text of the push target, and `push_kind` its kind.
    - `push_registered_at` is the time when the phone registered the push target with Firebase, as the phone reported
      it. This time is never in the future.
    - `push_revived_at` is the time when a dead FID of this device last became live again.
    - `push_failures` counts the pushes in a row that FCM did not accept, up to FAILING_FROM. A trigger sets
      `push_failures` to 0 when `push_token` changes.
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
            # The constraint uses a digest, because a push token may be longer than an index entry.
            models.UniqueConstraint(MD5("push_token"), name="device_push_token_has_one_owner"),
            models.CheckConstraint(
                name="device_dead_push_token_is_known",
                condition=Q(push_token_dead_at=None) | Q(push_token__isnull=False),
            ),
            # The previous version does not know retirement, and can reinstate any device.
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
            # Find the device with an alias or a hardware id. There is no constraint yet (docs/operations/upgrade.md).
            models.Index(name="device_alias_key", fields=["alias_key"]),
            models.Index(name="device_hardware_key", fields=["hardware_key"]),
            # Rows that the previous version has written.
            models.Index(name="device_without_keys", fields=["id"], condition=UNKEYED),
            # Find the devices that share the installation of a push token. There is no constraint yet.
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
        """The push health of the device: a key of PUSH_HEALTH."""
        if self.push_token is None:
            return "none"
        if self.push_token_dead_at is not None:
            return "dead"
        return "failing" if self.push_failures >= FAILING_FROM else "ok"


class DeadPushToken(models.Model):
    """A push target that FCM called dead: its digest, and the time when the refused push was sent.

    A dead push token stays dead, even if another device sends it. A dead FID becomes live again if a phone registers
    the FID later.
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
    """What a device last reported. `online_from` is the beginning of the span in which the device is online.

    `online_from` is NULL if the end of the last span is stored as a PresenceSpan. `online_from` is also NULL for a
    device that has sent no heartbeat since NexMDM stores spans.
    """

    # Add no index: every heartbeat writes this row. An update is cheap only if no index contains a changed column.
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
    """A span that has ended: a time in which a device was online, from a heartbeat until the device became offline.

    The beginning of a span that has not ended is in `Presence.online_from`. The table has no foreign key constraint.
    The docstring of LastRefusal explains why.
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
    """The only row of this table has the last time at which a web worker ran. Each web worker writes it every few
    seconds.
    """

    id = models.SmallIntegerField(primary_key=True)
    at = models.DateTimeField()

    def __str__(self) -> str:
        return f"running at {self.at}"


class ServiceGap(models.Model):
    """A time in which no web worker ran, so that no device could send a heartbeat. Two service gaps never overlap."""

    id = models.BigAutoField(primary_key=True)
    began_at = models.DateTimeField()
    ended_at = models.DateTimeField()

    def __str__(self) -> str:
        return f"away from {self.began_at} to {self.ended_at}"


class LastRefusal(models.Model):
    """The last refusal of a device's requests: time, route and code. It is written at most once a minute.

    The table has no foreign key constraint on the device. Devices are never deleted, and the constraint would lock rows
    of devices.
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
