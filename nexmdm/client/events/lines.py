"""The output of events, one line for each event: text for people, or JSON."""

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from rich.text import Text

from nexmdm.client import display
from nexmdm.client.display import Terminal, printable
from nexmdm.client.events.device_names import DeviceNames
from nexmdm.client.rows import Json

TYPES: Final = (
    "device.enrolled", "device.re_enrolled", "device.updated", "device.revoked", "device.reinstated", "device.retired",
    "device.online", "device.offline", "device.push_dead", "command.issued", "command.finished", "delivery.received",
    "delivery.settled", "audit.refused", "standing.paused", "webhook.paused", "rollout.created", "rollout.wave_issued",
    "rollout.waiting", "rollout.paused", "rollout.resumed", "rollout.stopped", "rollout.finished",
)  # fmt: skip
"""The event types that this version knows. The client also prints the other types of a newer server."""

_TYPE_WIDTH: Final = max(map(len, TYPES))
_WIDEST_DEVICE: Final = 36
_NOTHING: Final = "-"
_COUNTED: Final = ("succeeded", "failed", "expired", "cancelled", "late")
_AGAIN: Final = "(again)"


class EventPrinter:
    """A printer of events. In the lines for people, the column of devices grows with the longest name."""

    def __init__(self, terminal: Terminal, names: DeviceNames) -> None:
        self._terminal = terminal
        self._names = names
        self._device_width = 1

    def show(self, events: Iterable[Json]) -> None:
        """Print events immediately.

        A field `again` of an event means that the event was received before.
        """
        found = list(events)
        if self._terminal.is_structured:
            for event in found:
                self._terminal.line(json.dumps(event))
        else:
            self._names.look_up(found)
            for event in found:
                self._terminal.styled(self._line(event))
        self._terminal.out.flush()

    def _line(self, event: Json) -> Text:
        self._names.note(event)
        device = printable(self._names.of(event["device_id"])) if event["device_id"] else _NOTHING
        self._device_width = min(_WIDEST_DEVICE, max(self._device_width, len(device)))
        essence = essence_of(event)
        parts = [
            (display.shown("at", event["at"]), "dim"),
            (printable(event["type"]).ljust(_TYPE_WIDTH), ""),
            (device.ljust(self._device_width), "bold"),
            (essence, display.style_of(essence)),
            (printable(event["request_id"] or ""), "dim"),
            (_AGAIN if event.get("again") else "", "yellow"),
        ]
        return Text("  ").join(Text(text, style) for text, style in parts if text)


def essence_of(event: Json) -> str:
    """Return the most important data of an event as one line."""
    describe = _ESSENCES.get(event["type"], _all_of)
    return printable(describe(event["data"]))


def _all_of(data: Json) -> str:
    return "" if not data else display.shown("data", data)


def _device(data: Json) -> str:
    return _all_of({name: value for name, value in data.items() if value and name != "alias"})


def _updated(data: Json) -> str:
    ordered = {name: data[name] for name in ("alias", "tags") if name in data} | data
    return display.shown("data", {name: value or _NOTHING for name, value in ordered.items()})


def _issued(data: Json) -> str:
    return f"{data.get('action')} to {_devices(data)} by {data.get('issued_by')}"


def _finished(data: Json) -> str:
    counts: Mapping[str, Any] = data.get("counts") or {}
    shown = ", ".join(f"{counts[state]} {state}" for state in _COUNTED if counts.get(state))
    return f"{data.get('outcome') or data.get('state')}, {data.get('action')} to {_devices(data)}: {shown or 'none'}"


def _devices(data: Json) -> str:
    count = data.get("device_count")
    return "1 device" if count == 1 else f"{count} devices"


def _received(data: Json) -> str:
    return f"by {data['via']}" if data.get("via") else ""


def _settled(data: Json) -> str:
    result: Mapping[str, Any] = data.get("result") or {}
    remarks = [
        str(data.get("state")),
        f"late {result.get('status')}" if data.get("late") else "",
        f"by {data['withdrawn_by']}" if data.get("withdrawn_by") else "",
    ]
    message = result.get("message")
    return ", ".join(filter(None, remarks)) + (f": {message}" if message else "")


def _refused(data: Json) -> str:
    words = (data.get("status"), data.get("code"), data.get("method"), data.get("path"))
    what = " ".join(str(word) for word in words if word is not None)
    return f"{what} by {data.get('principal') or 'an unknown caller'}"


_ESSENCES: Final[Mapping[str, Callable[[Json], str]]] = {
    **dict.fromkeys([name for name in TYPES if name.startswith("device.")], _device),
    "device.updated": _updated,
    "command.issued": _issued,
    "command.finished": _finished,
    "delivery.received": _received,
    "delivery.settled": _settled,
    "audit.refused": _refused,
}
"""The function that describes the data of an event type. For other types, the client shows all data."""
