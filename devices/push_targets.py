"""Push targets: which device has a push target, and which push targets FCM has called dead.

A push target is a push token of FCM or a FID (Firebase: "Manage Firebase installations"). A push token begins with the
FID of its installation, and an installation is on only one phone. So only one device may have a push target of an
installation. identity.push_owner() returns the installation of a push target.
"""

from collections.abc import Collection, Iterable, Sequence
from datetime import datetime, timedelta
from hashlib import md5, sha256
from typing import Final, NamedTuple
from uuid import UUID

from django.db import DEFAULT_DB_ALIAS
from django.db.models import Count, F, QuerySet, Window
from django.db.models.functions import MD5, Now, RowNumber

from devices.models import PUSH_OWNER, DeadPushToken, Device, PushKind
from nexmdm.common import database
from nexmdm.common.event_feed import events
from nexmdm.common.event_feed.events import Event, EventType
from nexmdm.common.identity import push_owner, push_owner_digest

REVIVED_AT_MOST_EVERY: Final = timedelta(hours=1)
"""The shortest time between two revivals of a device's dead FIDs."""

REGISTERED_EVERY: Final = timedelta(minutes=10)
"""The shortest time between two stored values of `registered_at` for the same live push target.

Without this limit, a phone whose clock is ahead of the server's clock would cause a write with each heartbeat.
"""

_TURNS: Final = "push token"
"""The purpose of the advisory locks. Transactions that write push targets of one installation wait for each other."""

NO_TARGET: Final = {
    "push_token": None, "push_kind": PushKind.TOKEN, "push_registered_at": None, "push_token_dead_at": None,
}  # fmt: skip
"""The column values of a device without a push target."""


class PushTarget(NamedTuple):
    """A push target, as a phone sends it. `registered_at` is when the phone registered it with Firebase, by server
    time.
    """

    kind: str
    value: str
    registered_at: datetime | None = None


class Death(NamedTuple):
    """A push target that FCM called dead. `at` is the time when the refused push was sent."""

    kind: str
    value: str
    at: datetime


class Assigned(NamedTuple):
    """The result of assign(). `taken_from` lists the devices that lost their push target.

    `is_changed` is true if pushes to the device now go to another push target, or if its dead FID became live again.
    """

    taken_from: list[UUID]
    is_changed: bool


def _interval(length: timedelta) -> str:
    return f"interval '{length.total_seconds():.0f} seconds'"


def _not_after_now(moment: str) -> str:
    # LEAST ignores a NULL, so LEAST alone would return now() for a NULL.
    return f"CASE WHEN {moment} IS NOT NULL THEN LEAST({moment}, now()) END"


# A push target that is dead in the row of its device stays dead after retention has deleted the record of its death.
_ASSIGN: Final = f"""
    WITH judged AS (
        SELECT id, is_same, died_at, registered_at, push_token_dead_at IS NOT NULL AS was_dead,
            %(kind)s = 'fid' AND registered_at > died_at
                AND COALESCE(push_revived_at <= now() - {_interval(REVIVED_AT_MOST_EVERY)}, true) AS revives
        FROM devices_device
        CROSS JOIN LATERAL (
            SELECT (push_token = %(value)s AND push_kind = %(kind)s) IS TRUE AS is_same
        ) same
        CROSS JOIN LATERAL (
            SELECT {_not_after_now("%(registered_at)s::timestamptz")} AS registered_at, COALESCE(
                (SELECT died_at FROM devices_deadpushtoken WHERE sha256 = %(digest)s),
                CASE WHEN is_same THEN push_token_dead_at END
            ) AS died_at
        ) sent
        WHERE id = %(device_id)s
    )
    UPDATE devices_device device
    SET push_token = %(value)s, push_kind = %(kind)s,
        push_registered_at = COALESCE(
            judged.registered_at, CASE WHEN judged.is_same THEN device.push_registered_at END
        ),
        push_token_dead_at = CASE WHEN judged.revives THEN NULL ELSE judged.died_at END,
        push_revived_at = CASE WHEN judged.revives THEN now() ELSE device.push_revived_at END,
        push_failures = CASE WHEN judged.revives OR NOT judged.is_same THEN 0 ELSE device.push_failures END
    FROM judged WHERE device.id = judged.id
    RETURNING COALESCE(judged.revives, false), judged.is_same,
        device.push_token_dead_at IS NOT NULL AND NOT (judged.is_same AND judged.was_dead)
"""  # noqa: S608  (constants of this module; values are parameters)


REGISTERED_LATER: Final = f"""
    {_not_after_now("asked.push_registered_at")} > CASE
        WHEN device.push_token_dead_at IS NULL
            THEN COALESCE(device.push_registered_at + {_interval(REGISTERED_EVERY)}, '-infinity')
        WHEN device.push_kind = 'fid'
            AND COALESCE(device.push_revived_at <= now() - {_interval(REVIVED_AT_MOST_EVERY)}, true)
            THEN device.push_token_dead_at
        ELSE 'infinity' END
"""
"""SQL condition: the phone sent the stored push target with a later `registered_at`. assign() must store this time.

In this SQL, `asked` is a row with `push_registered_at`, and `device` is the row of the device.
"""


def assign(device_id: UUID, target: PushTarget | None) -> Assigned:
    """Set the push target of a device, or delete it if `target` is None. The caller must open a transaction.

    If another device has a push target of the same installation, that device loses its push target. A push token that
    FCM called dead stays dead, even if another device sends it. A FID that FCM called dead becomes live again if the
    phone registered it after its death. Such a revival happens at most once an hour for each device.
    """
    if target is not None:
        take_turns([target.value])
    # Lock all rows in one statement, ordered by id. If not, two phones that swap their push targets would deadlock.
    others = Device.objects.none() if target is None else _of_one_installation(push_owner_digest(target.value))
    locked = (others | Device.objects.filter(id=device_id)).order_by("id").select_for_update(no_key=True)
    taken_from = [owner for owner in locked.values_list("id", flat=True) if owner != device_id]
    _forget(taken_from)
    if target is None:
        had_one = Device.objects.filter(id=device_id, push_token__isnull=False)
        return Assigned(taken_from, is_changed=had_one.update(**NO_TARGET) > 0)
    digest = _digest(target.kind, target.value)
    revives, is_same, is_newly_dead = database.row(
        _ASSIGN, target._asdict() | {"device_id": device_id, "digest": digest}
    )
    if revives:
        DeadPushToken.objects.filter(sha256=digest).delete()
    if is_newly_dead:
        events.append(Event(EventType.DEVICE_PUSH_DEAD, device_id, data={"kind": target.kind}))
    return Assigned(taken_from, is_changed=revives or not is_same)


def take_turns(push_tokens: Collection[str]) -> None:
    """Take the advisory locks of the installations of these push targets, until the transaction ends.

    Other transactions that write push targets of these installations wait. Call this function before any device is
    locked.
    """
    for owner in sorted(set(map(push_owner, push_tokens))):
        database.advisory_lock(_TURNS, owner)


_DEAD: Final = (EventType.DEVICE_PUSH_DEAD, "NULL::uuid", "jsonb_build_object('kind', kind)")
_MARK: Final = f"""
    WITH marked AS (
        UPDATE devices_device device
        SET push_token_dead_at = death.at
        FROM unnest(%(ids)s::uuid[], %(times)s::timestamptz[]) AS death (id, at)
        WHERE device.id = death.id AND device.push_token_dead_at IS NULL
        RETURNING device.id AS device_id, device.push_kind AS kind
    )
    {events.append_for_devices("marked", *_DEAD)}
"""  # noqa: S608  (constants of our modules; values are parameters)


def mark_dead(deaths: Sequence[Death]) -> list[UUID]:
    """Store that FCM called these push targets dead. Return the devices that have these push targets now.

    A FID is not dead if its device registered the FID after the push was sent: FCM's answer is about the earlier
    registration. The caller must open a transaction.
    """
    if not deaths:
        return []
    take_turns([death.value for death in deaths])
    died_at = {(death.kind, death.value): death.at for death in sorted(deaths, key=lambda death: death.at)}
    locked = _owners_of([death.value for death in deaths]).order_by("id").select_for_update(no_key=True)
    owners: list[tuple[UUID, datetime]] = []
    for device_id, kind, value, registered_at in locked.values_list(
        "id", "push_kind", "push_token", "push_registered_at"
    ):
        target = (kind, str(value))
        at = died_at.get(target)
        if at is not None and kind == PushKind.FID and registered_at is not None and registered_at > at:
            del died_at[target]
        elif at is not None:
            owners.append((device_id, at))
    dead = [DeadPushToken(sha256=_digest(*target), died_at=at) for target, at in died_at.items()]
    DeadPushToken.objects.bulk_create(dead, ignore_conflicts=True)
    ids = [device_id for device_id, _ in owners]
    database.execute(_MARK, {"ids": ids, "times": [at for _, at in owners]})
    return ids


def shared_installations(limit: int, using: str = DEFAULT_DB_ALIAS) -> list[str]:
    """Return up to `limit` installations that several devices share. Each installation is a digest (PUSH_OWNER).

    Only earlier versions of NexMDM gave several devices push targets of one installation. The function reads all
    devices: 0.2 s for 100,000 devices.
    """
    devices = Device.objects.using(using).filter(push_token__isnull=False).order_by()
    shared = devices.values(owner=PUSH_OWNER).annotate(count=Count("id")).filter(count__gt=1)
    return list(shared.values_list("owner", flat=True)[:limit])


def sharing(owner_digests: Collection[str], using: str = DEFAULT_DB_ALIAS) -> list[UUID]:
    """Return the devices that must lose their push target, because another device has the same installation.

    For each installation, the active device that was seen last keeps its push target. If no device of the installation
    is active, the device that was revoked last keeps its push target.
    """
    last_seen_first = [
        F("revoked_at").desc(nulls_first=True), F("presence__last_seen_at").desc(nulls_last=True), F("id").desc(),
    ]  # fmt: skip
    devices = Device.objects.using(using).alias(owner=PUSH_OWNER).filter(owner__in=owner_digests)
    placed = devices.alias(place=Window(RowNumber(), partition_by=PUSH_OWNER, order_by=last_seen_first))
    return list(placed.filter(place__gt=1).order_by("id").values_list("id", flat=True))


def leave_to_the_last_seen(owner_digest: str) -> list[UUID]:
    """Delete the push targets of an installation from all devices except one. Return the changed devices.

    sharing() defines which device keeps its push target. The caller must open a transaction.
    """
    devices = _of_one_installation(owner_digest)
    for push_token in devices.order_by().values_list("push_token", flat=True)[:1]:
        take_turns([str(push_token)])
    list(devices.order_by("id").select_for_update(no_key=True).values_list("id"))
    losing = sharing([owner_digest])
    _forget(losing)
    return losing


def prune(kept: timedelta, limit: int) -> int:
    """Delete up to `limit` records of push targets that died more than `kept` ago. Return the number of deleted
    records.
    """
    old = DeadPushToken.objects.filter(died_at__lt=Now() - kept).order_by("died_at").values_list("sha256", flat=True)
    deleted, _ = DeadPushToken.objects.filter(sha256__in=list(old[:limit])).delete()
    return deleted


def _of_one_installation(owner_digest: str) -> QuerySet[Device]:
    return Device.objects.alias(owner=PUSH_OWNER).filter(owner=owner_digest)


def _forget(device_ids: Collection[UUID]) -> None:
    Device.objects.filter(id__in=device_ids).update(**NO_TARGET)


def _owners_of(push_tokens: Iterable[str]) -> QuerySet[Device]:
    # The unique index contains the MD5 of push targets.
    digests = [md5(push_token.encode(), usedforsecurity=False).hexdigest() for push_token in push_tokens]
    return Device.objects.alias(digest=MD5("push_token")).filter(digest__in=digests)


def _digest(kind: str, value: str) -> bytes:
    # The digest of a push token is its plain SHA-256, because earlier versions stored it like this. No push target
    # contains a NUL, so a FID never has the digest of a push token.
    return sha256(value.encode() if kind == PushKind.TOKEN else f"{kind}\0{value}".encode()).digest()
