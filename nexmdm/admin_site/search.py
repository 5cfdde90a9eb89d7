"""The search of the admin site. It finds devices, commands and enrollment tokens."""

from dataclasses import dataclass
from operator import attrgetter
from typing import Any, Final

from django.db.models import Model, Q, QuerySet

from commands.actions import CATALOGUE
from commands.admin.commands import only_devices
from commands.admin.deliveries import BULKY
from commands.models import Command
from devices.admin import SECRETS
from devices.identity import search
from devices.models import Device, EnrollmentToken
from devices.presence.states import presence_name
from nexmdm.common.identity import folded

SHOWN: Final = 20
"""The largest number of rows of each kind on the result page."""

LATEST: Final = 10_000
"""The number of newest commands whose notes are searched. Notes have no index."""

LONGEST: Final = 200

_key: Final = attrgetter("pk")


@dataclass(frozen=True, slots=True)
class Found:
    """The result of a search: at most SHOWN rows of each kind, newest first.

    `more_devices` and `more_commands` show whether there are more rows.
    """

    text: str
    devices: list[Any]
    commands: list[Any]
    tokens: list[Any]
    more_devices: bool = False
    more_commands: bool = False

    @property
    def only(self) -> Model | None:
        """The single row that was found, or None if there is not exactly one row."""
        rows = [*self.devices, *self.commands, *self.tokens]
        return rows[0] if len(rows) == 1 else None

    @property
    def action(self) -> str | None:
        """The action whose name is the searched text, or None."""
        return self.text.lower() if self.text.lower() in CATALOGUE else None


def find(given: str) -> Found:
    """Search for a text in names, ids, actions and notes.

    If the text is a complete id, find only the row with this id.
    """
    text = given.strip()[:LONGEST]
    if not text or "\0" in text:
        return Found(text, [], [], [])
    ids = search.ids_that_begin_with(text.lower())
    is_whole = ids is not None and ids[0] == ids[1]
    by_id = Q() if ids is None else Q(id__range=ids)
    devices = _devices(by_id if is_whole else search.matching(text), text)
    commands = _commands(by_id, "" if is_whole else text)
    tokens = list(EnrollmentToken.objects.filter(by_id).defer("token_sha256")[:SHOWN]) if by_id else []
    return Found(
        text, devices[:SHOWN], commands[:SHOWN], tokens, len(devices) > SHOWN, len(commands) > SHOWN
    )  # fmt: skip


def _devices(condition: Q, text: str) -> list[Any]:
    """Return up to SHOWN + 1 devices, newest first. A device whose name is exactly the text comes first."""
    rows: QuerySet[Any] = Device.objects.select_related("presence").defer(*SECRETS)
    rows = rows.annotate(presence_named=presence_name()).order_by("-pk")
    key = folded(text)
    # Two queries are faster than one. One query with this order could not stop after the newest matches.
    named = list(rows.filter(Q(alias_key=key) | Q(hardware_key=key)))
    others = rows.filter(condition).exclude(pk__in=[device.pk for device in named])
    return [*named, *others[: SHOWN + 1]][: SHOWN + 1]


def _commands(by_id: Q, text: str) -> list[Any]:
    """Return up to SHOWN + 1 commands, newest first.

    The attribute `only_device` of a command is its device if the command has exactly one device.
    """
    rows = Command.objects.order_by("-pk").defer(*BULKY)
    found = list(rows.filter(by_id)[: SHOWN + 1]) if by_id else []
    if text:
        found += rows.filter(action=text.lower())[: SHOWN + 1]
        found += _latest(rows).filter(note__icontains=text)[: SHOWN + 1]
    newest_first: list[Any] = sorted({command.pk: command for command in found}.values(), key=_key, reverse=True)
    shown = newest_first[: SHOWN + 1]
    alone = only_devices([command.pk for command in shown if command.device_count == 1])
    for command in shown:
        command.only_device = alone.get(command.pk)
    return shown


def _latest(rows: QuerySet[Command]) -> QuerySet[Command]:
    oldest = Command.objects.order_by("-pk").values_list("pk", flat=True)[LATEST - 1 : LATEST].first()
    return rows if oldest is None else rows.filter(pk__gte=oldest)
