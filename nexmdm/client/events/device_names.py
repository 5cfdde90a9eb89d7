"""Names of the devices in events: aliases, or else hardware ids. Each is looked up once."""

from collections.abc import Iterable
from typing import Final

from nexmdm.client.http_client import PAGE, FleetClient, Refused, Unreachable
from nexmdm.client.names import MOST_READ
from nexmdm.client.rows import Json

_GONE: Final = "not_found"


class DeviceNames:
    """The names of devices by device id. Without a client, only the aliases in the events themselves are known."""

    def __init__(self, client: FleetClient | None) -> None:
        self._client = client
        self._known: dict[str, str] = {}
        self._is_listed = False

    def of(self, device_id: str) -> str:
        """Return the name of a device, or its id if the name is not known."""
        return self._known.get(device_id, device_id)

    def learn(self, events: Iterable[Json]) -> None:
        """Learn the aliases in these events, and look up names that are missing, with few requests."""
        missing = {event["device_id"]: None for event in events if event["device_id"] and not self._has(event)}
        if not missing or self._client is None:
            return
        try:
            self._look_up(self._client, [device_id for device_id in missing if device_id not in self._known])
        except (Refused, Unreachable):
            # An event with an id is better than none.
            return

    def note(self, event: Json) -> None:
        """Take over the alias in an event, so that this and later events show it."""
        if event["device_id"] and (alias := event["data"].get("alias")):
            self._known[event["device_id"]] = alias

    def _has(self, event: Json) -> bool:
        return event["device_id"] in self._known or bool(event["data"].get("alias"))

    def _look_up(self, client: FleetClient, missing: list[str]) -> None:
        if not self._is_listed:
            rows, _ = client.items("/admin/devices", PAGE)
            self._is_listed = True
            for row in rows:
                self._keep(row)
        for device_id in [one for one in missing if one not in self._known][:MOST_READ]:
            try:
                self._keep(client.get(f"/admin/devices/{device_id}"))
            except Refused as refused:
                if refused.code != _GONE:
                    raise
                self._known[device_id] = device_id

    def _keep(self, row: Json) -> None:
        self._known.setdefault(row["device_id"], row["alias"] or row["hardware_id"])
