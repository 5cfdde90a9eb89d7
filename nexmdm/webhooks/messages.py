"""The messages that webhooks get. A message contains one event as JSON."""

from datetime import UTC, datetime
from typing import Any, Final, NamedTuple
from uuid import UUID

import orjson

from nexmdm.common.types import rfc3339
from nexmdm.events.feed import Happening

TEST_TYPE: Final = "webhook.test"
"""The type of test events. The event feed does not contain test events."""


class Message(NamedTuple):
    """A message to send. `id` and `body` are the same at each attempt to send an event."""

    id: str
    type: str
    body: bytes


def of_event(event: Happening) -> Message:
    """Return the message about an event."""
    ids = {"device_id": event.device_id, "request_id": event.request_id}
    return Message(event.id, event.type, _body(event.type, event.at, event.data | ids))


def of_test(test_id: UUID, webhook_id: UUID) -> Message:
    """Return the message of a test."""
    at = datetime.fromtimestamp((test_id.int >> 80) / 1000, UTC)  # A UUIDv7 begins with its time.
    data = {"webhook_id": webhook_id, "device_id": None, "request_id": None}
    return Message(test_event_id(test_id), TEST_TYPE, _body(TEST_TYPE, at, data))


def test_event_id(test_id: UUID) -> str:
    """Return the id of the test event of a test."""
    return f"test-{test_id}"


def _body(event_type: str, at: datetime, data: dict[str, Any]) -> bytes:
    return orjson.dumps({"type": event_type, "timestamp": rfc3339(at), "data": data})
