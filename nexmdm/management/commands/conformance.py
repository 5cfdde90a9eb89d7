"""The command `manage.py conformance`, which tests an agent with the conformance kit."""

import asyncio
import shutil
import signal
import sys
import tempfile
from argparse import REMAINDER, ArgumentParser
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from nexmdm.conformance import kit
from nexmdm.conformance.catalogue import SCENARIOS
from nexmdm.conformance.kit import Result
from nexmdm.conformance.scenario import Scenario
from nexmdm.conformance.server import ServerFailed
from nexmdm.conformance.table import table


class Command(BaseCommand):
    """Play the scenarios against an agent. The exit status is 0 if the agent keeps all promises, and 1 if not."""

    help = (
        "Test an agent. The kit starts a server for the agent, injects faults, and prints which promises of "
        "docs/agent.md the agent keeps."
    )
    requires_system_checks = ()

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Declare the options."""
        add = parser.add_argument
        add(
            "--only",
            action="append",
            metavar="NAME",
            choices=SCENARIOS,
            help="play only this scenario; may be repeated",
        )
        add("--list", action="store_true", help="print the scenarios and their promises, and play no scenario")
        add("--keep", type=Path, metavar="FOLDER", help="keep all outputs and states in this new folder")
        add("command", nargs=REMAINDER, metavar="-- COMMAND …", help="the command that starts the agent")

    def handle(self, *_: object, only: list[str] | None, command: list[str], keep: Path | None, **options: Any) -> None:
        """Play the scenarios, and print the table of the promises."""
        scenarios = [scenario for name, scenario in SCENARIOS.items() if not only or name in only]
        if options["list"]:
            self.stdout.write("\n".join(f"{scenario.name:22}{scenario.promise}" for scenario in scenarios))
            return
        command = command[1:] if command[:1] == ["--"] else command
        if not command or shutil.which(command[0]) is None:
            named = f"{command[0]!r} is not a program" if command else "No agent is named"
            raise CommandError(
                f"{named}. Write the command that starts the agent: manage.py conformance -- python docs/agent/agent.py"
            )
        # A shell ignores SIGINT for its background jobs, and a child process inherits this.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            with tempfile.TemporaryDirectory(prefix="nexmdm-") as folder:
                kept = keep or Path(folder)
                kept.mkdir(parents=True, exist_ok=True)
                results = asyncio.run(self._play(kept, scenarios, command))
        except ServerFailed as error:
            raise CommandError(str(error)) from error
        except KeyboardInterrupt:
            sys.exit("Stopped.")
        self.stdout.write(f"\n{table(results)}")
        if any(result.missed for result in results):
            sys.exit(1)

    async def _play(self, folder: Path, scenarios: Sequence[Scenario], command: Sequence[str]) -> list[Result]:
        self.stdout.write(f"Starting a server for {len(scenarios)} scenarios …")
        async with kit.running(folder) as running:
            return await running.play_all(scenarios, command, self._tell)

    def _tell(self, result: Result) -> None:
        self.stdout.write(f"  {result.scenario.name}: {'MISSED' if result.missed else 'kept'}")
        self.stdout.flush()
