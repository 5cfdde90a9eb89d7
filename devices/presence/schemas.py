"""Schemas of the presence of one device."""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from nexmdm.common.types import Body, ResponseSchema, Time

State = Literal["online", "offline", "unknown"]


class PresenceQuery(Body):
    """The query of a device's presence. `since`: the history begins there, or with the first heartbeat if later."""

    since: Time | None = None


class PresenceItem(ResponseSchema):
    """A time in which a device had one state. `to` is null if the state lasts.

    `unknown`: the service itself was away, so the device could not send a heartbeat.
    """

    model_config = ConfigDict(serialize_by_alias=True, validate_by_name=True)

    state: State
    from_: Annotated[Time, Field(alias="from")]
    to: Time | None


class PresenceHistory(ResponseSchema):
    """The states of a device, the oldest first, each ending where the next one begins.

    `uptime_ratio` is the time online, divided by the time online or offline; null if there is none.
    """

    items: list[PresenceItem]
    uptime_ratio: float | None
