"""The command `manage.py verify_audit`, which checks the audit chain."""

from argparse import ArgumentParser, ArgumentTypeError
from datetime import timedelta
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError

from nexmdm.audit import chain
from nexmdm.audit.chain import Place


class Command(BaseCommand):
    """Check the audit chain.

    A broken chain shows that something other than NexMDM changed, deleted or inserted an entry. If the chain is broken,
    the exit status is 1. The message then names the first wrong entry.
    """

    help = "Verify that only NexMDM has written and deleted audit entries."

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Declare the options."""
        parser.add_argument(
            "--witness", type=_place, metavar="ENTRY:HASH",
            help=(
                "an entry that an earlier run printed or a dispatcher logged; the command checks that this entry "
                "still exists"
            ),
        )  # fmt: skip
        parser.add_argument(
            "--days", type=int, default=settings.RETENTION_DAYS,
            help=(
                "the number of days for which retention keeps entries; give a lower number if RETENTION_DAYS was "
                "lower until recently; default: RETENTION_DAYS (%(default)s)"
            ),
        )  # fmt: skip

    def handle(self, *_: object, days: int, witness: Place | None = None, **__: Any) -> None:
        """Check the chain, and print a witness to store in another place.

        Raises CommandError if the chain is broken.
        """
        try:
            verified = chain.verify(timedelta(days=days), witness)
        except chain.BrokenLink as broken:
            raise CommandError(f"The audit is broken. {broken}") from broken
        except chain.DeletedTooSoon as early:
            message = (
                f"Retention keeps entries for {days} days. If retention kept entries for fewer days before, give the "
                "lower number as --days."
            )
            raise CommandError(f"{early} {message}") from early
        except chain.WitnessGone as gone:
            raise CommandError(str(gone)) from gone
        self.stdout.write(f"Verified {verified.entries:,} entries, from {verified.after.entry_id + 1} on.")
        self.stdout.write(f"The newest is {verified.newest}")
        self.stdout.write(
            "Store this witness in another place. If you give a later run this witness as --witness, the run proves "
            "that no entry up to the witness has changed."
        )


def _place(text: str) -> Place:
    try:
        return Place.parse(text)
    except ValueError as error:
        raise ArgumentTypeError(str(error)) from error
