"""The devices that an admin names: by ids, by aliases, by tags, or all devices."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from django.contrib.postgres.fields import ArrayField
from django.db.models import CharField, F, Func, Value

from devices.identity import comparison_keys
from devices.models import Device, append_events
from nexmdm.common import database
from nexmdm.common.domain_error import DomainError
from nexmdm.common.event_feed.events import EventType
from nexmdm.common.identity import comparison_key


class UnknownDevices(DomainError):
    detail = "Some devices in the request are unknown, revoked or retired."

    def __init__(self, unknown: Iterable[str], gone: Mapping[str, datetime | None] | None = None) -> None:
        left = {name: "revoked" if retired_at is None else "retired" for name, retired_at in (gone or {}).items()}
        self.reasons = dict(sorted((dict.fromkeys(unknown, "unknown") | left).items()))
        """`unknown`, `revoked` or `retired` for each id or alias. The key is the id or alias as the request contains
        it.
        """
        verb = "is" if len(self.reasons) == 1 else "are"
        some = f"{len(self.reasons)} of the devices in the request {verb} unknown, revoked or retired."
        super().__init__(f"{some} Nothing was done.")


class DevicesBusy(Exception):
    """Another transaction has locked a device of the target. lock_free_named() returns this error, and does not raise
    it.
    """


class EmptyAudience(DomainError):
    detail = "No active device matches the target. No command was sent."


@dataclass(frozen=True, slots=True)
class Target:
    """The target of a command. Exactly one of the four fields is set. A repeated value in a list counts once."""

    device_ids: list[UUID] = field(default_factory=list)
    aliases: list[str] = field(default_factory=list)
    tags: list[str] = field(default_factory=list)
    everyone: bool = False

    def where(self) -> tuple[str, dict[str, Any]]:
        """Return an SQL condition that selects the active devices of the target, and its parameters.

        The condition is for rows of devices_device. Raises ValueError for a target with aliases. Before this function,
        call lock_named(), which replaces aliases by ids.
        """
        if self.aliases:
            raise ValueError("resolve aliases first, by lock_named()")
        if self.device_ids:
            return "revoked_at IS NULL AND id = ANY(%(ids)s)", {"ids": self.device_ids}
        if self.tags:
            return "revoked_at IS NULL AND tags && %(tags)s::varchar[]", {"tags": self.tags}
        return "revoked_at IS NULL", {}


# Lock revoked devices too: only the locked row has the present value of revoked_at.
_HOLD: Final = """
    SELECT id, revoked_at, retired_at FROM devices_device WHERE id = ANY(%(ids)s::uuid[]) ORDER BY id FOR NO KEY UPDATE
"""
_EXISTING: Final = "SELECT id FROM devices_device WHERE id = ANY(%(ids)s::uuid[])"


def lock_named(target: Target) -> tuple[datetime, Target]:
    """Lock the devices that `target` names by id or alias, until the transaction ends.

    Returns the time of the transaction, and the target with ids in place of aliases. A target that names tags or all
    devices locks nothing. Raises UnknownDevices if a named device is unknown, revoked or retired.
    """
    if target.aliases:
        return database.now(), Target(device_ids=_lock_by_alias(target.aliases))
    if not target.device_ids:
        return database.now(), target
    now, held = _hold(target.device_ids, _HOLD)
    if unknown := _unknown(target, held):
        raise unknown
    return now, target


def lock_free_named(targets: Sequence[Target]) -> tuple[datetime, list[UnknownDevices | DevicesBusy | None]]:
    """Lock the devices that `targets` name by id, until the transaction ends. This function never waits for a lock.

    Returns the time of the transaction, and a list with one entry for each target. The entry is None if this function
    has locked all devices of the target, and all of them are active. In all other cases, the entry is the error.
    """
    named = {device_id for target in targets for device_id in target.device_ids}
    now, held = _hold(named, f"{_HOLD} SKIP LOCKED")
    missing = list(named - held.keys())
    busy = {device_id for (device_id,) in database.rows(_EXISTING, {"ids": missing})} if missing else set()
    return now, [_unknown(target, held) if busy.isdisjoint(target.device_ids) else DevicesBusy() for target in targets]


def _hold(device_ids: Collection[UUID], hold: str) -> tuple[datetime, dict[UUID, tuple[Any, Any]]]:
    ((now,),), rows = database.execute_batch("SELECT now()", hold, parameters={"ids": list(device_ids)})
    return now, {device_id: (revoked_at, retired_at) for device_id, revoked_at, retired_at in rows}


def _unknown(target: Target, held: Mapping[UUID, tuple[Any, Any]]) -> UnknownDevices | None:
    unknown = [str(device_id) for device_id in target.device_ids if device_id not in held]
    gone = {str(key): held[key][1] for key in target.device_ids if key in held and held[key][0] is not None}
    return UnknownDevices(unknown, gone) if unknown or gone else None


def _lock_by_alias(aliases: Sequence[str]) -> list[UUID]:
    locked = comparison_keys.with_aliases(aliases).select_for_update(no_key=True)
    first: dict[str, tuple[UUID, Any, Any]] = {}
    for device_id, alias, revoked_at, retired_at in locked.values_list("id", "alias", "revoked_at", "retired_at"):
        first.setdefault(comparison_key(str(alias)), (device_id, revoked_at, retired_at))
    active = {key: device_id for key, (device_id, revoked_at, _) in first.items() if revoked_at is None}
    if missing := {alias for alias in aliases if comparison_key(alias) not in active}:
        gone = {alias: first[comparison_key(alias)][2] for alias in missing if comparison_key(alias) in first}
        raise UnknownDevices(missing - set(gone), gone)
    return sorted(active.values())


def retag(tag: str, add: Sequence[UUID], remove: Sequence[UUID]) -> tuple[int, int]:
    """Add a tag to the devices `add`, and remove the tag from the devices `remove`.

    Returns how many devices got the tag, and how many devices lost the tag. A device in both lists loses the tag. The
    caller must open a transaction. If a device is unknown or retired, the function changes nothing and raises
    UnknownDevices.
    """
    asked = {str(key) for key in (*add, *remove)}
    rows = Device.objects.select_for_update(no_key=True).order_by("id").filter(id__in=[*add, *remove])
    known = {str(key): retired_at for key, retired_at in rows.values_list("id", "retired_at")}
    retired = {key: retired_at for key, retired_at in known.items() if retired_at is not None}
    if asked - set(known) or retired:
        raise UnknownDevices(asked - set(known), retired)
    with_tag = set(Device.objects.filter(id__in=known, tags__contains=[tag]).values_list("id", flat=True))
    added = set(add) - set(remove) - with_tag
    removed = set(remove) & with_tag
    Device.objects.filter(id__in=added).update(tags=_append(tag))
    Device.objects.filter(id__in=removed).update(tags=_remove(tag))
    append_events(EventType.DEVICE_UPDATED, added | removed)
    return len(added), len(removed)


_TAGS = ArrayField(CharField(max_length=64))


def _append(tag: str) -> Func:
    return Func(F("tags"), Value(tag), function="array_append", output_field=_TAGS)


def _remove(tag: str) -> Func:
    return Func(F("tags"), Value(tag), function="array_remove", output_field=_TAGS)
