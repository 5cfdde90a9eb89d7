"""Test a promise: odd answers of FCM's front end to one push token do not stop the pushes to other phones."""

import asyncio
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Final

import httpx

from loadtest.fleet.credentials_file import Member
from loadtest.testbed import testbed
from loadtest.testbed.serving import Serving
from loadtest.trust.trials.background_load import BackgroundLoad
from loadtest.trust.trials.finding import Finding
from loadtest.trust.trials.one_against_all import beside, honest
from loadtest.trust.trials.one_against_all.beside import ROUNDS, SECONDS, Case
from loadtest.trust.trials.one_against_all.honest import Honest, Pushes
from loadtest.trust.trials.one_against_all.order import Tally
from nexmdm.client.http_client import FleetClient

HEARTBEATS_PER_SECOND: Final = 100
COMMANDS_PER_SECOND: Final = 2
PUSHED: Final = 24
"""The number of good phones in each command. Each command also goes to the bad phone, so one push in 25 gets an odd
answer."""

ANSWERS: Final = {"blank401": "401 with an empty body", "html404": "404 with a page of HTML"}
"""The words of the fake FCM, and their meaning."""

LEAST_ANSWERED: Final = ROUNDS * SECONDS * COMMANDS_PER_SECOND // 2
"""The least number of odd answers. It is lower than the number of commands, because the last push to the bad phone may
still wait."""


def trial(folder: Path) -> Iterator[Finding]:
    """Let the fake FCM answer the pushes of one phone oddly, in two ways."""
    with (
        testbed.standin(folder) as (_, fcm),
        beside.served(folder, with_push_tokens=True, **fcm) as (serving, members),
        serving.admin() as admin,
    ):
        yield from beside.each({word: partial(_tried, serving, members, admin, word) for word in ANSWERS})


async def _tried(serving: Serving, members: list[Member], admin: FleetClient, word: str) -> Finding:
    bad, *good = members
    await asyncio.to_thread(_give, serving.url, bad, f"{word}-{bad.device_id}")
    journal = serving.data_dir.parent / "journal"
    pushes = Pushes(admin, good[:PUSHED], journal, per_second=COMMANDS_PER_SECOND)
    traffic = Honest(
        {
            "heartbeats": BackgroundLoad(serving.url, good[PUSHED:], per_second=HEARTBEATS_PER_SECOND),
            "signed calls": honest.calls(admin, "/admin/summary"),
            "pushes": pushes,
        }
    )
    case = Case(
        f"a push token that always gets {ANSWERS[word]}",
        f"each command goes to {PUSHED} good phones and to the phone with this token",
        least_sent=LEAST_ANSWERED,
        answers={word.rstrip("0123456789")},
    )
    return await beside.tried(case, traffic, OddOne(pushes, [bad.device_id]), serving)


def _give(url: str, member: Member, push_token: str) -> None:
    bearer = {"Authorization": f"Bearer {member.device_token}"}
    httpx.post(f"{url}/v1/heartbeat", json={"push_token": push_token}, headers=bearer).raise_for_status()


class OddOne:
    """The attacker of this trial. While it attacks, each command also goes to the phone with the bad push token."""

    def __init__(self, pushes: Pushes, device_ids: Sequence[str]) -> None:
        self._pushes = pushes
        self._device_ids = device_ids

    async def begin(self) -> None:
        """Send each command also to the bad phone."""
        self._pushes.also = self._device_ids

    async def end(self) -> Tally:
        """Send no more commands to the bad phone. Return the answers to its pushes since the last call."""
        self._pushes.also = ()
        answers, self._pushes.answers = self._pushes.answers, type(self._pushes.answers)()
        return Tally(answers.total(), answers=answers)
