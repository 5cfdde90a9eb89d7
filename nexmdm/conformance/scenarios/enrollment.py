"""Scenarios about registration and restarts."""

from typing import Final

from nexmdm.conformance.case import Case, Missed
from nexmdm.conformance.proxy import HEARTBEAT, REGISTER, Lost, Refusal, pause
from nexmdm.conformance.scenario import Scenario


async def _enroll(case: Case) -> None:
    await case.enroll()
    registered = case.proxy.to(REGISTER)
    if len(registered) != 1:
        raise Missed(f"the agent registered {len(registered)} times")
    if registered[0].bearer != case.enrollment_token or registered[0].body.get("hardware_id") != case.hardware_id:
        raise Missed("the agent did not register with PHONE_ENROLLMENT_TOKEN and PHONE_HARDWARE_ID")
    device = await case.server.get(f"/admin/devices/{case.device_id}")
    if device["push"] == "none":
        raise Missed("the server has no push target of the agent after its first heartbeat")


async def _restart(case: Case) -> None:
    await case.enroll()
    case.agent.kill()
    case.agent.start()
    seen = len(case.proxy.calls)
    await case.until(lambda: len(case.proxy.calls) > seen, "the agent sent nothing after a restart")
    case.registered_once("it was killed and started again")
    await case.heartbeats(1)


async def _lost_registration(case: Case) -> None:
    case.proxy.fail(REGISTER, Lost(done=True))
    await case.enroll()
    registered = case.proxy.to(REGISTER)
    if {(call.bearer, call.body.get("hardware_id")) for call in registered} != {
        (case.enrollment_token, case.hardware_id)
    }:
        raise Missed("the agent registered again under another hardware_id or with another enrollment token")
    case.ran(await _pinged(case), 1)


async def _pinged(case: Case) -> str:
    request_id = await case.order()
    await case.done(request_id)
    return request_id


async def _refused_registration(case: Case) -> None:
    case.proxy.fail(REGISTER, Refusal(409, "hardware_known"))
    case.agent.start()
    await case.until(lambda: case.proxy.to(REGISTER), "the agent did not register")
    await pause(6)
    if len(case.proxy.to(REGISTER)) > 1:
        raise Missed("the agent repeated a registration that was refused with 409 hardware_known")


async def _unauthorized(case: Case) -> None:
    await case.enroll()
    case.proxy.fail(HEARTBEAT, Refusal(401, "invalid_token"))
    refused = await case.refused(HEARTBEAT, 401)
    await case.until(lambda: case.proxy.calls[-1].at > refused.at, "the agent sent nothing after a 401")
    case.registered_once("a 401")
    await case.heartbeats(1)
    if case.proxy.to(HEARTBEAT, since=refused.at)[0].at - refused.at < case.proxy.interval / 2:
        raise Missed("the agent repeated a heartbeat immediately after a 401")


SCENARIOS: Final = (
    Scenario(
        "enroll",
        "A phone registers once. Then it sends heartbeats with its device token, and reports its push target.",
        _enroll,
    ),
    Scenario(
        "restart",
        "A phone stores its credentials before it uses them. After a restart, the phone uses the stored credentials"
        " and does not register again.",
        _restart,
    ),
    Scenario(
        "lost-registration",
        "If the answer to a registration is lost, the phone registers again with the same hardware_id and enrollment"
        " token. The phone uses the credentials of the last answer.",
        _lost_registration,
    ),
    Scenario(
        "refused-registration",
        "If a registration is refused with 401, 403, 409 or 422, the phone does not repeat the registration. A person"
        " must help.",
        _refused_registration,
    ),
    Scenario(
        "unauthorized",
        "After a 401 to its device token, a phone keeps its credentials and waits longer before it tries again. It"
        " does not register again by itself.",
        _unauthorized,
    ),
)
