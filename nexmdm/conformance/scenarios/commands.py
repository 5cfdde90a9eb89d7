"""Scenarios about commands that come by both channels, or are forged, expired, repeated or unknown."""

from typing import Final

from nexmdm.client.phone import Envelope
from nexmdm.conformance.case import Case, Missed
from nexmdm.conformance.proxy import pause
from nexmdm.conformance.scenario import Scenario

_EXPIRES_SECONDS: Final = 2
_MANY: Final = 25
"""More commands than an offer can contain, which is 20."""


async def _both_channels(case: Case) -> None:
    await case.enroll()
    case.proxy.hides_commands = True
    pushed = await case.order()
    await case.sent(pushed)
    _came_by("push", (await case.done(pushed)).body)
    case.withhold()
    case.proxy.hides_commands = False
    offered = await case.order()
    _came_by("heartbeat", (await case.done(offered)).body)
    case.withhold()
    both = await case.withheld()
    case.offer(both)
    case.push(both)
    await case.done(both["request_id"])
    await case.heartbeats(2)
    for request_id in (pushed, offered, both["request_id"]):
        case.ran(request_id, 1)


def _came_by(channel: str, report: dict[str, str]) -> None:
    if report.get("via") != channel:
        via = report.get("via")
        raise Missed(f'a command came by {channel}: its report must have "via": "{channel}", not {via!r}')


async def _bad_signature(case: Case) -> None:
    await case.enroll()
    case.withhold()
    true = await case.withheld("message", params={"title": "Hello", "body": "true"})
    forged: list[Envelope] = [
        {**true, "params": true["params"].replace("true", "false")},
        {**true, "action": "wipe", "params": "{}"},
        {**true, "expires_at": true["expires_at"].replace("20", "21", 1)},
        case.resign(true, "0" * 64),
        {name: value for name, value in true.items() if name != "signature"},
    ]
    case.offer(*forged)
    for envelope in forged:
        case.push(envelope)
    await case.heartbeats(2)
    case.ran(true["request_id"], 0)
    if case.reports(true["request_id"]):
        raise Missed("the agent reported on an envelope with a bad signature")
    case.offer(true)
    await case.done(true["request_id"])
    case.ran(true["request_id"], 1)


async def _expired_command(case: Case) -> None:
    await case.enroll()
    case.withhold()
    late = await case.withheld(expires_in_seconds=_EXPIRES_SECONDS)
    await pause(_EXPIRES_SECONDS + 1)
    case.offer(late)
    await case.done(late["request_id"], "failed")
    case.ran(late["request_id"], 0)


async def _repeated_command(case: Case) -> None:
    await case.enroll()
    case.withhold()
    command = await case.withheld()
    case.offer(command)
    await case.done(command["request_id"])
    case.offer(command, command)
    case.push(command)
    await case.heartbeats(2)
    case.ran(command["request_id"], 1)
    case.agent.kill()
    case.agent.start()
    await case.heartbeat("the agent sent no heartbeat after it was killed and started again")
    case.offer(command)
    case.push(command)
    await case.heartbeats(2)
    case.ran(command["request_id"], 1)


async def _repeated_report(case: Case) -> None:
    await case.enroll()
    case.withhold()
    command = await case.withheld()
    case.offer(command)
    first = await case.done(command["request_id"])
    for _ in range(2):
        before = len(case.reports(command["request_id"]))
        case.offer(command)
        await case.until(
            lambda before=before: len(case.reports(command["request_id"])) > before,  # type: ignore[misc]
            "the agent did not repeat its report when the command was offered again",
        )
    statuses = {call.body.get("status") for call in case.reports(command["request_id"])[1:]}
    if not statuses <= {first.body["status"], "received", "running"}:
        raise Missed(f"the agent's repeated reports had other statuses: {', '.join(sorted(map(str, statuses)))}")


async def _unknown_action(case: Case) -> None:
    await case.enroll()
    case.withhold()
    command = await case.withheld()
    case.offer(case.resign(command, case.credentials()[-1].command_key, action="make_coffee"))
    await case.done(command["request_id"], "failed")
    case.ran(command["request_id"], 0)


async def _many_commands(case: Case) -> None:
    await case.enroll()
    case.withhold()
    ordered = [(await case.withheld())["request_id"] for _ in range(_MANY)]
    case.proxy.interval = 30
    case.proxy.hides_commands = False
    await case.until(
        lambda: len(set(case.agent.executed())) == _MANY,
        lambda: f"the agent carried out {len(set(case.agent.executed()))} of {_MANY} commands",
    )
    for request_id in ordered:
        await case.done(request_id)
        case.ran(request_id, 1)


SCENARIOS: Final = (
    Scenario(
        "both-channels",
        "A command comes by push, in the answer to a heartbeat, or by both. A phone carries out the command once. The"
        " report names the channel.",
        _both_channels,
    ),
    Scenario(
        "bad-signature",
        "If a command is not signed with the phone's command key, the phone does not carry out the command. The phone"
        " sends no report on the command.",
        _bad_signature,
    ),
    Scenario(
        "expired-command",
        "If the server's time is after the expires_at of a command, a phone does not begin the command. The phone"
        " reports the command as failed.",
        _expired_command,
    ),
    Scenario(
        "repeated-command",
        "A phone carries out each request_id once, even if the command comes several times. This is also true after a"
        " restart.",
        _repeated_command,
    ),
    Scenario(
        "repeated-report",
        "If a command comes again, the phone sends its last report on this command again.",
        _repeated_report,
    ),
    Scenario(
        "unknown-action",
        "If a phone does not know an action, the phone reports the command as failed.",
        _unknown_action,
    ),
    Scenario(
        "many-commands",
        "If has_more is true, a phone reports on the commands of the answer. Then it sends the next heartbeat"
        " immediately.",
        _many_commands,
    ),
)
