"""The command `manage.py prune`, which deletes everything that is older than the retention time."""

from argparse import ArgumentParser, ArgumentTypeError
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Final

from django.conf import settings
from django.core.management.base import BaseCommand

from commands import finishing, retention
from devices import push_targets
from nexmdm.audit import entries
from nexmdm.monitoring import push_health

BATCH: Final = 2000


class Command(BaseCommand):
    """Delete old deliveries, push targets, push health and audit entries, batch by batch."""

    help = "Delete commands that ended, and audit entries that were written, more than RETENTION_DAYS ago."

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Declare the options."""
        parser.add_argument(
            "--days", type=_days, default=settings.RETENTION_DAYS, help="keep this many days (%(default)s)"
        )

    def handle(self, *_: object, days: int, **__: Any) -> None:
        """Delete all rows that are older than `days` days, and print how many were deleted."""
        kept = timedelta(days=days)
        _all_batches(lambda: finishing.finish(BATCH))
        deliveries = _all_deliveries(kept)
        _all_batches(lambda: push_targets.prune(kept, BATCH))
        _all_batches(lambda: push_health.prune(kept, BATCH))
        deleted_entries = _all_batches(lambda: entries.prune(kept, BATCH))
        self.stdout.write(
            f"Deleted {deliveries} deliveries and {deleted_entries} audit entries older than {days} days."
        )


def _days(text: str) -> int:
    # A trigger of the database refuses to delete an audit entry that is younger than a day.
    if not text.isdecimal() or not 1 <= int(text) <= 36_500:
        raise ArgumentTypeError("must be a whole number of days, at least 1")
    return int(text)


def _all_deliveries(kept: timedelta) -> int:
    total = 0
    while retention.trim(kept, BATCH) + (deliveries := retention.prune(kept, BATCH)):
        total += deliveries
    return total


def _all_batches(batch: Callable[[], int]) -> int:
    total = 0
    while deleted := batch():
        total += deleted
    return total
