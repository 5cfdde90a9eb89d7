"""The catalogue of actions: one small class each, its parameters checked by pydantic.

To add one, write a class: its name in `name`, its parameters as fields. The API and its document follow.
"""

from typing import Annotated, Any, ClassVar, Final

import orjson
from pydantic import Field, StrictInt

from nexmdm.common.types import Body, FreeObject, Text

HOUR: Final = 3600
FOUR_WEEKS: Final = 28 * 24 * HOUR
"""The longest that FCM keeps a message (its `ttl`)."""


class Action(Body):
    """What a phone can be told to do. Unknown parameters are refused."""

    name: ClassVar[str]
    destructive: ClassVar[bool] = False
    """Destructive actions want their devices named one by one, and counted when there are several."""

    protective: ClassVar[bool] = False
    """Protective actions keep a lost phone's data from others. A revocation that cancels one says so in its answer."""

    retires: ClassVar[bool] = False
    """A device that reports its success has done its last act, and is retired."""

    expires_in_seconds: ClassVar[int] = 600
    """How long a phone has to begin, unless the command says otherwise."""


Package = Annotated[Text, Field(min_length=1)]


class Ping(Action):
    """Answer, to show that the loop closes."""

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
    duration_seconds: Annotated[StrictInt, Field(ge=5, le=120)]


class Message(Action):
    """Show a message to whoever holds the phone."""

    name = "message"
    title: Text
    body: Text


class Lock(Action):
    """Lock the screen."""

    name = "lock"
    protective = True
    expires_in_seconds = FOUR_WEEKS


class Reboot(Action):
    """Restart the phone."""

    name = "reboot"
    expires_in_seconds = HOUR


class Wipe(Action):
    """Erase the phone."""

    name = "wipe"
    destructive = True
    protective = True
    retires = True
    expires_in_seconds = FOUR_WEEKS


CATALOGUE: dict[str, type[Action]] = {action.name: action for action in Action.__subclasses__()}


RETIRING: Final = [action.name for action in CATALOGUE.values() if action.retires]


def is_protective(name: str) -> bool:
    """Tell whether an action is protective; one that is in the catalogue no more is not."""
    action = CATALOGUE.get(name)
    return action is not None and action.protective


def text_of(params: Action) -> str:
    """Return the JSON text of an action's parameters as it is signed and sent: what was given, and no more."""
    given: dict[str, Any] = params.model_dump(exclude_unset=True)
    return orjson.dumps(given).decode()
