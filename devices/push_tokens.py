"""Push tokens: who owns one, and which ones FCM has called dead."""

from collections.abc import Collection, Iterable
from datetime import datetime, timedelta
from hashlib import md5, sha256
from uuid import UUID

from django.db.models import QuerySet
from django.db.models.functions import MD5, Now

from devices import database
from devices.models import DeadPushToken, Device


def give(device_id: UUID, push_token: str | None) -> list[UUID]:
    """Give a device another push token, or none; return the devices it was taken from. Runs in a transaction.

    A push token has one owner. One that FCM called dead stays dead on whatever device it turns up again.
    """
    database.take_turns("push token", push_token or "")
    # One statement, by id: two phones that swap their push tokens wait for each other, rather than for ever.
    owners = _owners_of([] if push_token is None else [push_token])
    locked = (owners | Device.objects.filter(id=device_id)).order_by("id").select_for_update(no_key=True)
    taken_from = [owner for owner in locked.values_list("id", flat=True) if owner != device_id]
    Device.objects.filter(id__in=taken_from).update(push_token=None, push_token_dead_at=None)
    Device.objects.filter(id=device_id).exclude(push_token=push_token).update(
        push_token=push_token, push_token_dead_at=_died_at(push_token)
    )
    return taken_from


def call_dead(push_tokens: Collection[str]) -> list[UUID]:
    """Note that FCM called these push tokens dead; return the devices that have them now. Runs in a transaction."""
    for push_token in sorted(push_tokens):
        database.take_turns("push token", push_token)
    died = [DeadPushToken(sha256=_digest(push_token)) for push_token in push_tokens]
    DeadPushToken.objects.bulk_create(died, ignore_conflicts=True)
    locked = _owners_of(push_tokens).order_by("id").select_for_update(no_key=True)
    owners = list(locked.values_list("id", flat=True))
    Device.objects.filter(id__in=owners, push_token_dead_at=None).update(push_token_dead_at=Now())
    return owners


def prune(kept: timedelta, limit: int) -> int:
    """Forget up to `limit` push tokens that died before `kept` ago; return how many."""
    old = DeadPushToken.objects.filter(died_at__lt=Now() - kept).order_by("died_at").values_list("sha256", flat=True)
    deleted, _ = DeadPushToken.objects.filter(sha256__in=list(old[:limit])).delete()
    return deleted


def _owners_of(push_tokens: Iterable[str]) -> QuerySet[Device]:
    # By MD5, which is what the unique index holds.
    digests = [md5(push_token.encode(), usedforsecurity=False).hexdigest() for push_token in push_tokens]
    return Device.objects.alias(digest=MD5("push_token")).filter(digest__in=digests)


def _died_at(push_token: str | None) -> datetime | None:
    if push_token is None:
        return None
    return DeadPushToken.objects.filter(sha256=_digest(push_token)).values_list("died_at", flat=True).first()


def _digest(push_token: str) -> bytes:
    return sha256(push_token.encode()).digest()
