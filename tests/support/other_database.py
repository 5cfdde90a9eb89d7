"""Another database instead of the tests' own, as DATABASE_URL and DIRECT_DATABASE_URL would name it."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.management import call_command
from django.db import connections
from pytest_django import DjangoDbBlocker

from nexmdm import settings as ours
from nexmdm.config import database_url


@contextmanager
def open_folder() -> Iterator[Path]:
    """Make a folder that another account can enter; pytest closes its own folders when another run starts."""
    with tempfile.TemporaryDirectory(prefix="nexmdm-") as folder:
        yield Path(folder)


@contextmanager
def used_instead(blocker: DjangoDbBlocker, url: str, direct_url: str | None = None) -> Iterator[None]:
    """Send all database work of this process to another database."""
    before, direct_before = dict(settings.DATABASES["default"]), settings.DIRECT_DATABASE
    switch_to(url)
    settings.DIRECT_DATABASE = ours.connected(database_url.django_settings(direct_url)) if direct_url else None
    try:
        with blocker.unblock():
            yield
    finally:
        settings.DIRECT_DATABASE = direct_before
        _switch(before)


def switch_to(url: str) -> None:
    """Send all database work of this process to another database from now on."""
    _switch(settings.DATABASES["default"] | ours.connected(database_url.django_settings(url)))


def _switch(to: dict[str, Any]) -> None:
    # Change the dictionary in place, because the wrapper of each thread uses the same dictionary.
    connection: Any = connections["default"]
    connection.close()
    connection.close_pool()
    settings.DATABASES["default"].clear()
    settings.DATABASES["default"].update(to)


def migrate() -> None:
    """Create the tables there."""
    call_command("migrate", verbosity=0, interactive=False)
