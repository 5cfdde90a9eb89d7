"""The comparison keys of devices. Two aliases are the same if their keys are equal.

identity.comparison_key() computes a key; the columns `alias_key` and `hardware_key` store the keys. The previous
version of NexMDM writes rows without keys. If the previous version changes an alias, a trigger deletes the key. fill()
writes the missing keys. Until then, the functions of this module compute the keys of these rows, so their results are
always complete.

Keys are not unique in the database, because earlier versions may have stored equal aliases or hardware ids. An alias or
hardware id then belongs to the device that was enrolled first. The functions `shadowed_…()` return the later devices.
Before code writes a key, it must take the lock of the key (database.advisory_lock).
"""

from collections.abc import Iterable
from typing import Final, NamedTuple
from uuid import UUID

from django.db import DEFAULT_DB_ALIAS, connections, transaction
from django.db.models import Q, QuerySet

from devices.models import UNKEYED, Device
from nexmdm.common.identity import comparison_key

_FILL: Final = """
    UPDATE devices_device device SET hardware_key = made.hardware_key, alias_key = made.alias_key
    FROM unnest(%s::uuid[], %s::text[], %s::text[]) AS made (id, hardware_key, alias_key)
    WHERE device.id = made.id
"""
_EXIST: Final = """
    SELECT EXISTS (
        SELECT FROM pg_attribute WHERE attrelid = to_regclass('devices_device') AND attname = 'alias_key'
    )
"""
_SHADOWED_ALIASES: Final = """
    SELECT id FROM (
        SELECT id, first_value(id) OVER (PARTITION BY alias_key ORDER BY id) AS first
        FROM devices_device WHERE alias_key IS NOT NULL
    ) same WHERE id <> first ORDER BY id
"""
# These rows are only candidates. Two hardware ids that differ in case are different, but they have the same key.
_SIMILAR_HARDWARE_IDS: Final = """
    SELECT id, hardware_id FROM (
        SELECT id, hardware_id, count(*) OVER (PARTITION BY hardware_key) AS count
        FROM devices_device WHERE hardware_key IS NOT NULL
    ) alike WHERE count > 1 ORDER BY id
"""


class _Unkeyed(NamedTuple):
    id: UUID
    hardware_id: str
    alias: str | None


class Keys(NamedTuple):
    """The comparison keys of one device. The fields have the names of the columns."""

    hardware_key: str
    alias_key: str | None


def keys_of(hardware_id: str, alias: str | None) -> Keys:
    """Return the comparison keys of a device with this hardware id and alias."""
    return Keys(comparison_key(hardware_id), None if alias is None else comparison_key(alias))


def with_hardware_id(hardware_id: str, rows: QuerySet[Device]) -> list[Device]:
    """Return the devices in `rows` that have this hardware id. The device that was enrolled first comes first.

    `hardware_id` must have no blanks around it; blanks in the rows are ignored. Hardware ids that differ in upper and
    lower case are different.
    """
    key = comparison_key(hardware_id)
    unkeyed = [row.id for row in _unkeyed() if comparison_key(row.hardware_id) == key]
    similar = rows.filter(Q(hardware_key=key) | Q(id__in=unkeyed)).order_by("id")
    return [device for device in similar if device.hardware_id.strip() == hardware_id]


def with_aliases(aliases: Iterable[str]) -> QuerySet[Device]:
    """Return the devices that have one of these aliases. The device that was enrolled first comes first.

    Revoked and retired devices are included. Upper and lower case make no difference.
    """
    keys = {comparison_key(alias) for alias in aliases}
    unkeyed = [row.id for row in _unkeyed() if row.alias is not None and comparison_key(row.alias) in keys]
    return Device.objects.filter(Q(alias_key__in=keys) | Q(id__in=unkeyed)).order_by("id")


def _unkeyed() -> Iterable[_Unkeyed]:
    rows = Device.objects.filter(UNKEYED).order_by().values_list("id", "hardware_id", "alias")
    return (_Unkeyed(*row) for row in rows)


def exist(using: str) -> bool:
    """Return whether the database has the columns for keys. If the columns are missing, a migration has not run yet."""
    with connections[using].cursor() as cursor:
        cursor.execute(_EXIST)
        return bool(cursor.fetchone()[0])


def fill(limit: int, using: str = DEFAULT_DB_ALIAS) -> int:
    """Write the keys of up to `limit` rows without keys. Return the number of rows.

    Rows that another transaction has locked are skipped.
    """
    with transaction.atomic(using), connections[using].cursor() as cursor:
        free = Device.objects.using(using).filter(UNKEYED).select_for_update(no_key=True, skip_locked=True)
        rows = list(free.order_by("id").values_list("id", "hardware_id", "alias")[:limit])
        if rows:
            made = [(device_id, *keys_of(hardware_id, alias)) for device_id, hardware_id, alias in rows]
            cursor.execute(_FILL, [list(column) for column in zip(*made, strict=True)])
    return len(rows)


def shadowed_aliases(using: str = DEFAULT_DB_ALIAS) -> list[UUID]:
    """Return the devices whose alias belongs to a device that was enrolled before them."""
    with connections[using].cursor() as cursor:
        cursor.execute(_SHADOWED_ALIASES)
        return [device_id for (device_id,) in cursor.fetchall()]


def shadowed_hardware_ids(using: str = DEFAULT_DB_ALIAS) -> list[UUID]:
    """Return the devices with the same hardware id as an earlier device. Blanks around a hardware id do not count."""
    with connections[using].cursor() as cursor:
        cursor.execute(_SIMILAR_HARDWARE_IDS)
        similar = cursor.fetchall()
    first: dict[str, UUID] = {}
    return [device_id for device_id, text in similar if first.setdefault(text.strip(), device_id) != device_id]
