"""Enrollment: enrollment tokens and registration; revocation, reinstatement and retirement of devices."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from hashlib import sha256
from typing import Final
from uuid import UUID

from django.db import transaction
from django.db.models import F, QuerySet
from django.db.models.functions import Now
from uuid_utils.compat import uuid7

from devices import credentials, push_targets, tokens
from devices.credentials import DeviceRevoked
from devices.identity import aliases, comparison_keys
from devices.models import Device, EnrollmentToken, Presence, append_events
from nexmdm.common import database
from nexmdm.common.domain_error import DomainError
from nexmdm.common.event_feed.events import EventType
from nexmdm.common.identity import comparison_key

LOST_ANSWER_WINDOW: Final = timedelta(minutes=15)
"""The time in which a phone may repeat its registration with an enrollment token for several devices.

An enrollment token for one device has no such limit. A repeat replaces the credentials of the phone. So another client
can take over the device in this time, if the client has the enrollment token and knows the hardware id.
"""


class InvalidEnrollmentToken(DomainError):
    detail = "The enrollment token is not valid. Ask an admin for a new enrollment token."


class EnrollmentTokenExpired(DomainError):
    detail = "The enrollment token has expired. Ask an admin for a new enrollment token."


class EnrollmentTokenExhausted(DomainError):
    detail = "The enrollment token has no uses left. Ask an admin for a new enrollment token."


class EnrollmentTokenRevoked(DomainError):
    detail = "The enrollment token has been revoked. Ask an admin for a new enrollment token."


class HardwareKnown(DomainError):
    detail = (
        "A device with this hardware_id is already registered. To register the phone again, use an enrollment token "
        "that was created with re_enroll."
    )

    def __init__(self, device_id: UUID) -> None:
        super().__init__()
        self.device_id = device_id


class UnknownEnrollmentToken(DomainError):
    detail = "There is no enrollment token with this id."


class DeviceRetired(DomainError):
    detail = (
        "This device is retired. Register the phone again with any valid enrollment token. The phone then keeps its "
        "device_id."
    )


class UnknownDevice(DomainError):
    detail = "There is no device with this id."


def create_token(
    *, label: str, max_uses: int, lives: timedelta, tags: Sequence[str], re_enroll: bool
) -> tuple[EnrollmentToken, str]:
    """Create an enrollment token. Return its row, and its text, which the database does not store.

    `lives` is the time until the enrollment token expires.
    """
    token_id = uuid7()
    token = _derived(token_id, tokens.enrollment_keys()[0])
    row = EnrollmentToken.objects.create(
        id=token_id,
        token_sha256=_sha256(token),
        label=label,
        max_uses=max_uses,
        expires_at=Now() + lives,
        tags=unique(tags),
        re_enroll=re_enroll,
    )
    row.refresh_from_db()
    return row, token.text


def text_of(token_id: UUID) -> str | None:
    """Return the text of an enrollment token. The text is derived again from SECRET_KEY.

    Returns None if the enrollment token is unknown, or if its SECRET_KEY is not configured any more.
    """
    kept = EnrollmentToken.objects.filter(id=token_id).values_list("token_sha256", flat=True).first()
    for key in tokens.enrollment_keys():
        token = _derived(token_id, key)
        if kept is not None and bytes(kept) == _sha256(token):
            return token.text
    return None


def revoke_token(token_id: UUID) -> EnrollmentToken:
    """Revoke an enrollment token permanently. Its devices stay active. Raises UnknownEnrollmentToken."""
    EnrollmentToken.objects.filter(id=token_id, revoked_at=None).update(revoked_at=Now())
    row = EnrollmentToken.objects.filter(id=token_id).first()
    if row is None:
        raise UnknownEnrollmentToken
    return row


def _derived(token_id: UUID, key: tokens.Key) -> tokens.Token:
    return tokens.make(tokens.ENROLLMENT_PREFIX, token_id, tokens.digest(str(token_id), key.value))


def _sha256(token: tokens.Token) -> bytes:
    return sha256(token.text.encode()).digest()


def unique(tags: Iterable[str]) -> list[str]:
    """Return each tag once, in the order of the first occurrences."""
    return list(dict.fromkeys(tags))


@dataclass(frozen=True, slots=True)
class Registration:
    """The content of a registration, and the network address from which the phone sent it.

    - `hardware_id` has no blanks around it.
    - `alias` is a return value of identity.alias().
    - `details` contains `manufacturer`, `model` and `os_version`, if the phone sent them.
    """

    hardware_id: str
    alias: str | None = None
    push_target: push_targets.PushTarget | None = None
    agent_version: str | None = None
    details: dict[str, str] = field(default_factory=dict)
    address: str | None = None


@dataclass(frozen=True, slots=True)
class Enrolled:
    """The result of a registration.

    - `device_token` and `command_key` are secrets. Only the answer to the registration contains them.
    - `re_enrolled` is true if a known phone has registered again. It is false if a phone has only repeated its
      registration after a lost answer.
    - `replaced` is true if the device had earlier credentials, which no longer work.
    - `earlier_address` is the network address that got the earlier credentials, or None if it is unknown.
    """

    device_id: UUID
    device_token: str
    command_key: str
    re_enrolled: bool
    replaced: bool
    earlier_address: str | None


def check(presented: tokens.Token, registration: Registration) -> None:
    """Raise the errors of register(), in the same order. This check needs no transaction and is cheap.

    The check reserves nothing: register() checks again.
    """
    token = _token(presented, EnrollmentToken.objects.all())
    device = next(iter(comparison_keys.with_hardware_id(registration.hardware_id, Device.objects.all())), None)
    _refuse(token, device, registration, lost_answer=_is_lost_answer(token, device))


@transaction.atomic
def register(presented: tokens.Token, registration: Registration, secret: credentials.NewSecret) -> Enrolled:
    """Enroll a phone with a new secret, or enroll a known phone again.

    After this function, the caller must write the push target by push_targets.assign() in the same transaction. A
    refused registration does not use up the enrollment token. Registrations with one enrollment token wait for each
    other. Registrations of one hardware id also wait for each other. Raises InvalidEnrollmentToken,
    EnrollmentTokenExpired, EnrollmentTokenExhausted, EnrollmentTokenRevoked, DeviceRevoked, HardwareKnown, AliasTaken.
    """
    token = _token(presented, EnrollmentToken.objects.select_for_update())
    database.advisory_lock("hardware", registration.hardware_id)
    found = comparison_keys.with_hardware_id(registration.hardware_id, Device.objects.select_for_update())
    device = next(iter(found), None)
    known, earlier_address = device is not None, device.enrolled_from if device else None
    earlier_alias = device.alias if device else None
    lost_answer = _is_lost_answer(token, device)
    re_enrolled = known and not lost_answer
    if registration.alias is not None:
        database.advisory_lock("alias", comparison_key(registration.alias))
    _refuse(token, device, registration, lost_answer=lost_answer)
    if not lost_answer:
        EnrollmentToken.objects.filter(id=token.id).update(uses=F("uses") + 1)
    if device is None:
        device = _enrol(token, registration, secret)
    else:
        _enrol_again(device, token, registration, secret, lost_answer=lost_answer)
    if lost_answer and registration.alias not in (None, earlier_alias):
        append_events(EventType.DEVICE_UPDATED, [device.id])
    if not lost_answer:
        append_events(EventType.DEVICE_RE_ENROLLED if known else EventType.DEVICE_ENROLLED, [device.id])
    return Enrolled(
        device_id=device.id,
        device_token=secret.token_for(device.id).text,
        command_key=credentials.command_key(device.id, device.generation, device.command_key_id),
        re_enrolled=re_enrolled,
        replaced=known,
        earlier_address=earlier_address,
    )


def _token(presented: tokens.Token, rows: QuerySet[EnrollmentToken]) -> EnrollmentToken:
    token = rows.filter(id=presented.id).first()
    if token is None or bytes(token.token_sha256) != _sha256(presented):
        raise InvalidEnrollmentToken
    return token


def _is_lost_answer(token: EnrollmentToken, device: Device | None) -> bool:
    return (
        device is not None
        and device.enrolled_with_id == token.id
        and device.token_used_at is None
        and device.revoked_at is None
        and (token.max_uses == 1 or _is_recent(device))
    )


def _is_recent(device: Device) -> bool:
    return Device.objects.filter(id=device.id, enrolled_at__gt=Now() - LOST_ANSWER_WINDOW).exists()


def _refuse(token: EnrollmentToken, device: Device | None, registration: Registration, *, lost_answer: bool) -> None:
    if EnrollmentToken.objects.filter(id=token.id, expires_at__lte=Now()).exists():
        raise EnrollmentTokenExpired
    if token.uses >= token.max_uses and not lost_answer:
        raise EnrollmentTokenExhausted
    if token.revoked_at is not None:
        raise EnrollmentTokenRevoked
    if device is not None and device.retired_at is None:
        if device.revoked_at is not None:
            raise DeviceRevoked(device.id)
        if not lost_answer and not token.re_enroll:
            raise HardwareKnown(device.id)
    if registration.alias is not None:
        aliases.check(registration.alias, device.id if device else None)


def _enrol(token: EnrollmentToken, registration: Registration, secret: credentials.NewSecret) -> Device:
    device_id = uuid7()
    device = Device.objects.create(
        id=device_id,
        hardware_id=registration.hardware_id,
        alias=registration.alias,
        tags=token.tags,
        enrolled_with=token,
        enrolled_from=registration.address,
        **comparison_keys.keys_of(registration.hardware_id, registration.alias)._asdict(),
        **registration.details,
        **credentials.replaced_by(secret, device_id, generation=1),
    )
    Presence.objects.create(device=device, agent_version=registration.agent_version or "")
    return device


def _enrol_again(
    device: Device,
    token: EnrollmentToken,
    registration: Registration,
    secret: credentials.NewSecret,
    *,
    lost_answer: bool,
) -> None:
    changes = registration.details | credentials.replaced_by(
        secret, device.id, generation=max(device.generation, device.next_generation) + 1
    )
    changes["enrolled_from"] = registration.address
    kept_tags = device.tags if device.retired_at is None else []
    if registration.alias is not None:
        aliases.give(device.id, registration.alias)
    if not lost_answer:
        changes |= {"enrolled_with_id": token.id, "enrolled_at": Now(), "tags": unique([*kept_tags, *token.tags])}
        changes |= {"revoked_at": None, "retired_at": None}
    if registration.push_target is None and not lost_answer:
        changes |= push_targets.NO_TARGET
    Device.objects.filter(id=device.id).update(**changes)
    if registration.agent_version is not None:
        Presence.objects.filter(device=device).update(agent_version=registration.agent_version)
    device.generation, device.command_key_id = changes["generation"], changes["command_key_id"]


def revoke(device_id: UUID, *, with_event: bool = True) -> bool:
    """Revoke a device. Return False if the device was revoked before. Raises UnknownDevice.

    From the next request on, the device's credentials do not work. The device's row stays locked until the transaction
    ends. So no new command can be issued before the caller cancels the open commands. Without `with_event`, no event is
    appended.
    """
    if not Device.objects.select_for_update().filter(id=device_id).exists():
        raise UnknownDevice
    is_new = Device.objects.filter(id=device_id, revoked_at=None).update(revoked_at=Now()) > 0
    if is_new and with_event:
        append_events(EventType.DEVICE_REVOKED, [device_id])
    return is_new


def retire(device_id: UUID) -> bool:
    """Retire a device and free its alias. Return False if nothing changed. Raises UnknownDevice.

    The device's row stays locked until the transaction ends.
    """
    revoke(device_id, with_event=False)
    changed = Device.objects.filter(id=device_id).exclude(retired_at__isnull=False, alias=None).exists()
    if Device.objects.filter(id=device_id, retired_at=None).update(retired_at=Now()):
        append_events(EventType.DEVICE_RETIRED, [device_id])
    aliases.give(device_id, None)
    return changed


def retire_wiped(device_id: UUID, settled_at: datetime | None) -> bool:
    """Retire a device whose phone has reported its `wipe` as `succeeded`.

    `settled_at` is the time at which the `wipe` was settled before, or None if the `wipe` was open until this report.
    Returns False without a change if the device is retired already, or was enrolled again after `settled_at`.
    """
    device = Device.objects.select_for_update().filter(id=device_id, retired_at=None)
    if not (device if settled_at is None else device.filter(enrolled_at__lt=settled_at)).exists():
        return False
    return retire(device_id)


def reinstate(device_id: UUID) -> datetime | None:
    """Reinstate a device. Return the time at which the device was revoked, or None if the device was not revoked.

    Raises UnknownDevice, DeviceRetired.
    """
    device = Device.objects.select_for_update(no_key=True).only("revoked_at", "retired_at").filter(id=device_id).first()
    if device is None:
        raise UnknownDevice
    if device.retired_at is not None:
        raise DeviceRetired
    if Device.objects.filter(id=device_id, revoked_at__isnull=False).update(revoked_at=None):
        append_events(EventType.DEVICE_REINSTATED, [device_id])
    return device.revoked_at
