"""The devices of a command before it is sent: which they are, some of their names, and how many of them are silent."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from nexmdm.client import rows
from nexmdm.client.arguments import Target
from nexmdm.client.http_client import PAGE, FleetClient, Refused
from nexmdm.client.names import Names
from nexmdm.client.rows import Json

MOST_READ: Final = 20
"""Devices that are named by their whole ids are read one by one, up to so many."""

_ACTIVE: Final = ("online", "offline", "never")


@dataclass(frozen=True, slots=True)
class Audience:
    """A target whose names are found: `body` is what the API takes, `named` are the devices that were named."""

    target: Target
    body: Json
    named: list[Json]

    @classmethod
    def find(cls, names: Names, target: Target) -> "Audience":
        """Find the devices that are named. Raises NotFound."""
        if target.everything:
            return cls(target, {"all": True}, [])
        if target.tags:
            return cls(target, {"tags": list(target.tags)}, [])
        named = names.devices(target.names)
        return cls(target, {"device_ids": [row["device_id"] for row in named]}, named)

    def examples(self, client: FleetClient, most: int) -> list[Json]:
        """Return some of the devices, with their names where that is cheap."""
        if self.named:
            return _described(client, self.named[:most])
        found = (row for row in self._listed(client, most) if row["presence"] in _ACTIVE)
        return [row for row, _ in zip(found, range(most), strict=False)]

    def silent(self, client: FleetClient, seconds: int) -> tuple[int, bool]:
        """Return how many active devices were last heard from longer ago than this; and whether there may be more.

        Of many devices that were named by their ids, none is looked at.
        """
        if self.named:
            return sum(_is_silent(row, seconds) for row in _described(client, self.named)), False
        found: set[str] = set()
        are_more = False
        for tag in self.target.tags or (None,):
            listed, more = client.items("/admin/devices", PAGE, tag=tag, not_seen_for_seconds=seconds)
            found |= {row["device_id"] for row in listed if row["presence"] in _ACTIVE}
            are_more |= more
        return len(found), are_more

    def _listed(self, client: FleetClient, most: int) -> Iterator[Json]:
        """Yield devices of a target that names none: a few of a large fleet."""
        for tag in self.target.tags or (None,):
            yield from client.items("/admin/devices", most, tag=tag)[0]


def _described(client: FleetClient, named: list[Json]) -> list[Json]:
    """Return devices with their fields; those that were named by their ids are read, unless they are many."""
    bare = [row for row in named if "hardware_id" not in row]
    if not 0 < len(bare) <= MOST_READ:
        return named
    return [row if "hardware_id" in row else _read(client, row) for row in named]


def _read(client: FleetClient, row: Json) -> Json:
    try:
        return client.get(f"/admin/devices/{row['device_id']}")
    except Refused:
        # The command will be refused for the same reason, and say it better.
        return row


def _is_silent(row: Json, seconds: int) -> bool:
    if row.get("presence") not in _ACTIVE:
        return False
    last = rows.moment(row["last_seen_at"] or row["enrolled_at"])
    return datetime.now(UTC) - last > timedelta(seconds=seconds)
