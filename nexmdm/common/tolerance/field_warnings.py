"""Field warnings: what the phone and the operators learn about fields that were repaired or dropped."""

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
"""The largest number of warnings in one answer."""

LOG_SECONDS: Final = 1
"""The shortest time between two log lines about the same field of the same route."""

INVALID_FIELDS = Counter(
    "nexmdm_invalid_fields", "Fields of phones' requests that were repaired or dropped.", ["route", "field"]
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
        description="The fields that were repaired or dropped, and how. Absent if no field was repaired or dropped.",
    ),
]
"""The type of the field `warnings` in the answer to a phone. The field must have the default []."""


def shown(notes: Sequence[Note]) -> list[FieldWarning]:
    """Return the warnings for the phone, at most MAX_WARNINGS."""
    return [FieldWarning(loc=list(note.loc), msg=note.msg) for note in notes[:MAX_WARNINGS]]


class _Collapsed:
    """When the last log line about one field of a route was written, and how many notes came since then."""

    __slots__ = ("count", "logged_at")

    def __init__(self) -> None:
        self.logged_at, self.count = float("-inf"), 0


_collapsed: Final[dict[tuple[str, str], _Collapsed]] = {}
"""The states of the log lines, by route and field. The dict stays small, because no `field` contains a key that a phone
invented.
"""


def record(route: str, device_id: UUID, notes: Sequence[Note]) -> None:
    """Log and count the notes on a body. Call it only if the credential of the device was valid."""
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
