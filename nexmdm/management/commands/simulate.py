"""The command `manage.py simulate`, which runs simulated phones in a terminal.

The phones use HTTP, and do not use the database.
"""

import asyncio
import json
import random
import re
import secrets
import shlex
import signal
from argparse import ArgumentParser, ArgumentTypeError
from contextlib import AsyncExitStack, closing
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any, Final
from urllib.parse import urlsplit

import aiohttp
from django.conf import settings
from django.core.management.base import BaseCommand, CommandError

from nexmdm.client import arguments, simulated_fcm
from nexmdm.client.display import printable
from nexmdm.client.http_client import FleetClient, Refused, Unreachable
from nexmdm.client.phone import Refusal
from nexmdm.client.profiles import private_file
from nexmdm.client.simulated_fcm import SimulatedFcm
from nexmdm.client.simulated_phone import ANSWER_SECONDS, SimulatedPhone, Tell, Traits, various_traits
from nexmdm.common import addresses
from nexmdm.config import named_admins
from nexmdm.management.commands.fleet import OwnServer

FCM_PORT: Final = 8099
"""The port of the simulated FCM, unless FCM_BASE_URL is an address on 127.0.0.1 with another port."""

_REGISTERING: Final = 4
"""The number of phones that register at the same time.

The number is low, because the server computes a slow hash for each registration.
"""

_START: Final = "Is the server running? Start the server with `make run`, or name another server with --url."


@dataclass(frozen=True, slots=True)
class Fleet:
    """Simulated phones, and the settings that all of them share.

    `interval_seconds` is the time between two heartbeats. `tell` prints a line. `fcm` is None without simulated pushes.
    """

    phones: list[SimulatedPhone]
    interval_seconds: float
    tell: Tell
    fcm: SimulatedFcm | None

    async def live(self, enrollment_token: str) -> None:
        """Register all phones, and run them until the task is cancelled.

        Raises the errors of SimulatedPhone.live().
        """
        async with AsyncExitStack() as stack:
            timeout = aiohttp.ClientTimeout(ANSWER_SECONDS)
            headers = {"Host": self.phones[0].host} if self.phones[0].host else None
            session = await stack.enter_async_context(aiohttp.ClientSession(timeout=timeout, headers=headers))
            if self.fcm is not None:
                await stack.enter_async_context(self.fcm)
            await self._register(session, enrollment_token)
            async with asyncio.TaskGroup() as tasks:
                for phone in self.phones:
                    if self.fcm is not None and phone.push_token:
                        self.fcm.phones[phone.push_token] = partial(_take_push, tasks, phone)
                    tasks.create_task(self._check_in(phone))
                tasks.create_task(asyncio.Event().wait())

    async def _register(self, session: aiohttp.ClientSession, enrollment_token: str) -> None:
        turns = asyncio.Semaphore(_REGISTERING)

        async def register(phone: SimulatedPhone) -> None:
            async with turns:
                await phone.register(session, enrollment_token)

        await asyncio.gather(*map(register, self.phones))
        self.tell(f"Registered: {_names(self.phones)}; a heartbeat every {self.interval_seconds:g} s.")
        for words, some in (
            ("report each command as failed", [phone for phone in self.phones if phone.traits.fails]),
            ("fall silent after one heartbeat", [phone for phone in self.phones if phone.traits.is_silent]),
        ):
            if some:
                self.tell(f"{_names(some)}: {words}.")

    async def _check_in(self, phone: SimulatedPhone) -> None:
        try:
            await phone.check_in_for_ever(
                first_after=0 if phone.traits.is_silent else random.uniform(0, self.interval_seconds)
            )
        except Refusal as refusal:
            phone.tell(f"Ended, because the server refuses this phone: {refusal}")


def _take_push(tasks: asyncio.TaskGroup, phone: SimulatedPhone, envelope: Any) -> None:
    async def take() -> None:
        try:
            await phone.take_push(envelope)
        except Refusal as refusal:
            phone.tell(f"Refused: {refusal}")

    tasks.create_task(take())


def _names(phones: list[SimulatedPhone]) -> str:
    names = [phone.alias or phone.hardware_id for phone in phones]
    return names[0] if len(names) == 1 else f"{names[0]} to {names[-1]} ({len(names)} phones)"


class Command(BaseCommand):
    """Run simulated phones until Ctrl-C."""

    help = "Simulate phones: register, send heartbeats, show commands and report on them."
    requires_system_checks = ()

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Declare the options."""
        add, whole = parser.add_argument, arguments.positive
        add(
            "enrollment_token",
            metavar="TOKEN",
            nargs="?",
            help="an enrollment token; default: a new token of this server",
        )
        add("--url", type=arguments.url, help="the server; default: HOST and PORT of the settings")
        add("--alias", metavar="NAME", help="the alias of the device; with --count: NAME-01, NAME-02 …")
        add("--hardware-id", metavar="ID", help="hardware id of the phone; with --count: ID-01 …; default: a new id")
        add("--interval", type=whole, default=2, metavar="S", help="seconds between heartbeats; default 2")
        add("--count", type=whole, default=1, metavar="N", help="how many phones; default 1")
        add("--fail", type=_share, default=0.0, metavar="P%", help="share of phones that report each command as failed")
        add("--silent", type=_share, default=0.0, metavar="P%", help="share of phones that send only one heartbeat")
        add(
            "--push",
            action="store_true",
            help="simulate FCM too, and print how to start the server for pushes through the simulated FCM",
        )

    def handle(self, *_: object, enrollment_token: str | None, **options: Any) -> None:
        """Run the phones. Raises CommandError with the reason if they end before Ctrl-C."""
        # A shell ignores SIGINT for its background jobs, and a child process inherits this.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        url, host = (options["url"].rstrip("/"), None) if options["url"] else addresses.of_settings()
        if enrollment_token is None and options["url"]:
            raise CommandError(
                "With --url, give an enrollment token of that server. To create an enrollment token, run `nexmdm "
                "enroll-token`."
            )
        fcm = self._fcm() if options["push"] else None
        phones = self._phones(url, host, options)
        try:
            token = enrollment_token or _new_enrollment_token(len(phones))
            if len(phones) == 1 and fcm is None:
                asyncio.run(phones[0].live(token))
            else:
                asyncio.run(Fleet(phones, options["interval"], self._tell, fcm).live(token))
        except Refusal as refusal:
            raise CommandError(f"Refused: {refusal}") from refusal
        except (aiohttp.ClientError, TimeoutError) as error:
            raise CommandError(f"No answer from {url}: {error or type(error).__name__}\n{_START}") from error
        except OSError as error:
            raise CommandError(f"The simulated FCM cannot listen: {error.strerror or error}") from error
        except KeyboardInterrupt:
            self._tell("Stopped.")

    def _phones(self, url: str, host: str | None, options: dict[str, Any]) -> list[SimulatedPhone]:
        total = options["count"]
        hardware_id = options["hardware_id"] or f"simulated-{secrets.token_hex(4)}"
        alias = options["alias"] or (f"sim-{secrets.token_hex(2)}" if total > 1 else None)
        shares = {"failing": options["fail"], "silent": options["silent"]}
        various = various_traits(total, **shares, chance=random.Random()) if total > 1 else [_only(**shares)]
        phones = []
        for number, traits in enumerate(various, 1):
            ending = f"-{number:0{len(str(total))}}" if total > 1 else ""
            name = alias and alias + ending
            tell = partial(self._tell_of, name) if total > 1 and name else self._tell
            push_token = f"simulated-{secrets.token_urlsafe(16)}" if options["push"] else None
            phones.append(
                SimulatedPhone(url, host, hardware_id + ending, name, options["interval"], tell, traits, push_token)
            )
        return phones

    def _fcm(self) -> SimulatedFcm:
        """Return the simulated FCM. If the server does not use it yet, print how to start the server with it."""
        configured = urlsplit(settings.FCM_BASE_URL)
        port = (configured.port or FCM_PORT) if configured.hostname == "127.0.0.1" else FCM_PORT
        fcm = SimulatedFcm("127.0.0.1", port)
        path = settings.DATA_DIR / f"simulated-firebase-{port}.json"
        if not path.exists():
            private_file.write(path, json.dumps(simulated_fcm.service_account(fcm.url)))
        account = settings.FIREBASE_SERVICE_ACCOUNT
        if account is None or account["project_id"] != simulated_fcm.PROJECT:
            variables = f"FCM_BASE_URL={fcm.url} GOOGLE_APPLICATION_CREDENTIALS={shlex.quote(str(path))}"
            self._tell(f"For pushes, start the server with: {variables} make run")
        return fcm

    def _tell_of(self, name: str, text: str) -> None:
        self._tell(f"{name}  {text}")

    def _tell(self, text: str) -> None:
        self.stdout.write(f"{datetime.now().astimezone():%H:%M:%S}  {printable(text)}")
        self.stdout.flush()


def _only(*, failing: float, silent: float) -> Traits:
    return Traits(fails=failing > 0, is_silent=silent > 0)


def _new_enrollment_token(uses: int) -> str:
    """Create an enrollment token on the server that has the same settings as this process. Raises CommandError if the
    server refuses.
    """
    own = OwnServer()
    credentials = own.credentials(named_admins.UNNAMED)
    assert credentials is not None
    key, secret = credentials
    body = {"label": "manage.py simulate", "max_uses": uses, "expires_in_seconds": 3600}
    with closing(FleetClient(own.url, key=key, secret=secret, host=own.host)) as client:
        try:
            return str(client.post("/admin/enrollment-tokens", body)["enrollment_token"])
        except (Refused, Unreachable) as error:
            raise CommandError(f"No enrollment token could be created: {error}\n{_START}") from error


def _share(text: str) -> float:
    """Return a percentage such as `10%` as a number from 0 to 1. Raises ArgumentTypeError if it is invalid."""
    found = re.fullmatch(r"(\d{1,3}(?:\.\d+)?)%?", text)
    if found is None or float(found[1]) > 100:
        raise ArgumentTypeError(f"{text!r} is not a percentage from 0 to 100, such as 10%")
    return float(found[1]) / 100
