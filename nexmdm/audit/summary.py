"""What a signed write was about, in the words of the API: which action, on what, and whether it was only tried."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from django.http import HttpRequest

LONGEST_ACTION: Final = 64
LONGEST_TARGET: Final = 200
DEVICE: Final = "device_id"
"""What the value in a path is called that names a device."""


@dataclass(frozen=True, slots=True)
class Summary:
    """The action, and on what it was done; empty, or None, where they do not apply."""

    action: str = ""
    target: str = ""
    dry_run: bool | None = None


Summarize = Callable[[HttpRequest, Mapping[str, Any]], Summary]
"""Tells of a request, and the values in its path, what it is about. It may be refused for what is wrong in its body."""


def by_path(action: str, name: str) -> Summarize:
    """Return what summarizes requests by one value of their paths."""

    def summarize(_: HttpRequest, path: Mapping[str, Any]) -> Summary:
        return Summary(action, target_text(name, [str(path[name])]))

    return summarize


def action_text(given: object) -> str:
    """Return what a body says is its action; empty if that is no text."""
    return _clip(given, LONGEST_ACTION) if isinstance(given, str) else ""


def target_text(name: str, given: object) -> str:
    """Return `name: the, texts, given`, cut where it is too long for the audit; empty if they are no list of texts."""
    if not isinstance(given, list):
        return ""
    shown = given[:LONGEST_TARGET]
    if not all(isinstance(one, str) for one in shown):
        return ""
    return _clip(f"{name}: {', '.join(shown)}", LONGEST_TARGET)


def on_device(device_id: UUID) -> str:
    """Return the target of a request whose path names a device."""
    return target_text(DEVICE, [str(device_id)])


def device_in(target: str) -> UUID | None:
    """Return the device that a request's path named, by the request's target."""
    name, _, value = target.partition(": ")
    return UUID(value) if name == DEVICE else None


def _clip(text: str, longest: int) -> str:
    text = text.replace("\0", "\N{REPLACEMENT CHARACTER}")
    return text if len(text) <= longest else f"{text[: longest - 1]}…"
