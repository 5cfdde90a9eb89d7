"""The composing app: idempotent answers, audit, dispatchers seen, and the management commands."""

from django.apps import AppConfig


class NexmdmConfig(AppConfig):
    """Owns what knows both `devices` and `commands`."""

    name = "nexmdm"
    verbose_name = "NexMDM"
