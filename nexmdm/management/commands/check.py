"""The command `manage.py check`: Django's command, which here also checks the database."""

from typing import Any

from django.core.management.commands import check
from django.db import DEFAULT_DB_ALIAS


class Command(check.Command):
    """Check the settings, and the devices in the database."""

    def handle(self, *app_labels: Any, **options: Any) -> None:
        """Run all checks. If no `--database` is given, check the database of NexMDM."""
        super().handle(*app_labels, **options | {"databases": options["databases"] or [DEFAULT_DB_ALIAS]})
