"""The part "needs attention" of the home page. Each line is a number with a link to the list of its rows."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from django.db.models import Count, Model, Q
from django.db.models.functions import Now

from commands.models import Command, CommandOutcome
from commands.push.circuit_breaker import CLOSED
from devices.admin import ACTIVE, LOW_BATTERY_PERCENT, low_battery
from devices.models import PUSH_HEALTH, Device, not_seen_after
from nexmdm.common import database
from nexmdm.common.read_only_admin.columns import BAD, WARN, address_of
from nexmdm.models import DispatcherSeen, Webhook
from nexmdm.monitoring.dispatcher_status import ALIVE

MOST_COMMANDS: Final = 10_000
"""The largest number of commands to count. The commands that ended last are counted first."""

MOST_LOW: Final = 1_000
"""The largest number of devices with a low battery to count.

The limit is low because PostgreSQL must read the JSON of each device.
"""

_ENDED: Final = """
    SELECT outcome, count(*)
    FROM (
        SELECT outcome FROM commands_command WHERE finished_at > now() - interval '1 day'
        ORDER BY finished_at DESC LIMIT %s
    ) newest
    GROUP BY outcome
"""

_OUTCOMES: Final = {
    CommandOutcome.FAILED: ("command failed", "commands failed", BAD),
    CommandOutcome.EXPIRED: ("command expired", "commands expired", BAD),
    CommandOutcome.PARTIAL: (
        "command succeeded on some of its devices only", "commands succeeded on some of their devices only", WARN,
    ),
}  # fmt: skip

_DEVICES: Final = {
    "silent": (
        "device has been silent for a day", "devices have been silent for a day", WARN,
        {"presence": ACTIVE, "silent": "1 day"},
    ),
    "failing": (
        "device gets no pushes: its last five or more pushes failed",
        "devices get no pushes: their last five or more pushes failed", BAD,
        {"presence": ACTIVE, "push": "failing"},
    ),
    "dead": (
        "device has a dead push token", "devices have dead push tokens", WARN, {"presence": ACTIVE, "push": "dead"},
    ),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Line:
    """A line of the part "needs attention". `count` is a number, or the first word of the line, such as `No`."""

    count: str
    text: str
    look: str
    address: str


def device_conditions() -> dict[str, Q]:
    """Return the conditions for the devices that lines() needs, by name."""
    active = Q(revoked_at=None)
    return {
        "silent": active & not_seen_after(database.now() - timedelta(days=1)),
        "failing": active & PUSH_HEALTH["failing"],
        "dead": active & PUSH_HEALTH["dead"],
    }


def lines(devices: Mapping[str, int]) -> list[Line]:
    """Return the lines whose number is not 0.

    `devices` contains the number of devices for each condition of device_conditions(), by name.
    """
    return [*_dispatchers(), *_webhooks(), *_commands(), *_devices(devices), *_batteries()]


def _dispatchers() -> Iterator[Line]:
    """Yield a line if no dispatcher runs, and a line if the circuit of a running dispatcher is not closed."""
    alive = DispatcherSeen.objects.filter(last_seen_at__gt=Now() - ALIVE)
    circuits = dict(alive.values_list("circuit", "circuit_reason"))
    address = address_of(DispatcherSeen, "changelist")
    if not circuits:
        yield Line("No", "dispatcher is running. Pushes wait, and phones get commands only by heartbeat", BAD, address)
    reason = next((reason for circuit, reason in circuits.items() if circuit != CLOSED), None)
    if reason is not None:
        yield Line("FCM", f"circuit breaker is open, and pushes wait: {reason or 'no reason is known'}", BAD, address)


def _webhooks() -> Iterator[Line]:
    failing = Q(paused=False, failing_since__isnull=False)
    counted = Webhook.objects.aggregate(stopped=Count("id", Q(paused=True)), failing=Count("id", failing))
    if count := counted["stopped"]:
        yield _line(count, "", "webhook is paused", "webhooks are paused", BAD, _to(Webhook, state="paused"))
    if count := counted["failing"]:
        address = _to(Webhook, state="failing")
        one, several = "webhook fails: its receiver accepts no event", "webhooks fail: their receivers accept no event"
        yield _line(count, "", one, several, WARN, address)


def _commands() -> Iterator[Line]:
    counted = dict(database.rows(_ENDED, [MOST_COMMANDS]))
    more = "+" if sum(counted.values()) == MOST_COMMANDS else ""
    for outcome, (one, several, look) in _OUTCOMES.items():
        if count := counted.get(outcome, 0):
            address = _to(Command, outcome=outcome.value, ended="1 day")
            yield _line(count, more, f"{one} in the last day", f"{several} in the last day", look, address)


def _devices(counted: Mapping[str, int]) -> Iterator[Line]:
    for name, (one, several, look, query) in _DEVICES.items():
        if counted[name]:
            yield _line(counted[name], "", one, several, look, _to(Device, **query))


def _batteries() -> Iterator[Line]:
    count = Device.objects.filter(low_battery()).order_by()[:MOST_LOW].count()
    if count:
        more = "+" if count == MOST_LOW else ""
        percent = f"{LOW_BATTERY_PERCENT}% battery or less and no charger"
        yield _line(count, more, f"device has {percent}", f"devices have {percent}", WARN, _to(Device, battery="low"))


def _line(count: int, more: str, one: str, several: str, look: str, address: str) -> Line:
    return Line(f"{count:,}{more}", one if count == 1 and not more else several, look, address)


def _to(model: type[Model], **filters: str) -> str:
    return address_of(model, "changelist", **filters)
