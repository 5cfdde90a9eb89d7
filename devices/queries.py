"""The fleet as an admin reads and edits it."""

from typing import Any
from uuid import UUID

from django.db.models import Q

from devices import enrollment
from devices.enrollment import UnknownDevice
from devices.identity import search
from devices.models import Device, EnrollmentToken, online_window, presences
from devices.schemas import DevicePage, DeviceQuery, DeviceRow, EnrollmentTokenPage, EnrollmentTokenRow, ListQuery
from nexmdm.common import database, pagination


def devices(query: DeviceQuery) -> DevicePage:
    """Return a page of devices, newest first."""
    rows = Device.objects.select_related("presence", "last_refusal")
    if query.status is not None:
        rows = rows.filter(presences()[query.status])
    if query.tag is not None:
        rows = rows.filter(tags__contains=[query.tag])
    if query.push is not None:
        rows = rows.filter(_PUSH[query.push])
    if query.q is not None:
        rows = rows.filter(search.matching(query.q))
    found, next_cursor = pagination.paginate(rows, query, UUID)
    online_since = database.now() - online_window()
    return DevicePage(items=[DeviceRow.of(device, online_since) for device in found], next_cursor=next_cursor)


def device(device_id: UUID) -> DeviceRow:
    """Return one device. Raises UnknownDevice."""
    found = Device.objects.select_related("presence", "last_refusal").filter(id=device_id).first()
    if found is None:
        raise UnknownDevice
    return DeviceRow.of(found, database.now() - online_window())


def change(device_id: UUID, changes: dict[str, Any]) -> None:
    """Set a device's alias or tags. Runs in a transaction. Raises UnknownDevice, AliasTaken."""
    if not Device.objects.select_for_update(no_key=True).filter(id=device_id).exists():
        raise UnknownDevice
    if "alias" in changes:
        if changes["alias"] is not None:
            enrollment.claim_alias(changes["alias"], device_id)
        enrollment.give_alias(device_id, changes["alias"])
    if "tags" in changes:
        Device.objects.filter(id=device_id).update(tags=enrollment.unique(changes["tags"]))


def enrollment_tokens(query: ListQuery) -> EnrollmentTokenPage:
    """Return a page of enrollment tokens, newest first."""
    found, next_cursor = pagination.paginate(EnrollmentToken.objects.all(), query, UUID)
    return EnrollmentTokenPage(items=[EnrollmentTokenRow.of(token) for token in found], next_cursor=next_cursor)


_PUSH = {
    "ok": Q(push_token__isnull=False, push_token_dead_at=None),
    "dead": Q(push_token_dead_at__isnull=False),
    "none": Q(push_token=None),
}
