"""manage.py check: Django's own, which looks into the database, too."""

from typing import Any

from django.core.management.commands import check
from django.db import DEFAULT_DB_ALIAS


class Command(check.Command):
    """Check the settings, and the devices that the database holds."""

    def handle(self, *app_labels: Any, **options: Any) -> None:
        """Check; without --database, the one that everything here uses."""
        super().handle(*app_labels, **options | {"databases": options["databases"] or [DEFAULT_DB_ALIAS]})
