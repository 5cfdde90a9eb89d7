"""The forms of a time on the command line, such as `2026-11-29`, `yesterday` and `2h ago`."""

import re
from datetime import UTC, datetime, timedelta
from typing import Final

FORMS: Final = "2h ago, yesterday, 2026-11-29, '2026-11-29 14:30' or 2026-11-29T14:30:00Z"
_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_AGE: Final = re.compile(
    r"([0-9]{1,9}) ?(s|secs?|seconds?|m|mins?|minutes?|h|hours?|d|days?|w|weeks?)(?: ago)?", re.IGNORECASE
)
_DAY: Final = re.compile(r"(now|today|yesterday)|(?:(today|yesterday) )?([0-9]{1,2}):([0-9]{2})", re.IGNORECASE)


def moment(text: str) -> str:
    """Return a time in the form of the API, in UTC. Without a zone, the text is in the zone of this machine.

    Raises ValueError if the text has none of the forms in FORMS.
    """
    written = " ".join(text.split())
    try:
        found = _age(written) or _day(written) or datetime.fromisoformat(written)
        return found.astimezone(UTC).isoformat().replace("+00:00", "Z")
    except (OverflowError, ValueError) as error:
        raise ValueError(f"must look like {FORMS}") from error


def _age(text: str) -> datetime | None:
    found = _AGE.fullmatch(text)
    if found is None:
        return None
    return datetime.now(UTC) - timedelta(seconds=int(found[1]) * _UNITS[found[2][0].lower()])


def _day(text: str) -> datetime | None:
    found = _DAY.fullmatch(text)
    if found is None:
        return None
    now = datetime.now().astimezone()
    word = (found[1] or found[2] or "today").lower()
    if word == "now":
        return now
    # Computed without a zone. So the result is also right on a day on which the clocks change.
    day = now.replace(tzinfo=None) - timedelta(days=word == "yesterday")
    return day.replace(hour=int(found[3] or 0), minute=int(found[4] or 0), second=0, microsecond=0)
