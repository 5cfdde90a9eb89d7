"""Scenarios in which the phone's clock is wrong by an hour."""

from typing import Final

from nexmdm.conformance.case import Case
from nexmdm.conformance.proxy import pause
from nexmdm.conformance.scenario import Scenario

_HOUR: Final = 3600
_EXPIRES_SECONDS: Final = 2
_PROMISE: Final = (
    "A phone compares expires_at with the server's time. The phone computes the server's time from server_time,"
    " because its own clock may be wrong."
)


async def _clock_ahead(case: Case) -> None:
    await case.enroll()
    case.withhold()
    command = await case.withheld()
    case.offer(command)
    await case.done(command["request_id"])
    case.ran(command["request_id"], 1)


async def _clock_behind(case: Case) -> None:
    await case.enroll()
    case.withhold()
    late = await case.withheld(expires_in_seconds=_EXPIRES_SECONDS)
    await pause(_EXPIRES_SECONDS + 1)
    case.push(late)
    await case.done(late["request_id"], "failed")
    case.ran(late["request_id"], 0)


SCENARIOS: Final = (
    Scenario("clock-ahead", _PROMISE, _clock_ahead, {"PHONE_CLOCK_OFFSET_SECONDS": str(_HOUR)}),
    Scenario("clock-behind", _PROMISE, _clock_behind, {"PHONE_CLOCK_OFFSET_SECONDS": str(-_HOUR)}),
)
