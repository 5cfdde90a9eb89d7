"""Audiences: which devices an admin means by ids, aliases, tags, or all."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from django.contrib.postgres.fields import ArrayField
from django.db.models import CharField, F, Func, Value

from devices.models import Device


class UnknownDevices(Exception):
    """Some of the devices named are not enrolled, or revoked."""

    def __init__(self, unknown: Sequence[str]) -> None:
        super().__init__(f"{len(unknown)} of the devices named are not known (or revoked). Nothing was done.")
        self.unknown = unknown


class EmptyAudience(Exception):
    """No active device matches the target. Nothing was queued."""


@dataclass(frozen=True, slots=True)
class Target:
    """Whom a command is for: exactly one of the four is given (a list counts each entry once)."""

    device_ids: list[UUID] = field(default_factory=list)
    aliases: list[str] = field(default_factory=list)
    tags: list[str] = field(default_factory=list)
    everyone: bool = False

    def named(self) -> set[str] | None:
        """Return the ids or aliases that must all exist, or None where the target describes rather than names."""
        if self.device_ids:
            return {str(device_id) for device_id in self.device_ids}
        return set(self.aliases) or None

    def where(self) -> tuple[str, dict[str, Any]]:
        """Return the SQL condition on devices_device that selects the active devices meant, and its parameters."""
        if self.device_ids:
            return "revoked_at IS NULL AND id = ANY(%(ids)s)", {"ids": self.device_ids}
        if self.aliases:
            return "revoked_at IS NULL AND alias = ANY(%(aliases)s)", {"aliases": self.aliases}
        if self.tags:
            return "revoked_at IS NULL AND tags && %(tags)s::varchar[]", {"tags": self.tags}
        return "revoked_at IS NULL", {}


def lock_named(target: Target) -> None:
    """Hold the devices a target names as they are, to the end of the transaction. Raises UnknownDevices."""
    named = target.named()
    if named is None:
        return
    if target.device_ids:
        found = {str(key) for key in lock(target.device_ids)}
    else:
        meant = Device.objects.active().select_for_update(no_key=True).order_by("id")
        found = {str(alias) for alias in meant.filter(alias__in=target.aliases).values_list("alias", flat=True)}
    if unknown := sorted(named - found):
        raise UnknownDevices(unknown)


def lock(device_ids: Sequence[UUID]) -> list[UUID]:
    """Hold these devices as they are, to the end of the transaction; return those that are enrolled and active."""
    meant = Device.objects.active().select_for_update(no_key=True).order_by("id")
    return list(meant.filter(id__in=device_ids).values_list("id", flat=True))


def retag(tag: str, add: Sequence[UUID], remove: Sequence[UUID]) -> tuple[int, int]:
    """Put a tag on some devices and take it off others; return how many changed. Runs in a transaction.

    Raises UnknownDevices for ids that are not enrolled.
    """
    asked = {str(key) for key in (*add, *remove)}
    rows = Device.objects.select_for_update(no_key=True).order_by("id").filter(id__in=[*add, *remove])
    if unknown := sorted(asked - {str(key) for key in rows.values_list("id", flat=True)}):
        raise UnknownDevices(unknown)
    added = Device.objects.filter(id__in=add).exclude(tags__contains=[tag]).update(tags=_append(tag))
    removed = Device.objects.filter(id__in=remove, tags__contains=[tag]).update(tags=_remove(tag))
    return added, removed


_TAGS = ArrayField(CharField(max_length=64))


def _append(tag: str) -> Func:
    return Func(F("tags"), Value(tag), function="array_append", output_field=_TAGS)


def _remove(tag: str) -> Func:
    return Func(F("tags"), Value(tag), function="array_remove", output_field=_TAGS)
