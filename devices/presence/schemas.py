"""Schemas of the presence of one device."""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from nexmdm.common.types import Body, ResponseSchema, Time

State = Literal["online", "offline", "unknown"]


class PresenceQuery(Body):
    """The query of a device's presence. The history begins at `since`, or with the first heartbeat if it came later."""

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

    `uptime_ratio` is the time online, divided by the sum of the times online and offline. It is null if this sum is 0.
    """

    items: list[PresenceItem]
    uptime_ratio: float | None
