"""The kit: it starts a server and a simulated FCM, and plays scenarios against agents."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import aiohttp

from nexmdm.client.http_client import Refused, Unreachable
from nexmdm.conformance import server
from nexmdm.conformance.agent_process import AgentProcess, target
from nexmdm.conformance.case import Case, Missed
from nexmdm.conformance.proxy import Proxy
from nexmdm.conformance.pushes import PushStandin
from nexmdm.conformance.scenario import Scenario
from nexmdm.conformance.server import Server

JOBS: Final = 8
"""The number of scenarios that are played at the same time."""


@dataclass(frozen=True, slots=True)
class Result:
    """The result of a scenario.

    `missed` describes what the agent did instead of its promise. It is empty if the agent kept the promise.
    """

    scenario: Scenario
    missed: str
    output: str = ""
    """The last lines of output of the agent, if the agent missed the promise."""


@dataclass(frozen=True, slots=True)
class Kit:
    """The running kit. It creates a folder for each agent in `folder`."""

    server: Server
    pushes: PushStandin
    session: aiohttp.ClientSession
    folder: Path

    async def play(self, scenario: Scenario, command: Sequence[str]) -> Result:
        """Play a scenario against a new agent. `command` is the command that starts the agent."""
        name = f"{scenario.name}-{secrets.token_hex(4)}"
        token = await self._enrollment_token(name)
        mailbox = self.pushes.mailbox()
        async with Proxy(self.server.url, self.session) as proxy:
            variables = {
                "PHONE_SERVER_URL": proxy.url,
                "PHONE_ENROLLMENT_TOKEN": token,
                "PHONE_HARDWARE_ID": name,
                "PHONE_PUSH_URL": mailbox.url,
                "PHONE_PUSH_TARGET": target(mailbox.target),
                "PHONE_CLOCK_OFFSET_SECONDS": "0",
                **scenario.variables,
            }
            agent = AgentProcess(command, self.folder / name, variables)
            try:
                await scenario.play(Case(proxy, mailbox, agent, self.server, name, token))
            except Missed as missed:
                return Result(scenario, str(missed), agent.last_words())
            except (Refused, Unreachable) as error:
                return Result(scenario, f"an admin request of the kit to its own server failed: {error}")
            finally:
                await asyncio.to_thread(agent.stop)
        return Result(scenario, "")

    async def play_all(
        self, scenarios: Iterable[Scenario], command: Sequence[str], tell: Callable[[Result], None]
    ) -> list[Result]:
        """Play scenarios, up to JOBS at the same time. Return the results in the order of the scenarios.

        `tell` is called with each result as soon as it is known.
        """
        turns = asyncio.Semaphore(JOBS)

        async def play(scenario: Scenario) -> Result:
            async with turns:
                result = await self.play(scenario, command)
            tell(result)
            return result

        return list(await asyncio.gather(*map(play, scenarios)))

    async def _enrollment_token(self, label: str) -> str:
        answer = await self.server.post("/admin/enrollment-tokens", {"label": label, "max_uses": 1})
        return str(answer["enrollment_token"])


@asynccontextmanager
async def running(folder: Path) -> AsyncIterator[Kit]:
    """Run a kit while this context is open. All its data are in `folder`. Raises ServerFailed."""
    async with (
        PushStandin() as pushes,
        server.running(folder, pushes.fcm.url) as started,
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(30)) as session,
    ):
        yield Kit(started, pushes, session, folder)
