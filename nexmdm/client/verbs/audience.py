"""The devices of a command before it is sent."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Final

from nexmdm.client import rows
from nexmdm.client.arguments import Target
from nexmdm.client.http_client import PAGE, FleetClient, Refused
from nexmdm.client.names import MOST_READ, Names
from nexmdm.client.rows import Json

_ACTIVE: Final = ("online", "offline", "never")


@dataclass(frozen=True, slots=True)
class Audience:
    """The target of a command, after its names were looked up.

    `body` is the target in the form of the API. `named` contains the named devices. It is empty for `all` and for tags.
    """

    target: Target
    body: Json
    named: list[Json]

    @classmethod
    def find(cls, names: Names, target: Target) -> "Audience":
        """Look up the named devices of a target. Raises NotFound, Refused or Unreachable."""
        if target.everything:
            return cls(target, {"all": True}, [])
        if target.tags:
            return cls(target, {"tags": list(target.tags)}, [])
        named = names.devices(target.names)
        return cls(target, {"device_ids": [row["device_id"] for row in named]}, named)

    def examples(self, client: FleetClient, most: int) -> list[Json]:
        """Return up to `most` of the devices.

        If more than MOST_READ of these devices are known only by id, their names are not read.
        """
        if self.named:
            return _described(client, self.named[:most])
        found = (row for row in self._listed(client, most) if row["presence"] in _ACTIVE)
        return [row for row, _ in zip(found, range(most), strict=False)]

    def described(self, client: FleetClient) -> "Audience":
        """Return the audience with all fields of its named devices.

        If more than MOST_READ devices have only an id, these devices are not read.
        """
        return replace(self, named=_described(client, self.named))

    def offline(self) -> list[Json]:
        """Return the named devices that are offline. Call described() first."""
        return [row for row in self.named if row.get("presence") == "offline"]

    def silent(self, client: FleetClient, seconds: int) -> tuple[int, bool]:
        """Return the number of active devices without a heartbeat for `seconds`, and whether there may be more.

        Call described() first. A named device whose fields described() did not read is not counted.
        """
        if self.named:
            return sum(_is_silent(row, seconds) for row in self.named), False
        found: set[str] = set()
        are_more = False
        for tag in self.target.tags or (None,):
            listed, more = client.items("/admin/devices", PAGE, tag=tag, not_seen_for_seconds=seconds)
            found |= {row["device_id"] for row in listed if row["presence"] in _ACTIVE}
            are_more |= more
        return len(found), are_more

    def _listed(self, client: FleetClient, most: int) -> Iterator[Json]:
        for tag in self.target.tags or (None,):
            yield from client.items("/admin/devices", most, tag=tag)[0]


def _described(client: FleetClient, named: list[Json]) -> list[Json]:
    bare = [row for row in named if "hardware_id" not in row]
    if not 0 < len(bare) <= MOST_READ:
        return named
    return [row if "hardware_id" in row else _read(client, row) for row in named]


def _read(client: FleetClient, row: Json) -> Json:
    try:
        return client.get(f"/admin/devices/{row['device_id']}")
    except Refused:
        # The server will refuse the command for the same reason, with a better message.
        return row


def _is_silent(row: Json, seconds: int) -> bool:
    if row.get("presence") not in _ACTIVE:
        return False
    last = rows.moment(row["last_seen_at"] or row["enrolled_at"])
    return datetime.now(UTC) - last > timedelta(seconds=seconds)
