"""Reads and changes of devices and enrollment tokens for the admin API."""

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from django.db.models import Q, QuerySet

from devices import enrollment
from devices.enrollment import DeviceRetired, UnknownDevice
from devices.identity import aliases, search
from devices.models import (
    PUSH_HEALTH,
    Device,
    EnrollmentToken,
    append_events,
    not_seen_after,
)
from devices.presence.states import offline_since, presence_name, presences
from devices.schemas import DevicePage, DeviceQuery, DeviceRow, EnrollmentTokenPage, EnrollmentTokenRow, ListQuery
from nexmdm.common import database, pagination
from nexmdm.common.event_feed.events import EventType


def devices(query: DeviceQuery) -> DevicePage:
    """Return a page of devices, newest first. Raises ForeignCursor."""
    rows = _described().filter(*_conditions(query, database.now()))
    found, next_cursor = pagination.paginate(rows, query, UUID)
    return DevicePage(items=[DeviceRow.of(device) for device in found], next_cursor=next_cursor)


def _described() -> QuerySet[Any]:
    return Device.objects.select_related("presence", "last_refusal").annotate(
        presence_named=presence_name(), offline_since=offline_since()
    )


def _conditions(query: DeviceQuery, now: datetime) -> Iterator[Q]:
    if query.status is not None:
        yield presences()[query.status]
    if query.tag is not None:
        yield Q(tags__contains=[query.tag])
    if query.model is not None:
        yield Q(model=query.model)
    if query.os_version is not None:
        yield Q(os_version=query.os_version)
    if query.agent_version is not None:
        yield Q(presence__agent_version=query.agent_version)
    if query.not_seen_for_seconds:
        yield not_seen_after(now - timedelta(seconds=query.not_seen_for_seconds))
    if query.push is not None:
        yield PUSH_HEALTH[query.push]
    if query.q is not None:
        yield search.matching(query.q)


def device(device_id: UUID) -> DeviceRow:
    """Return one device. Raises UnknownDevice."""
    found = _described().filter(id=device_id).first()
    if found is None:
        raise UnknownDevice
    return DeviceRow.of(found)


def change(device_id: UUID, changes: dict[str, Any]) -> bool:
    """Set the alias, the tags, or both, of a device. Return False if the device has these values already.

    `changes` contains `alias`, `tags` or both. The caller must open a transaction. Raises UnknownDevice, DeviceRetired,
    AliasTaken.
    """
    found = (
        Device.objects.select_for_update(no_key=True).only("alias", "tags", "retired_at").filter(id=device_id).first()
    )
    if found is None:
        raise UnknownDevice
    if found.retired_at is not None:
        raise DeviceRetired
    wanted = changes | ({"tags": enrollment.unique(changes["tags"])} if "tags" in changes else {})
    if "alias" in wanted:
        if wanted["alias"] is not None:
            aliases.claim(wanted["alias"], device_id)
        aliases.give(device_id, wanted["alias"])
    if "tags" in wanted:
        Device.objects.filter(id=device_id).update(tags=wanted["tags"])
    is_changed = any(getattr(found, name) != value for name, value in wanted.items())
    if is_changed:
        append_events(EventType.DEVICE_UPDATED, [device_id])
    return is_changed


def enrollment_tokens(query: ListQuery) -> EnrollmentTokenPage:
    """Return a page of enrollment tokens, newest first. Raises ForeignCursor."""
    found, next_cursor = pagination.paginate(EnrollmentToken.objects.all(), query, UUID)
    return EnrollmentTokenPage(items=[EnrollmentTokenRow.of(token) for token in found], next_cursor=next_cursor)
