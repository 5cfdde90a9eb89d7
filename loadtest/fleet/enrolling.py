"""Register a small fleet over the API, as real phones do."""

import asyncio
from collections.abc import Callable
from typing import Final

import aiohttp

from loadtest.fleet.credentials_file import Member
from nexmdm.client.http_client import FleetClient
from nexmdm.client.phone import Phone, Refusal

AT_ONCE: Final = 8
_LIVES_SECONDS: Final = 3600


class NotEnrolled(Exception):
    """A phone could not register."""


def enrol(
    admin: FleetClient, count: int, *, with_push_tokens: bool, watch: Callable[[], None]
) -> tuple[list[Member], int]:
    """Register `count` phones. Return the phones, and the server's heartbeat interval in seconds.

    Each call uses the same hardware ids, and may enroll known devices again. So the fleet does not grow with each call.
    `watch` is called after each registration. Raises NotEnrolled, and the errors of FleetClient.
    """
    body = {"label": "load test", "max_uses": count, "expires_in_seconds": _LIVES_SECONDS, "re_enroll": True}
    token = admin.post("/admin/enrollment-tokens", body)
    try:
        return asyncio.run(_enrol(admin.url, token["enrollment_token"], count, with_push_tokens, watch))
    finally:
        admin.post(f"/admin/enrollment-tokens/{token['id']}/revoke")


async def _enrol(
    url: str, token: str, count: int, with_push_tokens: bool, watch: Callable[[], None]
) -> tuple[list[Member], int]:
    gate = asyncio.Semaphore(AT_ONCE)
    async with aiohttp.ClientSession() as session:

        async def one(number: int) -> tuple[Member, int]:
            push = {"push_token": f"ok-load-test-{number}"} if with_push_tokens else {}
            phone = Phone(session, url)
            async with gate:
                answer = await phone.register(token, f"load-test-{number}", model="Simulated", **push)
            watch()
            return _member(phone, push.get("push_token", "")), answer["heartbeat_interval_seconds"]

        try:
            enrolled = await asyncio.gather(*(one(number) for number in range(count)))
        except (Refusal, aiohttp.ClientError) as error:
            raise NotEnrolled(f"A phone could not register: {error}") from error
    return [member for member, _ in enrolled], enrolled[0][1]


def _member(phone: Phone, push_token: str) -> Member:
    agent = phone.agent
    return Member(agent.device_id, agent.current.device_token, agent.current.command_key, push_token)
