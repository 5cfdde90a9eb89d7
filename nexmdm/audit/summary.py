"""The summary of a signed write, in the words of the API: its action, its target, and whether it was a dry run."""

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
"""The name of the path parameter that names a device."""

TOKEN: Final = "token_id"  # noqa: S105
"""The name of the path parameter that names an enrollment token."""

DEVICES: Final = "device_ids"
"""The kind of a command's target that names devices."""

_ID: Final = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")


@dataclass(frozen=True, slots=True)
class Summary:
    """The action, and its target; empty, or None, if they do not apply."""

    action: str = ""
    target: str = ""
    dry_run: bool | None = None


Summarize = Callable[[HttpRequest, Mapping[str, Any]], Summary]
"""Returns the summary of a request, from the request and the values in its path. The body may be invalid.
"""


def by_path(action: str, name: str) -> Summarize:
    """Return a function that summarizes requests by one value of their paths."""

    def summarize(_: HttpRequest, path: Mapping[str, Any]) -> Summary:
        return Summary(action, target_text(name, [str(path[name])]))

    return summarize


def body_of(request: HttpRequest) -> Mapping[str, Any] | None:
    """Return the JSON object in a body, valid or not; None if there is none."""
    try:
        body = parse_json(request.body)
    except ValueError:
        return None
    return body if isinstance(body, dict) else None


def action_text(given: object) -> str:
    """Return the action that a body names; empty if it is not a text."""
    return _clip(given, LONGEST_ACTION) if isinstance(given, str) else ""


def target_text(name: str, given: object) -> str:
    """Return `name: the, texts, given`, cut if it is too long for the audit; empty if it is not a list of texts."""
    if not isinstance(given, list):
        return ""
    shown = given[:LONGEST_TARGET]
    if not all(isinstance(one, str) for one in shown):
        return ""
    return _clip(f"{name}: {', '.join(shown)}", LONGEST_TARGET)


def joined(*targets: str) -> str:
    """Return several targets as one text without the empty ones, cut if it is too long for the audit."""
    return _clip(", ".join(filter(None, targets)), LONGEST_TARGET)


def on_device(device_id: UUID) -> list[str]:
    """Return the targets of requests about this device alone: in the path, or as the target of a command."""
    return [target_text(name, [str(device_id)]) for name in (DEVICE, DEVICES)]


def device_in(target: str) -> UUID | None:
    """Return the device that a request's target names; None if it names several, or none."""
    device_id = _id_in(target)
    return device_id if device_id and target in on_device(device_id) else None


def devices_in(target: str) -> list[UUID]:
    """Return all devices that a request's target names by their ids.

    In a target that was cut, the last ids are missing.
    """
    by_id = target.partition(": ")[0] in (DEVICE, DEVICES, "tag")
    return [UUID(one) for one in _ID.findall(target)] if by_id else []


def with_names(target: str, names: Mapping[UUID, str]) -> str:
    """Return a request's target. A device that has a name is shown by its name instead of its id."""
    for device_id in devices_in(target):
        target = target.replace(str(device_id), names.get(device_id, str(device_id)))
    return target


def on_token(token_id: UUID) -> str:
    """Return the target of requests about this enrollment token, which their paths name."""
    return target_text(TOKEN, [str(token_id)])


def token_in(target: str) -> UUID | None:
    """Return the enrollment token that a request's target names; None if it names none."""
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
