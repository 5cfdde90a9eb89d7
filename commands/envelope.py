"""The signed command that a phone gets, the same in a push and in a heartbeat."""

import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property, lru_cache
from typing import Final, NamedTuple
from uuid import UUID

from devices import credentials

FCM_PAYLOAD_LIMIT: Final = 4096
"""The largest size in bytes of an FCM message's data, keys and values (Firebase: "About FCM messages")."""

LEAST_TTL_SECONDS: Final = 1
"""FCM's time to live is in whole seconds. With less than one second left, a push could reach FCM after its expiry."""

_SIGNATURE_LENGTH: Final = 64


@dataclass(frozen=True)
class Content:
    """The content of a command, the same for each phone, without its signature."""

    request_id: UUID
    action: str
    params: str
    issued_at: datetime
    expires_at: datetime

    @cached_property
    def fields(self) -> Mapping[str, str]:
        """The strings of the envelope, in the order in which they are signed."""
        return {
            "request_id": str(self.request_id),
            "action": self.action,
            "params": self.params,
            "issued_at": whole_seconds(self.issued_at),
            "expires_at": whole_seconds(self.expires_at),
        }


class Recipient(NamedTuple):
    """The phone that gets a command, by its device id in lower case, and the credential that signs the command."""

    device_id: str
    generation: int
    command_key_id: str


def seal(content: Content, to: Recipient) -> dict[str, str]:
    """Return the envelope: six strings, the last one the signature over the others and the device id.

    The signature is an HMAC-SHA256 as lower-case hex. Its key is the text of the device's command key. It signs `NXC1`,
    device id, request_id, action, params, issued_at and expires_at, joined by LF.
    """
    key = credentials.command_key(to.device_id, to.generation, to.command_key_id)
    message = "\n".join(("NXC1", to.device_id, *content.fields.values()))
    return {**content.fields, "signature": hmac.digest(key.encode(), message.encode(), "sha256").hex()}


def size(content: Content) -> int:
    """Return how many bytes of an FCM message the envelope takes: its keys and values in UTF-8."""
    fields = {**content.fields, "signature": "0" * _SIGNATURE_LENGTH}
    return sum(len(key) + len(value.encode()) for key, value in fields.items())


@lru_cache(maxsize=1024)
def whole_seconds(moment: datetime) -> str:
    """Return a time in the form that an envelope uses."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
