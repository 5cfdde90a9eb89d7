"""The catalogue of actions: one class for each action. Pydantic checks the parameters.

To add an action, write a subclass of Action. The `name` of the subclass is the name of the action. The fields of the
subclass are the parameters. The API and the OpenAPI document are made from these classes. CONTRIBUTING.md lists the
files that you must change too.
"""

from typing import Annotated, Any, ClassVar, Final

import orjson
from pydantic import Field, StrictInt

from nexmdm.common.types import Body, FreeObject, Text

HOUR: Final = 3600
FOUR_WEEKS: Final = 28 * 24 * HOUR
"""Four weeks in seconds. FCM keeps a message for at most this time."""


class Action(Body):
    """The base class of all actions. The fields of a subclass are the action's parameters. Unknown parameters are
    refused.
    """

    name: ClassVar[str]
    destructive: ClassVar[bool] = False
    """A destructive action requires `target.device_ids`. For several devices, the command also requires `expect_count`.
    """

    protective: ClassVar[bool] = False
    """A protective action protects the data of a lost phone.

    If a revocation withdraws a command with a protective action, the answer to the revocation names the command.
    """

    retires: ClassVar[bool] = False
    """Whether the device is retired when its phone reports this action as `succeeded`."""

    direct_boot: ClassVar[bool] = False
    """Whether a restarted phone runs this action before its user unlocks the phone (Android: "Direct Boot")."""

    expires_in_seconds: ClassVar[int] = 600
    """The default time to begin, in seconds. The `expires_in_seconds` of a command replaces this default."""


Package = Annotated[Text, Field(min_length=1)]


class Ping(Action):
    """Answer, to show that commands and results arrive."""

    name = "ping"


class LaunchApp(Action):
    """Bring an app to the foreground."""

    name = "launch_app"
    package: Package
    activity: Package | None = None
    extras: FreeObject | None = None


class StopApp(Action):
    """Stop an app."""

    name = "stop_app"
    package: Package


class Ring(Action):
    """Ring, so that the phone can be found."""

    name = "ring"
    direct_boot = True
    duration_seconds: Annotated[StrictInt, Field(ge=5, le=120)]


class Message(Action):
    """Show a message on the screen."""

    name = "message"
    title: Text
    body: Text


class Lock(Action):
    """Lock the screen."""

    name = "lock"
    protective = True
    direct_boot = True
    expires_in_seconds = FOUR_WEEKS


class Reboot(Action):
    """Restart the phone."""

    name = "reboot"
    direct_boot = True
    expires_in_seconds = HOUR


class Wipe(Action):
    """Erase the phone."""

    name = "wipe"
    destructive = True
    protective = True
    retires = True
    direct_boot = True
    expires_in_seconds = FOUR_WEEKS


CATALOGUE: dict[str, type[Action]] = {action.name: action for action in Action.__subclasses__()}


RETIRING: Final = frozenset(action.name for action in CATALOGUE.values() if action.retires)
PROTECTIVE: Final = frozenset(action.name for action in CATALOGUE.values() if action.protective)
DIRECT_BOOT: Final = frozenset(action.name for action in CATALOGUE.values() if action.direct_boot)


def text_of(params: Action) -> str:
    """Return the parameters of an action as JSON. NexMDM signs and sends this text.

    The text contains only the parameters that the admin gave, without default values.
    """
    given: dict[str, Any] = params.model_dump(exclude_unset=True)
    return orjson.dumps(given).decode()
