"""Push tokens: which device has each one, and which ones FCM has called dead.

A push token begins with the id of an installation of the app, and an installation is on one phone only. So only one
device has a push token of each installation (identity.push_owner).
"""

from collections.abc import Collection, Iterable
from datetime import datetime, timedelta
from hashlib import md5, sha256
from typing import Final
from uuid import UUID

from django.db import DEFAULT_DB_ALIAS
from django.db.models import Count, F, QuerySet, Window
from django.db.models.functions import MD5, Now, RowNumber

from devices.models import PUSH_OWNER, DeadPushToken, Device
from nexmdm.common import database
from nexmdm.common.identity import push_owner, push_owner_digest

_TURNS: Final = "push token"
"""The advisory lock's name: transactions that write push tokens of one installation wait for each other."""


def assign(device_id: UUID, push_token: str | None) -> list[UUID]:
    """Set or delete a device's push token; return the devices that lose theirs. Runs in a transaction.

    Any other device with a push token of the same installation loses it. A push token that FCM called dead stays dead,
    whichever device sends it.
    """
    if push_token is not None:
        take_turns([push_token])
    # One statement, ordered by id: otherwise two phones that swap their push tokens would deadlock.
    others = Device.objects.none() if push_token is None else _of_one_installation(push_owner_digest(push_token))
    locked = (others | Device.objects.filter(id=device_id)).order_by("id").select_for_update(no_key=True)
    taken_from = [owner for owner in locked.values_list("id", flat=True) if owner != device_id]
    _forget(taken_from)
    Device.objects.filter(id=device_id).exclude(push_token=push_token).update(
        push_token=push_token, push_token_dead_at=_died_at(push_token)
    )
    return taken_from


def take_turns(push_tokens: Collection[str]) -> None:
    """Make other transactions that write push tokens of these installations wait until this one ends.

    Must come before the lock of any device.
    """
    for owner in sorted(set(map(push_owner, push_tokens))):
        database.advisory_lock(_TURNS, owner)


def mark_dead(push_tokens: Collection[str]) -> list[UUID]:
    """Store that FCM called these push tokens dead; return the devices that have them now. Runs in a transaction."""
    take_turns(push_tokens)
    died = [DeadPushToken(sha256=_digest(push_token)) for push_token in push_tokens]
    DeadPushToken.objects.bulk_create(died, ignore_conflicts=True)
    locked = _owners_of(push_tokens).order_by("id").select_for_update(no_key=True)
    owners = list(locked.values_list("id", flat=True))
    Device.objects.filter(id__in=owners, push_token_dead_at=None).update(push_token_dead_at=Now())
    return owners


def shared_installations(limit: int, using: str = DEFAULT_DB_ALIAS) -> list[str]:
    """Return the digests of up to `limit` installations whose push tokens several devices have.

    Only earlier versions wrote such rows. Reads all devices: 0.2 s for 100,000.
    """
    devices = Device.objects.using(using).filter(push_token__isnull=False).order_by()
    shared = devices.values(owner=PUSH_OWNER).annotate(count=Count("id")).filter(count__gt=1)
    return list(shared.values_list("owner", flat=True)[:limit])


def sharing(owner_digests: Collection[str], using: str = DEFAULT_DB_ALIAS) -> list[UUID]:
    """Return the devices that share one of these installations with a device seen later, or with one not revoked."""
    last_seen_first = [
        F("revoked_at").desc(nulls_first=True), F("presence__last_seen_at").desc(nulls_last=True), F("id").desc(),
    ]  # fmt: skip
    devices = Device.objects.using(using).alias(owner=PUSH_OWNER).filter(owner__in=owner_digests)
    placed = devices.alias(place=Window(RowNumber(), partition_by=PUSH_OWNER, order_by=last_seen_first))
    return list(placed.filter(place__gt=1).order_by("id").values_list("id", flat=True))


def leave_to_the_last_seen(owner_digest: str) -> list[UUID]:
    """Leave the push token of an installation to one device: of those not revoked, the one that was seen last.

    Deletes it from all others, and returns their ids. Must run in a transaction.
    """
    devices = _of_one_installation(owner_digest)
    for push_token in devices.order_by().values_list("push_token", flat=True)[:1]:
        take_turns([str(push_token)])
    list(devices.order_by("id").select_for_update(no_key=True).values_list("id"))
    losing = sharing([owner_digest])
    _forget(losing)
    return losing


def prune(kept: timedelta, limit: int) -> int:
    """Delete up to `limit` push tokens that died before `kept` ago; return how many."""
    old = DeadPushToken.objects.filter(died_at__lt=Now() - kept).order_by("died_at").values_list("sha256", flat=True)
    deleted, _ = DeadPushToken.objects.filter(sha256__in=list(old[:limit])).delete()
    return deleted


def _of_one_installation(owner_digest: str) -> QuerySet[Device]:
    return Device.objects.alias(owner=PUSH_OWNER).filter(owner=owner_digest)


def _forget(device_ids: Collection[UUID]) -> None:
    Device.objects.filter(id__in=device_ids).update(push_token=None, push_token_dead_at=None)


def _owners_of(push_tokens: Iterable[str]) -> QuerySet[Device]:
    # By MD5, as the unique index stores it.
    digests = [md5(push_token.encode(), usedforsecurity=False).hexdigest() for push_token in push_tokens]
    return Device.objects.alias(digest=MD5("push_token")).filter(digest__in=digests)


def _died_at(push_token: str | None) -> datetime | None:
    if push_token is None:
        return None
    return DeadPushToken.objects.filter(sha256=_digest(push_token)).values_list("died_at", flat=True).first()


def _digest(push_token: str) -> bytes:
    return sha256(push_token.encode()).digest()
