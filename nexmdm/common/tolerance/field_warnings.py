"""Field warnings: what is told of fields that were repaired or dropped, to the phone and to operations."""

import time
from collections.abc import Sequence
from typing import Annotated, Final
from uuid import UUID

import structlog
from prometheus_client import Counter
from pydantic import Field

from nexmdm.common.tolerance.repair import Note
from nexmdm.common.types import ResponseSchema

log = structlog.get_logger()

MAX_WARNINGS: Final = 10
"""How many warnings one answer lists; a phone that sends a thousand bad keys must not get a larger answer for it."""

LOG_SECONDS: Final = 1
"""Each field of each route is logged at most once in this time, with the count since its previous line."""

INVALID_FIELDS = Counter(
    "nexmdm_invalid_fields", "Fields of device bodies that were repaired or dropped.", ["route", "field"]
)


class FieldWarning(ResponseSchema):
    """A field that was repaired or dropped."""

    loc: list[str]
    msg: str


def _is_empty(warnings: list[FieldWarning]) -> bool:
    return not warnings


Warnings = Annotated[
    list[FieldWarning],
    Field(
        max_length=MAX_WARNINGS,
        exclude_if=_is_empty,
        description="Fields that were repaired or dropped, and how. Absent when there are none.",
    ),
]
"""The `warnings` of an answer to a device body; give the field the default []."""


def shown(notes: Sequence[Note]) -> list[FieldWarning]:
    """Return the warnings that the phone gets."""
    return [FieldWarning(loc=list(note.loc), msg=note.msg) for note in notes[:MAX_WARNINGS]]


class _Collapsed:
    """The lines of one field of one route: when the latest one was written, and what has not been counted in one."""

    __slots__ = ("count", "logged_at")

    def __init__(self) -> None:
        self.logged_at, self.count = float("-inf"), 0


_collapsed: Final[dict[tuple[str, str], _Collapsed]] = {}
"""Bounded by the declared fields: a note's `field` never has a key that a phone made up."""


def record(route: str, device_id: UUID, notes: Sequence[Note]) -> None:
    """Tell operations of the notes on the body of a device whose credential was good."""
    for note in notes:
        INVALID_FIELDS.labels(route, note.field).inc()
        lines = _collapsed.setdefault((route, note.field), _Collapsed())
        lines.count += 1
        if (now := time.monotonic()) - lines.logged_at >= LOG_SECONDS:
            log.warning(
                "device.invalid_field",
                route=route,
                field=note.field,
                reason=note.msg,
                device_id=str(device_id),
                count=lines.count,
            )
            lines.logged_at, lines.count = now, 0
