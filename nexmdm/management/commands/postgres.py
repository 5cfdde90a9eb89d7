"""The command `manage.py postgres`, which starts and stops the embedded PostgreSQL without `serve`."""

from argparse import ArgumentParser
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError

from nexmdm.standalone import embedded_postgres, instance_lock


class Command(BaseCommand):
    """Start or stop the embedded PostgreSQL, or print its address."""

    help = 'Start or stop the embedded PostgreSQL, or print its URL (as in: psql "$(manage.py postgres url)").'
    requires_system_checks = ()

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Declare the argument `verb`."""
        parser.add_argument("verb", choices=["start", "stop", "url"])

    def handle(self, *_: object, verb: str, **__: Any) -> None:
        """Carry out `verb`. Raises CommandError if DATABASE_URL is set."""
        if not settings.EMBEDDED:
            raise CommandError("DATABASE_URL is set, so there is no embedded PostgreSQL.")
        self.stdout.write({"start": _start, "stop": _stop, "url": _url}[verb]())


def _start() -> str:
    started = embedded_postgres.start(settings.DATA_DIR)
    return "PostgreSQL started." if started else "PostgreSQL runs already."


def _stop() -> str:
    instance = instance_lock.acquire(settings.DATA_DIR)
    if instance is None:
        raise CommandError("`manage.py serve` uses this PostgreSQL. Stop serve, which also stops PostgreSQL.")
    with instance:
        return "PostgreSQL stopped." if embedded_postgres.stop(settings.DATA_DIR) else "PostgreSQL was not running."


def _url() -> str:
    return embedded_postgres.url(settings.DATA_DIR)
