"""The names that an admin can use for devices, commands and enrollment tokens."""

import re
import string
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Any, Final
from uuid import UUID

from nexmdm.client.arguments import IDENTIFIER, LITERAL
from nexmdm.client.http_client import PAGE, FleetClient, Refused
from nexmdm.client.profiles.memory import LAST, Kind, Memory
from nexmdm.client.suggestions import did_you_mean, fold

Json = dict[str, Any]

MOST_LOOKED_AT: Final = 20_000
"""The largest number of rows of a list that the client compares with a name."""

MOST_READ: Final = 20
"""The largest number of devices that are read with a separate request each."""

LOST: Final = "lost: "
"""The start of the note of each command that `nexmdm lost` sends. The alias of the phone follows."""

SHOWN: Final = 10
_LONGEST: Final = 128
_START: Final = re.compile(r"[0-9a-f][0-9a-f-]{3,35}", re.IGNORECASE)
_TOKEN: Final = re.compile(r"nxe_([0-9A-Za-z]{22})_[0-9A-Za-z]{49}")
_DIGITS: Final = string.digits + string.ascii_uppercase + string.ascii_lowercase
_ID_BITS: Final = 128
_TIME_DIGITS: Final = 12
"""The number of hexadecimal digits of the time in a UUIDv7. The time is in ms (RFC 9562, section 5.7)."""


class NotFound(Exception):
    """No row has this name, or several rows have it. The message lists similar names or these rows."""


class Names:
    """A finder of devices, commands and enrollment tokens by name.

    The methods that find something raise NotFound, Refused or Unreachable.
    """

    def __init__(self, client: FleetClient, memory: Memory) -> None:
        self._client = client
        self._memory = memory
        self._used: dict[Kind, str] = {}

    def use(self, kind: Kind, identifier: str) -> str:
        """Return `identifier`. The next call of keep() stores `identifier` as `@last`."""
        self._used[kind] = identifier
        return identifier

    def keep(self) -> None:
        """Store the ids of use() as `@last`, for later calls of the client."""
        self._memory.remember(self._used)

    def device(self, name: str) -> Json:
        """Return the device with this name: an alias, a hardware id, a device id or its start, or `@last`.

        If the name is a complete device id, the row contains only `device_id`.
        """
        found = self._last("device") if name == LAST else name
        row = {"device_id": found.lower()} if IDENTIFIER.fullmatch(found) else self._search(found)
        self.use("device", row["device_id"])
        return row

    def devices(self, names: Iterable[str]) -> list[Json]:
        """Return the devices with these names, without duplicates."""
        found = {row["device_id"]: row for row in map(self.device, names)}
        return list(found.values())

    def device_id(self, name: str) -> str:
        """Return the id of the device with this name."""
        return str(self.device(name)["device_id"])

    def of_devices(self, device_ids: Collection[str]) -> dict[str, str]:
        """Return the alias or the hardware id of each device, by device id.

        The newest devices are read with one request. Up to MOST_READ other devices are read with a separate request
        each. A device that is not found is left out.
        """
        if not device_ids:
            return {}
        rows, _ = self._client.items("/admin/devices", PAGE)
        found = {row["device_id"]: row["alias"] or row["hardware_id"] for row in rows}
        for device_id in [one for one in device_ids if one not in found][:MOST_READ]:
            # The device may not exist.
            with suppress(Refused):
                row = self._client.get(f"/admin/devices/{device_id}")
                found[device_id] = row["alias"] or row["hardware_id"]
        return found

    def command_id(self, name: str) -> str:
        """Return the id of the command with this name: an id, the start of an id, or `@last`."""
        found = self._last("command") if name == LAST else name.lower()
        if not IDENTIFIER.fullmatch(found):
            found = self._command_that_begins_with(found)
        return self.use("command", found)

    def token_id(self, name: str) -> str:
        """Return the id of an enrollment token.

        `name` is the label, the id, the start of the id, or the enrollment token itself.
        """
        if IDENTIFIER.fullmatch(name):
            return name.lower()
        if contained := _id_in_token(name):
            return contained
        rows = list(islice(self._client.rows("/admin/enrollment-tokens", PAGE), MOST_LOOKED_AT))
        found = [row for row in rows if row["label"] and fold(row["label"]) == fold(name)]
        found = [row for row in found if row["revoked_at"] is None] or found
        if not found and _START.fullmatch(name):
            found = [row for row in rows if row["id"].startswith(name.lower())]
        if len(found) == 1:
            return str(found[0]["id"])
        if not found:
            meant = did_you_mean(name, [row["label"] for row in rows if row["label"]])
            raise NotFound(f"No enrollment token has the label or id {name!r}.{meant}")
        listed = [f"  {row['id']}  {row['label']}  {row['created_at']}" for row in found[:SHOWN]]
        raise NotFound("\n".join([f"{len(found)} enrollment tokens have the name {name!r}:", *listed, *_rest(found)]))

    def _last(self, kind: Kind) -> str:
        last = self._memory.last(kind)
        if last is None:
            raise NotFound(f"There is no last {kind} yet. Write the id of a {kind} instead of {LAST}.")
        return last

    def _search(self, name: str) -> Json:
        literal = name.removeprefix(LITERAL)
        if not 1 <= len(literal) <= _LONGEST:
            raise NotFound(f"No device has the name {name!r}. A name has 1 to {_LONGEST} characters.")
        found: list[Json] = []
        for row in islice(self._client.rows("/admin/devices", PAGE, q=literal), MOST_LOOKED_AT):
            if row["alias"] == literal:
                return row
            found.append(row)
        for meant in _by_rank(found, literal, only_aliases=literal != name):
            if len(meant) == 1:
                return meant[0]
            raise NotFound(
                f"{len(meant)} devices have the name {name!r}:\n{_listed(meant)}\nWrite the id of one device."
            )
        raise NotFound(f"No device has the alias, hardware id or id {name!r}.{self._suggestion(literal, found)}")

    def _suggestion(self, name: str, found: list[Json]) -> str:
        near, _ = self._client.items("/admin/devices", PAGE, q=name[:3])
        newest, _ = self._client.items("/admin/devices", PAGE)
        known = [row[key] for row in (*found, *near, *newest) for key in ("alias", "hardware_id") if row[key]]
        if was_lost := self._lost(name):
            return was_lost
        if meant := did_you_mean(name, known):
            return meant
        return f" Devices with this text in their names:\n{_listed(found)}" if found else ""

    def _lost(self, alias: str) -> str:
        """Return a sentence about the lost phone that had this alias. The sentence contains the device id.

        Return an empty string if there is no lost phone with this alias.
        """
        for row in self._client.items("/admin/commands", PAGE, action="wipe")[0]:
            if fold(row["note"]) == fold(LOST + alias) and (device_ids := row["target"].get("device_ids")):
                return (
                    f" The phone with this alias was lost, and a wipe was sent on {row['issued_at']}. The wipe "
                    f"succeeded, and the device has no alias any more. Write the id of the device: {device_ids[0]}."
                )
        return ""

    def _command_that_begins_with(self, start: str) -> str:
        if not _START.fullmatch(start):
            raise NotFound(
                f"{start!r} is not an id of a command. Write the id, the first four or more digits of the id, or "
                f"{LAST}."
            )
        found = [row for row in self._commands_around(start) if row["request_id"].startswith(start)]
        if len(found) == 1:
            return str(found[0]["request_id"])
        if not found:
            raise NotFound(f"No command has an id that begins with {start!r}.")
        listed = [f"  {row['request_id']}  {row['action']}  {row['issued_at']}" for row in found[:SHOWN]]
        raise NotFound("\n".join([f"{len(found)} ids of commands begin with {start!r}:", *listed, *_rest(found)]))

    def _commands_around(self, start: str) -> Iterator[Json]:
        """Yield commands, newest first, beginning with the newest command whose id can begin with `start`.

        The id of a command contains the time of the command.
        """
        latest = int(start.replace("-", "")[:_TIME_DIGITS].ljust(_TIME_DIGITS, "f"), 16)
        try:
            # One day more, because a clock may have been wrong.
            until = datetime.fromtimestamp(latest / 1000, UTC) + timedelta(days=1)
        except (ValueError, OverflowError):
            until = datetime.max.replace(tzinfo=UTC)
        shown = until.isoformat(timespec="seconds").replace("+00:00", "Z")
        for row in islice(self._client.rows("/admin/commands", PAGE, until=shown), MOST_LOOKED_AT):
            if row["request_id"] < start and not row["request_id"].startswith(start):
                return
            yield row


def _id_in_token(text: str) -> str | None:
    """Return the id of an enrollment token, from the token itself. Return None for another text.

    The id is the 22 characters after `nxe_`, in base 62.
    """
    found = _TOKEN.fullmatch(text)
    if found is None:
        return None
    number = 0
    for digit in found[1]:
        number = number * len(_DIGITS) + _DIGITS.index(digit)
    return str(UUID(int=number)) if number.bit_length() <= _ID_BITS else None


def _by_rank(rows: list[Json], name: str, *, only_aliases: bool) -> Iterator[list[Json]]:
    """Yield groups of the devices that `name` may mean. The most likely group is first."""
    folded = fold(name)
    groups = [[row for row in rows if row["alias"] is not None and fold(row["alias"]) == folded]]
    if not only_aliases:
        digits = name.replace("-", "").lower() if _START.fullmatch(name) else None
        groups += [
            [row for row in rows if row["hardware_id"] == name],
            [row for row in rows if fold(row["hardware_id"]) == folded],
            [row for row in rows if digits and row["device_id"].replace("-", "").startswith(digits)],
        ]
    return filter(None, groups)


def _listed(rows: list[Json]) -> str:
    lines = (f"  {row['device_id']}  {row['alias'] or '-'}  {row['hardware_id']}" for row in rows[:SHOWN])
    return "\n".join([*lines, *_rest(rows)])


def _rest(rows: list[Json]) -> list[str]:
    return [f"  and {len(rows) - SHOWN} more"] if len(rows) > SHOWN else []
