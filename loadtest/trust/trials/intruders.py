"""Intruders get no access, whether they share an enrollment token, guess tokens, or use a revoked device.

The trial uses two web workers with one database.
"""

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import cycle, islice
from pathlib import Path
from typing import Any, Final

import httpx
import uvloop

from loadtest.fleet import enrolling
from loadtest.fleet.credentials_file import Member
from loadtest.load import disturbances
from loadtest.testbed import testbed
from loadtest.trust.trials import workers
from loadtest.trust.trials.finding import Finding
from loadtest.trust.trials.workers import Worker
from nexmdm.client.http_client import FleetClient

AT_ONCE: Final = 50
FAILURES_A_MINUTE: Final = 60
GUESSES: Final = 400
SETTINGS: Final = {"BCRYPT_ROUNDS": "10", "AUTH_FAILURE_RATE_LIMIT": f"{FAILURES_A_MINUTE}/m"}


def trial(folder: Path) -> Iterator[Finding]:
    """Let intruders send requests to two web workers."""
    with ExitStack() as stack:
        serving = stack.enter_context(testbed.served(folder / "data", **SETTINGS))
        admin = stack.enter_context(serving.admin())
        urls = []
        for number in range(2):
            listener = stack.enter_context(workers.listening())
            worker = Worker(listener, serving.environment, folder / f"worker-{number}")
            stack.callback(worker.stop)
            urls.append(workers.url_of(listener))
        yield uvloop.run(_one_token_for_many(admin, urls))
        members, _ = enrolling.enrol(admin, 2, with_push_tokens=False, watch=lambda: None)
        yield uvloop.run(_revoked(admin, urls, members[0]))
        yield uvloop.run(_guessed(admin, urls, members[1]))


async def _one_token_for_many(admin: FleetClient, urls: list[str]) -> Finding:
    token = admin.post("/admin/enrollment-tokens", {})["enrollment_token"]

    async def register(http: httpx.AsyncClient, url: str, number: int) -> int:
        return await _post(http, f"{url}/v1/register", token, {"hardware_id": f"intruder-{number}"})

    async with _http() as http:
        calls = (register(http, url, number) for number, url in enumerate(islice(cycle(urls), AT_ONCE)))
        statuses = Counter(await asyncio.gather(*calls))
    devices, _ = admin.items("/admin/devices", AT_ONCE)
    return Finding(
        "an enrollment token for one device registers exactly one device",
        f"{AT_ONCE} registrations at the same time, on two workers",
        f"{_counted(statuses)}; {len(devices)} device",
        statuses == {200: 1, 401: AT_ONCE - 1} and len(devices) == 1,
    )


async def _revoked(admin: FleetClient, urls: list[str], member: Member) -> Finding:
    statuses: Counter[int] = Counter()
    rounds = 20
    async with _http() as http:
        for _ in range(rounds):
            for verb in ("revoke", "reinstate"):
                await asyncio.to_thread(admin.post, f"/admin/devices/{member.device_id}/{verb}")
                answers = [await _post(http, f"{url}/v1/heartbeat", member.device_token, {}) for url in urls]
                wanted = 403 if verb == "revoke" else 200
                statuses.update(answers)
                if answers != [wanted] * len(urls):
                    break
    return Finding(
        "a revocation and a reinstatement are effective in every process at the next request",
        f"{rounds} times each, then a heartbeat to each of two workers",
        _counted(statuses),
        statuses == {403: rounds * len(urls), 200: rounds * len(urls)},
    )


async def _guessed(admin: FleetClient, urls: list[str], member: Member) -> Finding:
    guesses = islice(disturbances.invalid_tokens([member]), GUESSES)
    guessed: Counter[int] = Counter()
    good: Counter[int] = Counter()
    async with _http() as http:
        for number, ((bearer, _), url) in enumerate(zip(guesses, cycle(urls), strict=False)):
            forged = {"X-Forwarded-For": f"203.0.113.{number % 250}", "X-Real-IP": f"198.51.100.{number % 250}"}
            guessed[await _post(http, f"{url}/v1/heartbeat", bearer, {}, forged)] += 1
            if number % 10 == 0:
                good[await _post(http, f"{url}/v1/heartbeat", member.device_token, {})] += 1
    await asyncio.to_thread(admin.get, "/admin/summary")
    held = set(guessed) == {401, 429} and guessed[401] <= 2 * FAILURES_A_MINUTE and set(good) == {200}
    return Finding(
        f"above {FAILURES_A_MINUTE} failures a minute, guesses get 429, but valid requests from that address pass",
        f"{GUESSES} wrong tokens from one address, each with another X-Forwarded-For; valid heartbeats among them",
        f"guesses {_counted(guessed)}; valid heartbeats {_counted(good)}",
        held,
    )


def _http() -> httpx.AsyncClient:
    limits = httpx.Limits(max_connections=AT_ONCE, max_keepalive_connections=AT_ONCE)
    return httpx.AsyncClient(timeout=60, limits=limits, trust_env=False)


async def _post(
    http: httpx.AsyncClient, url: str, bearer: str, body: dict[str, Any], headers: dict[str, str] | None = None
) -> int:
    answer = await http.post(url, json=body, headers={"Authorization": f"Bearer {bearer}", **(headers or {})})
    return answer.status_code


def _counted(statuses: Counter[int]) -> str:
    return ", ".join(f"{count} × {status}" for status, count in sorted(statuses.items()))
