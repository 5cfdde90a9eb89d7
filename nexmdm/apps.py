"""The composing app: stored answers, the audit, the state of dispatchers, and the management commands."""

from importlib import import_module

from django.apps import AppConfig
from django.core.checks import register

from nexmdm.config import checks


class NexmdmConfig(AppConfig):
    """The Django app of everything that belongs to both `devices` and `commands`."""

    name = "nexmdm"
    verbose_name = "Audit, dispatchers and webhooks"

    def ready(self) -> None:
        """Register our checks. The first one runs before every command; `check --deploy` runs all of them.

        The checks of the devices need the models. Only `check` runs them, because only `check` names a database.
        """
        register(checks.settings_in_force, checks.TAG)
        register(checks.metrics_folder, checks.TAG, deploy=True)
        register(checks.connections, checks.TAG, deploy=True)
        import_module("devices.identity.device_checks")
