"""The home page: what needs attention, and charts of devices, deliveries and pushes."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, timedelta
from typing import Any, Final

from django.db.models import Count, Model

from commands.admin.filters import HTTP_STATUSES
from commands.models import FCM_ERRORS, OPEN, Attempt, AttemptOutcome, Delivery
from devices.models import Device
from devices.presence.states import presences
from nexmdm.admin_site import attention, hourly_charts
from nexmdm.common import database
from nexmdm.common.read_only_admin.columns import address_of
from nexmdm.monitoring import fleet_summary
from nexmdm.monitoring.fleet_summary import Pushes

DAY: Final = timedelta(days=1)

MOST: Final = 200_000
"""The largest number of rows that a chart counts. If there are more rows, the page shows a text about this."""

_OPEN: Final = """
    SELECT state, count(*)
    FROM (
        SELECT state FROM commands_delivery
        WHERE state IN ('pending', 'received') AND open_until > now() LIMIT %s
    ) counted
    GROUP BY state
"""


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar of a chart.

    `percent` is its length, in percent of the longest bar. `look` is `good`, `bad` or `quiet`. `address` is a link to
    the list of its rows.
    """

    label: str
    count: int
    percent: str
    look: str
    address: str

    @property
    def shown(self) -> str:
        """The number with thousands separators."""
        return f"{self.count:,}"


@dataclass(frozen=True, slots=True)
class Chart:
    """A chart. `note` is a text about rows that are not counted, or an empty string."""

    name: str
    heading: str
    bars: list[Bar]
    note: str = ""


def home() -> dict[str, Any]:
    """Return the context of the template of the home page. All counts are read now."""
    conditions = {**presences(), **attention.device_conditions()}
    # One query counts all devices.
    devices = Device.objects.aggregate(
        **{name: Count("pk", filter=condition) for name, condition in conditions.items()}
    )
    return {
        "attention": attention.lines(devices),
        "hourly_charts": hourly_charts.charts(),
        "charts": [_fleet(devices), _open_deliveries(), _pushes()],
    }


def _fleet(counted: Mapping[str, int]) -> Chart:
    looks = {"online": "good", "offline": "bad", "never": "quiet", "revoked": "quiet", "retired": "quiet"}
    counts = [(name, counted[name], look) for name, look in looks.items()]
    return Chart("fleet", "Devices", _bars((name, n, look, _to(Device, presence=name)) for name, n, look in counts))


def _open_deliveries() -> Chart:
    counted = dict(database.rows(_OPEN, [MOST]))
    counts = [(state.value, counted.get(state, 0)) for state in OPEN]
    note = f"There are {MOST:,} or more." if sum(counted.values()) == MOST else ""
    bars = _bars((state, count, "good", _to(Delivery, state=state)) for state, count in counts)
    return Chart("open", "Open deliveries", bars, note)


def _pushes() -> Chart:
    counted = fleet_summary.pushes_of(DAY, MOST)
    note = "" if counted else "None."
    if sum(pushes.count for pushes in counted) == MOST:
        since = min(pushes.oldest_at for pushes in counted).astimezone(UTC)
        note = f"Only the newest {MOST:,} are counted, since {since:%Y-%m-%d %H:%M}Z."
    bars = _bars((one.code, one.count, "good" if one.code == "OK" else "bad", _to_pushes(one)) for one in counted)
    return Chart("pushes", "Pushes of the last 24 hours, by FCM code", bars, note)


def _to_pushes(pushes: Pushes) -> str:
    if pushes.code == "OK":
        return _to(Attempt, age="1 day", outcome=AttemptOutcome.ACCEPTED.value)
    if pushes.code.lower() in AttemptOutcome.values:
        return _to(Attempt, age="1 day", outcome=pushes.code.lower())
    if pushes.code.isdigit():
        known = int(pushes.code) in HTTP_STATUSES
        return _to(Attempt, age="1 day", fcm_error="none", http_status=pushes.code if known else "other")
    return _to(Attempt, age="1 day", fcm_error=pushes.code if pushes.code in FCM_ERRORS else "other")


def _to(model: type[Model], **filters: str) -> str:
    return address_of(model, "changelist", **filters)


def _bars(counts: Iterable[tuple[str, int, str, str]]) -> list[Bar]:
    counts = list(counts)
    longest = max((count for _, count, _, _ in counts), default=0) or 1
    return [Bar(label, n, f"{100 * n / longest:.1f}", look, address) for label, n, look, address in counts]
