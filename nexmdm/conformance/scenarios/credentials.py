"""Scenarios about rotation, revocation and reinstatement."""

from typing import Final

from nexmdm.conformance.case import Case, Missed
from nexmdm.conformance.proxy import HEARTBEAT, ROTATE, Lost, Refusal
from nexmdm.conformance.scenario import Scenario

_ROTATE_AFTER_SECONDS: Final = 4
_REINSTATED_SECONDS: Final = 30


async def _lost_rotation(case: Case) -> None:
    case.proxy.fail(ROTATE, Lost(done=True))
    await case.enroll()
    old = case.credentials()[0]
    await case.until(lambda: case.proxy.to(ROTATE), "the agent did not rotate", within=_ROTATE_AFTER_SECONDS + 10)
    await case.until(lambda: len(case.proxy.to(ROTATE)) > 1, "the agent did not rotate again after a lost answer")
    lost, second = case.proxy.to(ROTATE)[:2]
    if {call.bearer for call in case.proxy.calls if lost.at < call.at <= second.at} != {old.device_token}:
        raise Missed("the agent did not go on with the old token after the answer to its rotation was lost")
    new = case.credentials()[-1]
    await case.until(
        lambda: any(call.bearer == new.device_token and call.status == 200 for call in case.proxy.to(HEARTBEAT)),
        "the agent sent no heartbeat with the new token",
    )


async def _rotation(case: Case) -> None:
    case.proxy.block_after(ROTATE, HEARTBEAT, Lost(done=False))
    case.proxy.block_after(ROTATE, ROTATE, Refusal(429, "rate_limited", retry_after=600))
    await case.enroll()
    case.withhold()
    in_flight, fresh = await case.withheld(), await case.withheld()
    await case.until(lambda: case.proxy.to(ROTATE), "the agent did not rotate", within=_ROTATE_AFTER_SECONDS + 10)
    new = case.credentials()[-1]
    await case.until(
        lambda: any(call.bearer == new.device_token for call in case.proxy.calls),
        "the agent sent no heartbeat with the new token after a rotation",
    )
    case.push(in_flight)
    await case.done(
        in_flight["request_id"],
        of="a push signed with the old key, while the new token has got no answer yet",
    )
    case.push(case.resign(fresh, new.command_key))
    await case.done(
        fresh["request_id"],
        of="a push signed with the new key, while the new token has got no answer yet",
    )
    case.ran(in_flight["request_id"], 1)
    case.ran(fresh["request_id"], 1)
    case.agent.kill()
    case.proxy.unblock(HEARTBEAT)
    case.agent.start()
    accepted = await case.heartbeat("no heartbeat was accepted after a restart in the middle of a rotation")
    if accepted.bearer != new.device_token:
        raise Missed("the agent forgot the new token when it was restarted")


async def _revoked(case: Case) -> None:
    await case.enroll()
    await case.server.post(f"/admin/devices/{case.device_id}/revoke")
    first = await case.refused(HEARTBEAT, 403)
    await case.until(lambda: case.proxy.calls[-1].at > first.at, "the agent sent nothing after a 403", within=20)
    case.registered_once("403 device_revoked")
    await case.until(lambda: case.proxy.to(HEARTBEAT, since=first.at), "the agent sent no heartbeat after a 403")
    second = case.proxy.to(HEARTBEAT, since=first.at)[0]
    if second.at - first.at < case.proxy.interval / 2:
        raise Missed(f"the agent tried again after {second.at - first.at:.1f} s, faster than its heartbeats")
    await case.server.post(f"/admin/devices/{case.device_id}/reinstate")
    await case.heartbeat("the agent did not come back after its device was reinstated", within=_REINSTATED_SECONDS)
    request_id = await case.order()
    await case.done(request_id)
    case.registered_once("403 device_revoked")


_ROTATING: Final = {"PHONE_ROTATE_AFTER_SECONDS": str(_ROTATE_AFTER_SECONDS)}

SCENARIOS: Final = (
    Scenario(
        "lost-rotation",
        "If the answer to a rotation is lost, the phone uses the old token, which still works. Then it rotates again.",
        _lost_rotation,
        _ROTATING,
    ),
    Scenario(
        "rotation",
        "A phone stores a new device token and command key before it uses them. The phone accepts both command keys "
        "until a request with the new token gets 200.",
        _rotation,
        _ROTATING,
    ),
    Scenario(
        "revoked",
        "After 403 device_revoked, a phone keeps its credentials and does not register again. It sends heartbeats"
        " after longer and longer waits. When the device is reinstated, the phone works as before.",
        _revoked,
    ),
)
