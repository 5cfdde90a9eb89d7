"""Warnings about devices that share an alias, a hardware id or an installation. Only earlier versions stored such
devices.

nexmdm/apps.py imports this module when Django loads the models. `manage.py check` runs the checks.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Final
from uuid import UUID

from django.core.checks import CheckMessage, Tags, Warning, register  # noqa: A004
from django.db import InterfaceError, OperationalError

from devices import push_targets
from devices.identity import comparison_keys
from nexmdm.common import database
from nexmdm.common.postgresql import direct
from nexmdm.config import checks

SAME_ALIAS: Final = "nexmdm.W002"
SAME_HARDWARE_ID: Final = "nexmdm.W003"
SAME_INSTALLATION: Final = "nexmdm.W004"
UNCHECKED_DEVICES: Final = "nexmdm.W005"
WARNINGS: Final = (SAME_ALIAS, SAME_HARDWARE_ID, SAME_INSTALLATION, UNCHECKED_DEVICES)

NAMED_DEVICES: Final = 20
"""The largest number of devices that a warning names."""

MOST_INSTALLATIONS: Final = 1000
"""The check reads at most this number of installations that several devices share."""


@register(checks.TAG, Tags.database)
def same_devices(*, databases: Sequence[str] | None = None, **_: Any) -> list[CheckMessage]:
    """Warn about devices that share an alias, a hardware id or an installation. This reads all devices of each
    database.
    """
    return [message for using in databases or () for message in _warnings(using)]


def _warnings(using: str) -> list[CheckMessage]:
    try:
        return [*_same(using)] if comparison_keys.exist(using) else []
    except (OperationalError, InterfaceError):
        reason = direct.why_unreachable() or "The database could not be reached."
        hint = "The devices were not read. Repair the connection, then check again."
        return [Warning(reason, hint=hint, id=UNCHECKED_DEVICES)]
    finally:
        database.release_connections()


def _same(using: str) -> Iterator[CheckMessage]:
    if found := comparison_keys.shadowed_aliases(using):
        text = (
            "Each of these devices has the same alias as an earlier device, apart from upper and lower case, blanks "
            "and the form of Unicode. The alias now means only the earlier device. The later devices"
        )
        hint = "Change the alias of one of the two devices: `manage.py fleet change ID --alias NAME`."
        yield _warning(found, text, hint, SAME_ALIAS)
    if found := comparison_keys.shadowed_hardware_ids(using):
        text = (
            "The hardware_id of each of these devices is that of an earlier device, apart from blanks around it. If a "
            "phone registers with this hardware_id, the server uses the earlier device. The later devices"
        )
        hint = "Revoke the device that is not in use: `manage.py fleet revoke ID`."
        yield _warning(found, text, hint, SAME_HARDWARE_ID)
    shared = push_targets.shared_installations(MOST_INSTALLATIONS, using)
    if shared and (found := push_targets.sharing(shared, using)):
        text = (
            "The push token of each of these devices belongs to the app installation of another device. That device "
            "sent its last heartbeat later. The devices with the older heartbeat"
        )
        hint = (
            "Run the dispatcher. Within an hour, the dispatcher removes these push tokens. The devices then get "
            "commands by heartbeat."
        )
        yield _warning(found, text, hint, SAME_INSTALLATION)


def _warning(found: Sequence[UUID], text: str, hint: str, warning: str) -> CheckMessage:
    named = ", ".join(map(str, found[:NAMED_DEVICES]))
    more = f", and {len(found) - NAMED_DEVICES} more" if len(found) > NAMED_DEVICES else ""
    return Warning(f"{text}: {named}{more}.", hint=hint, id=warning)
