"""The composing app: idempotent answers, audit, dispatchers seen, and the management commands."""

from importlib import import_module

from django.apps import AppConfig
from django.core.checks import register

from nexmdm.config import checks


class NexmdmConfig(AppConfig):
    """Owns what knows both `devices` and `commands`."""

    name = "nexmdm"
    verbose_name = "NexMDM"

    def ready(self) -> None:
        """Have Django run our checks: the first before every command, all of them by `check --deploy`.

        Those of the devices need the models; they run by `check` alone, which names a database.
        """
        register(checks.settings_in_force, checks.TAG)
        register(checks.metrics_folder, checks.TAG, deploy=True)
        register(checks.connections, checks.TAG, deploy=True)
        import_module("devices.identity.device_checks")
