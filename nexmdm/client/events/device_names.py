"""The names of the devices in events: the alias, or the hardware id of a device without an alias."""

from collections.abc import Iterable
from typing import Final

from nexmdm.client.http_client import PAGE, FleetClient, Refused, Unreachable
from nexmdm.client.names import MOST_READ
from nexmdm.client.rows import Json

_GONE: Final = "not_found"


class DeviceNames:
    """The names of devices, by device id. Each name is read from the server at most once.

    If `client` is None, only the aliases in events are known.
    """

    def __init__(self, client: FleetClient | None) -> None:
        self._client = client
        self._aliases: dict[str, str | None] = {}
        self._hardware_ids: dict[str, str] = {}
        self._is_listed = False

    def of(self, device_id: str) -> str:
        """Return the name of a device, or its device id if the name is not known."""
        return self._aliases.get(device_id) or self._hardware_ids.get(device_id) or device_id

    def look_up(self, events: Iterable[Json]) -> None:
        """Read the unknown names of the devices in `events`, with few requests.

        If a request fails, these names stay unknown.
        """
        missing = {event["device_id"]: None for event in events if self._is_unknown(event)}
        if not missing or self._client is None:
            return
        try:
            self._read(self._client, list(missing))
        except (Refused, Unreachable):
            # Without names, the events are printed with device ids.
            return

    def note(self, event: Json) -> None:
        """Store the alias that an event contains."""
        if event["device_id"] and "alias" in event["data"]:
            self._aliases[event["device_id"]] = event["data"]["alias"]

    def _is_unknown(self, event: Json) -> bool:
        device_id, data = event["device_id"], event["data"]
        alias = data["alias"] if "alias" in data else self._aliases.get(device_id)
        return bool(device_id) and not alias and device_id not in self._hardware_ids

    def _read(self, client: FleetClient, missing: list[str]) -> None:
        if not self._is_listed:
            rows, _ = client.items("/admin/devices", PAGE)
            self._is_listed = True
            for row in rows:
                self._keep(row)
        for device_id in [one for one in missing if one not in self._hardware_ids][:MOST_READ]:
            try:
                self._keep(client.get(f"/admin/devices/{device_id}"))
            except Refused as refused:
                if refused.code != _GONE:
                    raise
                self._hardware_ids[device_id] = device_id

    def _keep(self, row: Json) -> None:
        self._hardware_ids[row["device_id"]] = row["hardware_id"]
        self._aliases.setdefault(row["device_id"], row["alias"])
