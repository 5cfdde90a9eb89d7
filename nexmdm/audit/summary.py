"""The summary of a signed write in the audit: the action, the target, and whether the write was a dry run.

The summary uses the words of the API.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from django.http import HttpRequest

from nexmdm.common.types import parse_json

LONGEST_ACTION: Final = 64
LONGEST_TARGET: Final = 200
DEVICE: Final = "device_id"
"""The name of the path parameter that contains a device id."""

TOKEN: Final = "token_id"  # noqa: S105
"""The name of the path parameter that contains the id of an enrollment token."""

DEVICES: Final = "device_ids"
"""The name of the field in a command's target that lists device ids."""

_ID: Final = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")


@dataclass(frozen=True, slots=True)
class Summary:
    """The summary of a signed write. An empty text or None means that the field does not apply."""

    action: str = ""
    target: str = ""
    dry_run: bool | None = None


Summarize = Callable[[HttpRequest, Mapping[str, Any]], Summary]
"""A function that returns the summary of a request. Its arguments are the request and the values in the path.

The body of the request may be invalid.
"""


def by_path(action: str, name: str) -> Summarize:
    """Return a function that summarizes requests by one value in their path.

    `action` is the action in the summary. `name` is the name of the path parameter.
    """

    def summarize(_: HttpRequest, path: Mapping[str, Any]) -> Summary:
        return Summary(action, target_text(name, [str(path[name])]))

    return summarize


def body_of(request: HttpRequest) -> Mapping[str, Any] | None:
    """Return the JSON object in the body of a request, or None. The object is not validated."""
    try:
        body = parse_json(request.body)
    except ValueError:
        return None
    return body if isinstance(body, dict) else None


def action_text(given: object) -> str:
    """Return the action in a body, cut to LONGEST_ACTION characters. If `given` is not a text, return an empty text."""
    return _clip(given, LONGEST_ACTION) if isinstance(given, str) else ""


def target_text(name: str, given: object) -> str:
    """Return a target text, such as `device_ids: a, b`, cut to LONGEST_TARGET characters.

    If `given` is not a list of texts, return an empty text.
    """
    if not isinstance(given, list):
        return ""
    shown = given[:LONGEST_TARGET]
    if not all(isinstance(one, str) for one in shown):
        return ""
    return _clip(f"{name}: {', '.join(shown)}", LONGEST_TARGET)


def joined(*targets: str) -> str:
    """Return target texts as one text, cut to LONGEST_TARGET characters. Empty texts are left out."""
    return _clip(", ".join(filter(None, targets)), LONGEST_TARGET)


def on_device(device_id: UUID) -> list[str]:
    """Return the two target texts that name only this device. The first is for a device id in a path. The second is for
    the target of a command.
    """
    return [target_text(name, [str(device_id)]) for name in (DEVICE, DEVICES)]


def device_in(target: str) -> UUID | None:
    """Return the device that a target text names, or None if the text names no device or several devices."""
    device_id = _id_in(target)
    return device_id if device_id and target in on_device(device_id) else None


def devices_in(target: str) -> list[UUID]:
    """Return all devices that a target text names by id. If the text was cut, the last ids are missing."""
    by_id = target.partition(": ")[0] in (DEVICE, DEVICES, "tag")
    return [UUID(one) for one in _ID.findall(target)] if by_id else []


def with_names(target: str, names: Mapping[UUID, str]) -> str:
    """Return a target text with the names of devices instead of their ids. A device without a name keeps its id."""
    for device_id in devices_in(target):
        target = target.replace(str(device_id), names.get(device_id, str(device_id)))
    return target


def on_token(token_id: UUID) -> str:
    """Return the target text that names this enrollment token."""
    return target_text(TOKEN, [str(token_id)])


def token_in(target: str) -> UUID | None:
    """Return the enrollment token that a target text names, or None if it names no enrollment token."""
    token_id = _id_in(target)
    return token_id if token_id and target == on_token(token_id) else None


def _id_in(target: str) -> UUID | None:
    try:
        return UUID(target.partition(": ")[2])
    except ValueError:
        return None


def _clip(text: str, longest: int) -> str:
    text = text.replace("\0", "\N{REPLACEMENT CHARACTER}")
    return text if len(text) <= longest else f"{text[: longest - 1]}…"
