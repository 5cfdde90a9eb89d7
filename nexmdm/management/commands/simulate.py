"""manage.py simulate: a simulated phone on this terminal, for trials. It speaks only HTTP, and needs no database."""

import asyncio
import secrets
from argparse import ArgumentParser
from datetime import datetime
from typing import Any

import aiohttp
from django.core.management.base import BaseCommand, CommandError

from nexmdm.client import arguments
from nexmdm.client.display import printable
from nexmdm.client.phone import Refusal
from nexmdm.client.simulated_phone import SimulatedPhone
from nexmdm.common import addresses


class Command(BaseCommand):
    """Simulate a phone until Ctrl-C."""

    help = "Simulate a phone: register with an enrollment token, send heartbeats, show commands and report on them."
    requires_system_checks = ()

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Declare the options."""
        add, whole = parser.add_argument, arguments.positive
        add("enrollment_token", metavar="TOKEN", help="an enrollment token, as manage.py fleet enroll-token prints it")
        add("--url", type=arguments.url, help="the server; default: HOST and PORT of the settings")
        add("--alias", metavar="NAME", help="the alias of the device")
        add("--hardware-id", metavar="ID", help="the hardware id of the phone; default: a new one")
        add("--interval", type=whole, default=2, metavar="S", help="seconds between heartbeats; default 2")

    def handle(self, *_: object, enrollment_token: str, **options: Any) -> None:
        """Run the phone, and print why it ended if that was not Ctrl-C."""
        phone = self._phone(options)
        try:
            asyncio.run(phone.live(enrollment_token))
        except Refusal as refusal:
            raise CommandError(f"Refused: {refusal}") from refusal
        except (aiohttp.ClientError, TimeoutError) as error:
            hint = "Is the server running? Start it with `make run`, or name another one with --url."
            raise CommandError(f"No answer from {phone.url}: {error or type(error).__name__}\n{hint}") from error
        except KeyboardInterrupt:
            self._tell("Stopped.")

    def _phone(self, options: dict[str, Any]) -> SimulatedPhone:
        url, host = (options["url"].rstrip("/"), None) if options["url"] else addresses.of_settings()
        hardware_id = options["hardware_id"] or f"simulated-{secrets.token_hex(4)}"
        return SimulatedPhone(url, host, hardware_id, options["alias"], options["interval"], self._tell)

    def _tell(self, text: str) -> None:
        self.stdout.write(f"{datetime.now().astimezone():%H:%M:%S}  {printable(text)}")
        self.stdout.flush()
