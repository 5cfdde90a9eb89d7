"""The query and the answer of a device's presence history."""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from nexmdm.common.types import Body, ResponseSchema, Time

State = Literal["online", "offline", "unknown"]


class PresenceQuery(Body):
    """The query of a presence history. The history begins at `since`, or at the first heartbeat if the first heartbeat
    came later.
    """

    since: Time | None = None


class PresenceItem(ResponseSchema):
    """A time in which the state of a device did not change. `to` is null if the state has not ended.

    `unknown` is the state in a service gap: no web worker ran, so the device could not send a heartbeat.
    """

    model_config = ConfigDict(serialize_by_alias=True, validate_by_name=True)

    state: State
    from_: Annotated[Time, Field(alias="from")]
    to: Time | None


class PresenceHistory(ResponseSchema):
    """The states of a device, oldest first. Each item begins where the item before it ends.

    `uptime_ratio` is the time online, divided by the sum of the times online and offline. It is null if this sum is 0.
    """

    items: list[PresenceItem]
    uptime_ratio: float | None
