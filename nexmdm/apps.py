"""The Django app `nexmdm`: its name, and the start-up checks that it registers."""

from importlib import import_module

from django.apps import AppConfig
from django.core.checks import register

from nexmdm.config import checks


class NexmdmConfig(AppConfig):
    """The Django app with the code and the tables that serve both `devices` and `commands`."""

    name = "nexmdm"
    verbose_name = "Audit, dispatchers and webhooks"

    def ready(self) -> None:
        """Register NexMDM's checks with Django.

        `settings_in_force` runs before each management command that requires checks. The deployment checks run only
        with `check --deploy`. The checks of stored devices run only with `manage.py check`, because only this command
        names a database.
        """
        register(checks.settings_in_force, checks.TAG)
        register(checks.metrics_folder, checks.TAG, deploy=True)
        register(checks.connections, checks.TAG, deploy=True)
        import_module("devices.identity.device_checks")
