"""Scenarios about the heartbeat interval, lost answers, rate limits and a server that does not answer."""

from itertools import pairwise
from statistics import fmean
from typing import Final

from nexmdm.conformance.case import Case, Missed
from nexmdm.conformance.proxy import HEARTBEAT, PORTAL, REGISTER, REPORT, Call, Lost, Portal, Refusal, pause
from nexmdm.conformance.scenario import Scenario

_PACES: Final = (1, 4, 2)
_EARLY_SECONDS: Final = 0.2
_LATE_SECONDS: Final = 3
_RETRIES: Final = 4
_EPISODES: Final = 3
_LEAST_SPREAD: Final = 0.07
"""The smallest accepted mean spread of waits that must be random.

In each episode of the scenario, some heartbeats are lost, and the agent waits before each repeat. The first waits of
all episodes are compared, then the second waits, and so on. The spread of the compared waits is the difference between
the longest and the shortest wait, divided by their mean. The mean of all spreads must not be below this limit. A
correct agent chooses each wait at random between half of a planned length and the whole length. The mean spread of such
an agent is 0.33. Such an agent is below this limit in 1 of 3,000 runs.
"""

_RETRY_AFTER: Final = 4
_PORTAL_STATUSES: Final = (200, 302, 404)
_AWAY_SECONDS: Final = 12
_BACK_SECONDS: Final = 30


async def _heartbeat_pace(case: Case) -> None:
    case.proxy.paces.extend(_PACES)
    await case.enroll()
    for number, asked in enumerate(_PACES, start=1):
        await case.until(
            lambda number=number: len(case.proxy.to(HEARTBEAT)) > number,  # type: ignore[misc]
            f"no heartbeat came: next_heartbeat_seconds was {asked}",
            within=asked + _LATE_SECONDS + 1,
        )
        waited = _gaps(case.proxy.to(HEARTBEAT))[number - 1]
        if not asked - _EARLY_SECONDS <= waited <= asked + _LATE_SECONDS:
            raise Missed(f"next_heartbeat_seconds was {asked}, and the next heartbeat came after {waited:.1f} s")


async def _spread_retries(case: Case) -> None:
    case.proxy.interval = 1
    await case.enroll()
    episodes = [await _retries(case) for _ in range(_EPISODES)]
    for waits in episodes:
        if waits[0] < _EARLY_SECONDS:
            raise Missed(f"the agent tried again after {waits[0]:.2f} s")
        if waits[-1] <= waits[0]:
            raise Missed(f"the agent's waits do not grow: {_shown(waits)}")
    spreads = [(max(waits) - min(waits)) / fmean(waits) for waits in zip(*episodes, strict=True)]
    if fmean(spreads) < _LEAST_SPREAD:
        raise Missed(
            f"the agent's waits are the same each time ({_shown(episodes[0])}): all phones would return together"
        )


async def _retries(case: Case) -> list[float]:
    """Lose some heartbeats. Return the waits between them, in seconds."""
    seen = len(case.proxy.to(HEARTBEAT))
    case.proxy.fail(HEARTBEAT, *[Lost(done=False)] * _RETRIES)
    what = f"the agent did not repeat a lost heartbeat {_RETRIES} times"
    await case.until(lambda: len(case.proxy.to(HEARTBEAT)) > seen + _RETRIES, what, within=40)
    await case.heartbeat("the agent did not go on after lost heartbeats")
    failed = [call for call in case.proxy.to(HEARTBEAT)[seen:] if call.status is None]
    return _gaps(failed)


def _gaps(calls: list[Call]) -> list[float]:
    return [later.at - earlier.at for earlier, later in pairwise(calls)]


def _shown(waits: list[float]) -> str:
    return ", ".join(f"{wait:.1f} s" for wait in waits)


async def _lost_report(case: Case) -> None:
    await case.enroll()
    for fault in (Lost(done=True), Lost(done=False)):
        case.proxy.fail(REPORT, fault)
        request_id = await case.order()
        await case.until(
            lambda request_id=request_id: any(  # type: ignore[misc]
                call.status == 200 and call.body.get("status") == "succeeded" for call in case.reports(request_id)
            ),
            "the agent did not repeat a report that got no answer",
        )
        case.ran(request_id, 1)


async def _rate_limited(case: Case) -> None:
    await case.enroll()
    case.proxy.fail(HEARTBEAT, Refusal(429, "rate_limited", _RETRY_AFTER))
    await _returns(case, HEARTBEAT, 429)
    case.withhold()
    command = await case.withheld()
    case.proxy.fail(REPORT, Refusal(429, "rate_limited", _RETRY_AFTER))
    case.offer(command)
    await _returns(case, REPORT, 429)
    await case.done(command["request_id"])
    case.ran(command["request_id"], 1)


async def _overloaded(case: Case) -> None:
    case.proxy.fail(REGISTER, Refusal(503, "overloaded", _RETRY_AFTER))
    case.agent.start()
    await _returns(case, REGISTER, 503)
    await case.heartbeat()
    case.withhold()
    command = await case.withheld()
    case.proxy.fail(HEARTBEAT, Refusal(503, "overloaded", _RETRY_AFTER))
    refused = await case.refused(HEARTBEAT, 503)
    case.push(command)
    await _returns(case, HEARTBEAT, 503)
    if [call for call in case.proxy.to(REPORT) if call.at < refused.at + _RETRY_AFTER]:
        raise Missed("the agent sent a report before the Retry-After of a 503 was over")
    await case.done(command["request_id"])


async def _returns(case: Case, path: str, status: int) -> None:
    """Wait for a refusal of `path`, and for the next call of `path`.

    Raises Missed if the next call does not come, or comes before Retry-After is over.
    """
    refused = await case.refused(path, status)
    await case.until(
        lambda: case.proxy.to(path, since=refused.at),
        f"the agent did not call {path} again after {status} with Retry-After: {_RETRY_AFTER}",
        within=_RETRY_AFTER * 2 + 6,
    )
    waited = case.proxy.to(path, since=refused.at)[0].at - refused.at
    if waited < _RETRY_AFTER - _EARLY_SECONDS:
        raise Missed(
            f"the answer {status} had Retry-After: {_RETRY_AFTER}; {path} was called again after {waited:.1f} s"
        )


async def _captive_portal(case: Case) -> None:
    case.proxy.fail(REGISTER, *map(Portal, _PORTAL_STATUSES))
    await case.enroll()
    case.proxy.fail(HEARTBEAT, *map(Portal, _PORTAL_STATUSES))
    await case.until(
        lambda: {call.status for call in case.proxy.to(HEARTBEAT)} >= {*_PORTAL_STATUSES},
        "the agent stopped at a captive portal",
        within=_BACK_SECONDS,
    )
    await case.heartbeat("the agent did not go on after a captive portal")
    if case.proxy.to(PORTAL):
        raise Missed("the agent followed a redirect")
    if len(case.proxy.to(REGISTER)) != len(_PORTAL_STATUSES) + 1:
        raise Missed("the agent registered again after a captive portal")


async def _server_away(case: Case) -> None:
    await case.enroll()
    case.withhold()
    pushed, offered = await case.withheld(), await case.withheld()
    async with case.proxy.away():
        await pause(case.proxy.interval)
        case.push(pushed)
        await pause(_AWAY_SECONDS - case.proxy.interval)
        case.ran(pushed["request_id"], 1)
    case.offer(offered)
    await case.heartbeat(
        f"the agent did not return after the server was away for {_AWAY_SECONDS} s", within=_BACK_SECONDS
    )
    await case.done(pushed["request_id"])
    await case.done(offered["request_id"])
    for envelope in (pushed, offered):
        case.ran(envelope["request_id"], 1)
    case.registered_once("the server was away")


SCENARIOS: Final = (
    Scenario(
        "heartbeat-pace",
        "A phone sends its next heartbeat next_heartbeat_seconds after the last answer. This number differs from"
        " answer to answer.",
        _heartbeat_pace,
    ),
    Scenario(
        "spread-retries",
        "Without an answer, a phone tries again after waits that grow. Each wait has a random part, because the"
        " phones of a fleet must not all return at the same time.",
        _spread_retries,
    ),
    Scenario(
        "lost-report",
        "A phone repeats a report until the server answers the report. The phone does not carry out the command again.",
        _lost_report,
    ),
    Scenario(
        "rate-limited",
        "After 429, a phone waits until Retry-After is over. Then it sends the refused request again.",
        _rate_limited,
    ),
    Scenario(
        "overloaded",
        "After 503, a phone sends no request until Retry-After is over. Then it continues.",
        _overloaded,
    ),
    Scenario(
        "captive-portal",
        "If an answer is not the server's JSON, the answer counts as no answer. An example is the page of a captive"
        " portal. A phone follows no redirect.",
        _captive_portal,
    ),
    Scenario(
        "server-away",
        "While the server is away, a phone keeps its credentials and its reports, and carries out pushed commands."
        " When the server is back, the phone sends heartbeats and the reports.",
        _server_away,
    ),
)
